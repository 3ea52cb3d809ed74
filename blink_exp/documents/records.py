"""The records of an evaluation, a line of records.jsonl each."""

from __future__ import annotations

from typing import Any, Required, TypedDict


class LayerStep(TypedDict):
    """What a policy decided on one image at one layer. ``rho``: saliency ratio, ``region``: patch, None
    where nothing was scanned; ``effective``: False for a drop of
    nothing; ``visual_tokens``: in the sequence afterwards."""

    layer: int
    image: int
    rho: Any
    region: Any
    decision: str
    effective: bool
    visual_tokens: float


class ShownPart(TypedDict):
    """The part of an image that was shown as a second view. ``box``: as fractions of the image; ``region``: its number among p x p, None
    for one of any place and size."""

    box: list[float]
    region: int | None


class JudgeVerdict(TypedDict, total=False):
    """A judge's verdict on an answer (``judge.Verdict``). ``value``: parsed, None where ``why`` has the reason; ``text``: the raw reply."""

    model: str
    value: Any
    text: str | None
    why: str


Fields = dict[str, Any]  # what a benchmark keeps of a question beside its text; the classes of ``benchmarks`` say what


class Record(TypedDict, total=False):
    """One sample of an evaluation, a line of records.jsonl. Below ``layers`` what single benchmarks add."""

    id: Required[str]
    image_id: str
    category: Any
    question: str
    answer: Any
    prediction: Any  # text; None where nothing is asked
    correct: Any  # True, False, or a mark from 0 to 1; None where nobody can tell
    fields: Fields
    regions: Any  # boxes, as fractions of the image
    visual_tokens: float  # that entered the LLM, without newlines
    newline_tokens: float
    layer_tokens: float  # visual tokens a layer, averaged over the LLM's layers
    prefill_flops: int  # of the prompt, by formula (``evaluation.tokens.prompt_flops``)
    second_view: ShownPart
    layers: list[LayerStep]
    l2: str  # MMStar's sub-axis
    judge: JudgeVerdict
    letter: str | None
    chosen_by: str
    ours: str  # a comparison of two captions
    against: str
    A: str
    iou: Any  # {layer: share}; None where nothing is annotated
    patch_iou: Any
    object: float


class Skipped(TypedDict):
    """A sample that could not be read, and the reason."""

    id: str
    why: str
