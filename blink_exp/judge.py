"""A language model as judge, behind any OpenAI-compatible endpoint: cached, resumable, and every missing verdict is reported."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from blink_exp.documents.records import JudgeVerdict
from blink_exp.errors import UserError
from blink_exp.files import encodable, parse_json, read_text
from blink_exp.settings.doors import install

Messages = list[dict[str, Any]]
UNPARSED = "unparsed"  # the judge answered, but not in the form that was asked for


@dataclass(frozen=True)
class Verdict:
    """``value``: parsed from the judge's reply, None if there is none; ``text``: the raw reply; ``why``: the reason for a missing value,
    ``unparsed`` or the endpoint's error."""

    value: Any
    text: str | None = None
    why: str = ""

    @property
    def unparsed(self) -> bool:
        return self.why == UNPARSED

    def plain(self, model: str) -> JudgeVerdict:
        """The verdict as stored in a record."""
        verdict: JudgeVerdict = {"model": model, "value": self.value, "text": self.text}
        return {**verdict, "why": self.why} if self.why else verdict


class RequestError(Exception):
    """The endpoint did not answer a request."""


class MalformedReply(Exception):
    """The reply is not a chat completion."""


class Judge:
    """Asks ``model`` at temperature 0. Server errors, rate limits and timeouts are tried again with exponential backoff and jitter, or
    after as long as the server says (Retry-After).

    Every reply is kept on disk, so a run that was stopped asks only for what is missing. The key is read from the environment when the
    first request is sent; it is in no config, record, cache file or message.

    Args:
        model: its full name at the endpoint; marks of two judges cannot be compared, not even of two versions of one.
        base_url: of the endpoint; None: OPENAI_BASE_URL, else OpenAI's.
        key_variable: environment variable that holds the key. An endpoint of your own may do without one.
        cache: folder of the replies, one JSON file a request, named by a hash of model and messages.
        max_retries: of one request.
        timeout: seconds to wait for a reply.
        threads: requests in flight.
        give_up: so many requests without an answer in a row end the run.

    Raises UserError if the key or the package openai is missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        cache: str = "outputs/judge",
        temperature: float | None = 0.0,
        max_tokens: int | None = 1024,
        max_retries: int = 5,
        timeout: float = 60.0,
        threads: int = 4,
        give_up: int = 10,
    ):
        if threads < 1:
            raise UserError(f"judge.threads={threads} asks nothing; use 1 or more")
        self.model, self.base_url = model, base_url or os.environ.get("OPENAI_BASE_URL")
        self.key_variable, self.cache = key_variable, Path(cache)
        self.settings = {k: v for k, v in (("temperature", temperature), ("max_tokens", max_tokens)) if v is not None}
        self.max_retries, self.timeout, self.threads, self.give_up = max_retries, timeout, threads, give_up
        self._failures: dict[str, str] = {}  # requests without an answer, which this run does not repeat
        self._in_a_row = 0
        self._lock = threading.Lock()
        try:
            import openai  # noqa: F401
        except ImportError:
            raise UserError(f"a judge is asked through the package openai; {install('judge')}") from None
        if not self._key and self.base_url is None:
            raise UserError(f"{key_variable} is not set; export the key of the judge's endpoint, or use judge=none")

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    @functools.cached_property
    def _client(self) -> Any:
        from openai import OpenAI

        return OpenAI(api_key=self._key or "none", base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout)

    def verdicts(
        self,
        requests: Sequence[Callable[[], Messages]],
        parse: Callable[[str], Any],
        tries: int = 2,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[Verdict]:
        """One verdict per request, in order.

        Args:
            requests: make the messages when their turn comes, as images are large. An OSError (a broken image) is a verdict without value.
            parse: the value in a reply, None if it is not in the form that was asked for.
            tries: how often a reply that does not parse is asked for anew.
            advance: moves a progress bar.
        """

        fatal: list[BaseException] = []  # an error in one thread stops the others

        def one(request: Callable[[], Messages]) -> Verdict:
            if fatal:
                raise fatal[0]
            try:
                verdict = self.verdict(request, parse, tries)
            except BaseException as error:
                fatal.append(error)
                raise
            advance(1)
            return verdict

        with ThreadPoolExecutor(self.threads) as pool:
            try:
                return list(pool.map(one, requests))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def verdict(self, request: Callable[[], Messages], parse: Callable[[str], Any], tries: int = 2) -> Verdict:
        """See ``verdicts``."""
        try:
            messages = request()
        except OSError as error:
            return Verdict(None, None, f"image: {' '.join(str(error).split())}")
        text = None
        for attempt in range(tries):
            try:
                text = self.reply(messages, attempt)
            except RequestError as error:
                return Verdict(None, None, str(error))
            except MalformedReply:
                continue
            value = parse(text)
            if value is not None:
                return Verdict(value, text)
        return Verdict(None, text, UNPARSED)

    def reply(self, messages: Messages, attempt: int = 0) -> str:
        """The judge's reply, from the cache or the endpoint. ``attempt``: part of the cache key, so that retries are new requests."""
        text = json.dumps([self.model, messages, self.settings, attempt], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        cached = read_reply(self.cache / f"{key}.json")
        if cached is not None:
            return cached
        if key in self._failures:
            raise RequestError(self._failures[key])
        try:
            response = self._ask(messages)
        except RequestError as error:
            self._count_failure(key, str(error))
            raise
        with self._lock:
            self._in_a_row = 0
        write_reply(self.cache / f"{key}.json", {k: self._clean(v) for k, v in response.items()})
        return self._clean(response["text"])

    def _ask(self, messages: Messages) -> dict[str, str]:
        import openai

        endpoint = self.base_url or "OpenAI"
        attempts = f"tried {self.max_retries + 1} times"
        try:
            reply = self._client.chat.completions.create(model=self.model, messages=messages, **self.settings)
            return {"model": str(reply.model), "text": encodable(str(reply.choices[0].message.content or ""))}
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise UserError(f"{endpoint} refuses the key in {self.key_variable}; set one that may use {self.model}") from None
        except openai.NotFoundError:
            raise UserError(f"judge.model={self.model} is not known at {endpoint}; use its full name (and /v1 in base_url)") from None
        except openai.APITimeoutError:
            raise RequestError(f"no reply within {self.timeout:g} s, {attempts}") from None
        except openai.APIConnectionError:
            raise UserError(
                f"the judge at {endpoint} cannot be reached, {attempts}; check judge.base_url. Replies so far are kept"
            ) from None
        except openai.APIStatusError as error:
            detail = " ".join(self._clean(str(error.message)).split())[:200]
            raise RequestError(f"status {error.status_code}: {detail}") from None
        except (openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError):  # a body that is no JSON, or other JSON
            raise MalformedReply from None

    def _clean(self, text: str) -> str:
        """``text`` with the API key masked, in case an endpoint echoes it."""
        return text.replace(self._key, f"[{self.key_variable}]") if self._key else text

    def _count_failure(self, key: str, why: str) -> None:
        with self._lock:
            self._failures[key] = why
            self._in_a_row += 1
            if self._in_a_row >= self.give_up:
                raise UserError(f"{self._in_a_row} requests in a row had no answer ({why}); replies so far are kept, run it again to go on")


def no_judge() -> None:
    """No judge (judge=none): what only a judge can score stays unscored."""
    return None


def read_reply(path: Path) -> str | None:
    """The text in a cache file; None if it is not there or damaged."""
    try:
        text = parse_json(read_text(path))["text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def write_reply(path: Path, reply: dict[str, str]) -> None:
    """Atomic write, safe if another thread or process writes the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(json.dumps(reply, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def message(*parts: str | Image.Image) -> Messages:
    """One user message of texts and images, images as data URLs."""
    plain = len(parts) == 1 and isinstance(parts[0], str)  # some endpoints take no lists
    return [{"role": "user", "content": parts[0] if plain else [_part(part) for part in parts]}]


def _part(part: str | Image.Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    buffer = io.BytesIO()
    part.save(buffer, "PNG")  # lossless: the judge sees what the model saw
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}}
