"""What an evaluation harness needs of this project: a configuration from its ``key=value`` words, and answers to its questions.

Knows of lmms-eval's conventions but does not import it; the class that it loads is in ``lmms_eval.py`` beside this file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from blink_exp.backbone.processor import without_placeholder
from blink_exp.cli import CONF, one_line
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import answers
from blink_exp.evaluation.evaluator import prepare_model
from blink_exp.images import DEFAULT, ImageOptions, to_rgb
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import EvaluateSettings

if TYPE_CHECKING:  # a harness loads this for every one of its commands, so what takes seconds to import waits for the first model
    from blink_exp.backbone.model import Backbone
    from blink_exp.core.method import Method

DOC = "docs/lmms_eval.md"
NEW_TOKENS = 1024  # where a task names no limit, as in lmms-eval's wrappers of LLaVA
FILLED_IN = ("\n\n",)  # the `until` that lmms-eval writes into tasks without one
GREEDY: dict[str, tuple[Any, ...]] = {"do_sample": (False, None), "temperature": (0, None), "num_beams": (1, None)}
ELSEWHERE = {
    "benchmark": "choose tasks with --tasks",
    "limit": "use --limit",
    "batch_size": "use --batch_size",
    "shard": "start one process a GPU",
    "predictions": "use --use_cache",
    "logger": "use --wandb_args",
    "pretrained": "name the model with model=llava_1_5_7b or model=folder,model.path=...",
}


@dataclass(frozen=True)
class Request:
    """One request. ``id`` depends neither on batch nor order; ``visuals``: opens what the task shows with it (None: nothing);
    ``until``: the answer ends where one of these strings begins."""

    id: str
    text: str
    visuals: Callable[[], list[Any] | None]
    max_new_tokens: int = NEW_TOKENS
    until: tuple[str, ...] = ()


class Response(NamedTuple):
    """``visual_tokens``: how many entered the LLM, newlines included."""

    text: str
    visual_tokens: int


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Hydra overrides of conf/evaluate.yaml, from words whose values a harness may have turned into Python already."""
    for key in settings:
        if key.split(".")[0] in ELSEWHERE:
            raise UserError(f"{key}={settings[key]} is not a model argument; {ELSEWHERE[key.split('.')[0]]}")
    words = {None: "null", True: "true", False: "false"}
    return [f"{k}={words[v] if v is None or isinstance(v, bool) else v}" for k, v in settings.items()]


def configure(settings: Mapping[str, Any], batch_size: int | str = 1, device: str | None = None) -> EvaluateSettings:
    """conf/evaluate.yaml with ``settings``, as ``python evaluate.py key=value ...`` has it.

    Args:
        batch_size: questions at once; a harness's "auto" is refused.
        device: what the harness was told, instead of ``model.device``; None: nothing.
    """
    if not str(batch_size).isdecimal():
        raise UserError(f"batch_size={batch_size} is not a whole number; give one, such as 8")
    if not CONF.is_dir():
        raise UserError("blink_exp was installed without its conf folder; install it from a checkout: pip install -e .")
    words = [*overrides(settings), f"batch_size={batch_size}"]
    if device is not None:
        if str(settings.get("model.device", device)) != device:
            raise UserError(f"model.device={settings['model.device']} and --device {device} contradict each other; give one of them")
        words.append(f"model.device={device}")
    made: EvaluateSettings = composed("evaluate", words)
    return made


def build(settings: EvaluateSettings) -> tuple[Backbone, Method]:
    """The model and the method of a configuration."""
    from hydra.errors import HydraException

    try:
        return prepare_model(settings)
    except HydraException as error:
        raise UserError(one_line(error)) from error


def process_device(device: str, environment: Mapping[str, str]) -> str:
    """The GPU of this process where several share the work (``accelerate launch``, ``torchrun``), each with a copy of the model."""
    several = int(environment.get("WORLD_SIZE", 1)) > 1
    return f"cuda:{environment.get('LOCAL_RANK', 0)}" if several and device == "cuda" else device


