"""Interface for evaluation harnesses: builds a configuration from ``key=value`` arguments and answers requests.

Follows lmms-eval's conventions without importing it; the class that lmms-eval loads is in ``lmms_eval.py``.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from blink_exp.backbone.prompts import without_placeholder
from blink_exp.cli import one_line
from blink_exp.decoder.attach import attach
from blink_exp.decoder.second_views import Asking
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import answers, check_annotation
from blink_exp.evaluation.evaluator import prepare_model
from blink_exp.images import DEFAULT, ImageOptions, to_rgb
from blink_exp.settings.budgets import check_budget
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import EvaluateSettings

if TYPE_CHECKING:  # a harness imports this module for every command, so slow imports wait for the first model
    from blink_exp.backbone.model import Backbone
    from blink_exp.core.method import Method

DOC = "docs/lmms_eval.md"
NEW_TOKENS = 1024  # default without a task limit, as in lmms-eval's wrappers of LLaVA
FILLED_IN = ("\n\n",)  # the default `until` of lmms-eval
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
    """One request. ``id`` is independent of batch and order; ``visuals``: opens the request's images (None: no image);
    ``until``: strings that end the answer."""

    id: str
    text: str
    visuals: Callable[[], list[Any] | None]
    max_new_tokens: int = NEW_TOKENS
    until: tuple[str, ...] = ()


class Response(NamedTuple):
    """``visual_tokens``: number that entered the LLM, newlines included."""

    text: str
    visual_tokens: int


def overrides(settings: Mapping[str, object]) -> list[str]:
    """Hydra overrides of conf/evaluate.yaml, from arguments that a harness may have parsed into Python values."""
    for key in settings:
        if key.split(".")[0] in ELSEWHERE:
            raise UserError(f"{key}={settings[key]} is not a model argument; {ELSEWHERE[key.split('.')[0]]}")
    words = {None: "null", True: "true", False: "false"}
    return [f"{k}={words[v] if v is None or isinstance(v, bool) else v}" for k, v in settings.items()]


def configure(settings: Mapping[str, object], batch_size: int | str = 1, device: str | None = None) -> EvaluateSettings:
    """conf/evaluate.yaml with ``settings``, as ``python evaluate.py key=value ...`` has it.

    Args:
        batch_size: questions at once; a harness's "auto" is refused.
        device: what the harness was told, instead of ``model.device``; None: nothing.
    """
    if not str(batch_size).isdecimal():
        raise UserError(f"batch_size={batch_size} is not a whole number; give one, such as 8")
    words = [*overrides(settings), f"batch_size={batch_size}"]
    check_budget(words)
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
        backbone, method = prepare_model(settings)
    except HydraException as error:
        raise UserError(one_line(error)) from error
    check_annotation(method, "a harness", ())
    return backbone, method


def process_device(device: str, environment: Mapping[str, str]) -> str:
    """The GPU of this process where several share the work (``accelerate launch``, ``torchrun``), each with a copy of the model."""
    several = int(environment.get("WORLD_SIZE", 1)) > 1
    return f"cuda:{environment.get('LOCAL_RANK', 0)}" if several and device == "cuda" else device


def stop_at(until: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """The strings that end an answer. lmms-eval's default is ignored: its LLaVA wrappers do not read ``until``, and answers would be cut
    to their first paragraph."""
    strings = (until,) if isinstance(until, str) else tuple(until or ())
    return () if strings == FILLED_IN else tuple(word for word in strings if word)


def cut(text: str, until: tuple[str, ...]) -> str:
    """``text`` up to the first occurrence of any of ``until``."""
    return text[: min((at for word in until if (at := text.find(word)) >= 0), default=len(text))].strip()


def new_tokens(limits: Mapping[str, object], where: str) -> int:
    """Maximum number of new tokens, from a task's generation settings."""
    limit = limits.get("max_new_tokens", NEW_TOKENS)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UserError(f"max_new_tokens={limit} of {where} leaves no answer; use a whole number from 1")
    return limit


def ignored(settings: Mapping[str, object]) -> list[str]:
    """The ignored generation settings: those that ask for other than greedy decoding."""
    return [f"{key}={settings[key]}" for key, greedy in GREEDY.items() if key in settings and settings[key] not in greedy]


def image_of(question: Request, options: ImageOptions = DEFAULT) -> Image.Image:
    """The image of a request in RGB. Raises UserError unless there is exactly one readable image."""
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
    except Exception as error:  # lazily opened files are decoded here; decoders raise all kinds of errors
        raise UserError(f"the image of {question.id} cannot be read ({' '.join(str(error).split())}); repair the data set") from error


def _flat(visuals: Any) -> list[Any]:
    if isinstance(visuals, (list, tuple)):
        return [v for inner in visuals for v in _flat(inner)]
    return [] if visuals is None else [visuals]


def text_of(question: Request, placeholder: str) -> str:
    """The text of a request without the image ``placeholder``. Raises UserError for several placeholders."""
    try:
        return without_placeholder(question.text, placeholder, question.id)
    except UserError as error:
        raise UserError(f"{error}; tasks that work: {DOC}") from None


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """Batches of request indices: at most ``size`` requests with the same length limit, in order."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        groups[length].append(i)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def picture_id(image: Image.Image) -> str:
    """Hash of the pixels: data sets repeat an image for each of its questions."""
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
                prompts.append(Asking(picture_id(image), text_of(question, placeholder), question.id))
                images[prompts[-1].image] = image
            if attached is not None:
                attached.samples = [question.id for question in batch]
            texts, visual = answers(backbone, method, attached, images, prompts, min(batch[0].max_new_tokens, most))
            for i, question, text, tokens in zip(chunk, batch, texts, visual, strict=True):
                responses[i] = Response(cut(text, question.until), len(tokens.source))
            advance(len(chunk))
    return [responses[i] for i in range(len(questions))]
