"""The page of one question: view.json."""

from __future__ import annotations

from typing import Any, TypedDict

from blink_exp.documents.records import ShownPart
from blink_exp.documents.settings import PlainSettings


class AnswerLine(TypedDict):
    """A method's answer on the page of a question. ``shown``: whether the page is about this method; ``entering``: visual tokens that enter
    the LLM; ``tokens``: a layer. None where the method cannot run on the model, for the reason ``why``."""

    label: str
    shown: bool
    said: str | None
    verdict: str | None
    entering: int | None
    tokens: float | None
    why: str | None


class ExpandedSegment(TypedDict):
    layer: int
    region: int
    tokens: int


class LayerLine(TypedDict):
    """A layer on the page of a question. ``rho``, ``patch``: of its attention to the base view, None where all of that is dropped;
    ``scanned``, ``region``, ``decision``: of the record, None where nothing was scanned; ``system`` to ``text``: tokens of its sequence;
    ``shares``: the attention that each of these gets; ``places``: the expanded segments."""

    layer: int
    rho: float | None
    patch: int | None
    scanned: Any
    region: Any
    decision: str | None
    system: int
    visual: int
    expanded: int
    text: int
    shares: dict[str, float]
    places: list[ExpandedSegment]


class ViewTokens(TypedDict):
    """Visual tokens by kind of view: that enter the LLM, that its ``last`` layer has, and ``of`` how many. ``inside``: whether the method
    drops inside the LLM."""

    entering: dict[str, int]
    last: dict[str, int]
    of: dict[str, int]
    newlines: int
    inside: bool


class ViewDocument(TypedDict):
    """view.json: the page of a question without its pictures."""

    id: str
    benchmark: str
    category: Any
    question: str
    known: Any
    method: str
    said: Any
    verdict: str | None
    backbone: str
    settings: PlainSettings
    size: tuple[int, int]
    grid: dict[str, int]
    second_view: ShownPart | None
    views: dict[str, int]
    thresholds: dict[str, float]
    layers: list[LayerLine]
    kept: ViewTokens | None
    answers: list[AnswerLine]
    command: str | None