def stop_at(until: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """The strings that end an answer. What lmms-eval fills in by itself is none of them: its wrappers of LLaVA read no ``until``, and an
    answer of several paragraphs would lose all but the first."""
    strings = (until,) if isinstance(until, str) else tuple(until or ())
    return () if strings == FILLED_IN else tuple(word for word in strings if word)


def cut(text: str, until: tuple[str, ...]) -> str:
    """``text`` up to where the first of ``until`` begins."""
    return text[: min((at for word in until if (at := text.find(word)) >= 0), default=len(text))].strip()


def new_tokens(limits: Mapping[str, Any], where: str) -> int:
    """How long an answer may be, from a task's generation settings."""
    limit = limits.get("max_new_tokens", NEW_TOKENS)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UserError(f"max_new_tokens={limit} of {where} leaves no answer; use a whole number from 1")
    return limit


def ignored(settings: Mapping[str, Any]) -> list[str]:
    """The generation settings that would make answers other than greedy, which is all that is done here."""
    return [f"{key}={settings[key]}" for key, greedy in GREEDY.items() if key in settings and settings[key] not in greedy]


def image_of(question: Request, options: ImageOptions = DEFAULT) -> Image.Image:
    """The one image of a question, in RGB. Raises UserError for no image, several, or none that opens."""
    try:
        visuals = _flat(question.visuals())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the image of {question.id} cannot be read ({' '.join(str(error).split())}); repair the data set") from error
    other = next((type(v).__name__ for v in visuals if not isinstance(v, Image.Image)), None)
    if other is not None:
        raise UserError(f"{question.id} shows a {other}, and this model sees images only; tasks that work: {DOC}")
    if len(visuals) != 1:
        raise UserError(f"{question.id} shows {len(visuals)} images, and this model answers about exactly one; tasks that work: {DOC}")
    try:
        return to_rgb(visuals[0], options, copy=False)
    except Exception as error:  # what a file that is opened late has to say: a decoder raises whatever it met
        raise UserError(f"the image of {question.id} cannot be read ({' '.join(str(error).split())}); repair the data set") from error


def _flat(visuals: Any) -> list[Any]:
    if isinstance(visuals, (list, tuple)):
        return [v for inner in visuals for v in _flat(inner)]
    return [] if visuals is None else [visuals]


def text_of(question: Request, placeholder: str) -> str:
    """The question without the image's ``placeholder``. Raises UserError for several of them."""
    try:
        return without_placeholder(question.text, placeholder, question.id)
    except UserError as error:
        raise UserError(f"{error}; tasks that work: {DOC}") from None


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Indices of questions that run together: at most ``size``, all with one limit, each limit's in their order."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        groups[length].append(i)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def picture_id(image: Image.Image) -> str:
    """Equal for equal pixels: a data set repeats an image for each question on it."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:32]


@torch.no_grad()
def answer(
    backbone: Backbone,
    method: Method,
    questions: list[Request],
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda n: None,
    options: ImageOptions = DEFAULT,
) -> list[Response]:
    """Greedy answers of ``method`` on ``backbone``, in the order of ``questions``, as ``evaluate.py`` would give them.

    No answer is longer than the LLM has positions. Raises UserError at the first question that is not about exactly one image.
    """
    placeholder = backbone.processor.image_token
    most = backbone.model.config.text_config.max_position_embeddings
    responses: dict[int, Response] = {}
    with attach(backbone.model, method) as attached:
        for chunk in batches([min(q.max_new_tokens, most) for q in questions], batch_size):
            batch = [questions[i] for i in chunk]
            images, prompts = {}, []
            for question in batch:
                image = image_of(question, options)
                prompts.append((picture_id(image), text_of(question, placeholder)))
                images[prompts[-1][0]] = image
            if attached is not None:
                attached.samples = [question.id for question in batch]
            texts, visual = answers(backbone, method, attached, images, prompts, min(batch[0].max_new_tokens, most))
            for i, question, text, tokens in zip(chunk, batch, texts, visual, strict=True):
                responses[i] = Response(cut(text, question.until), len(tokens.source))
            advance(len(chunk))
    return [responses[i] for i in range(len(questions))]
