"""Tables and figures as they are measured: table.json, figure.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

from blink_exp.documents.runs import PairedTest, PointRun, Provenance


class TableRow(TypedDict, total=False):
    """A row of a table: what is published of a point, and its run on each benchmark."""

    point: str
    baseline: Any  # the point that it is compared with; None: with none
    control: bool  # whether it is a control of ours, which the paper does not have
    runs: dict[str, PointRun]
    deltas: dict[str, dict[str, PairedTest]]  # by benchmark and heading
    published: dict[str, float | str | None]  # by heading
    derived: list[str]
    missing: dict[str, str]
    conjecture: dict[str, float | str]  # guesses by heading, never reference data, and ``basis``
    published_deltas: dict[str, float]
    budget: str  # of the budgets that the table's points run at
    ranges: dict[str, list[float]]  # lowest and highest of several published numbers, by heading
    sources: dict[str, str]  # of published numbers that come from several papers
    settings: Mapping[str, object]  # of a recipe, by their dotted names


class PublishedColumn(TypedDict):
    """``column``: of the reference data; ``digits``: decimals, None as the paper prints them."""

    column: str
    digits: int | None


class MeasuredColumn(TypedDict, total=False):
    """A column of measured numbers. ``value``: where the number stands in a run, "scores.accuracy"; ``per``: what it is divided by."""

    value: Required[str]
    per: float
    digits: int | None
    error_digits: int
    published: str | None  # heading of the published column that it belongs beside
    better: str  # "low" or "high"


class ColumnGroup(TypedDict):
    """The measured columns of one benchmark."""

    benchmark: str
    label: str
    columns: dict[str, MeasuredColumn]  # by heading


class EffectRow(TypedDict):
    """What a table's point gains by where it looks: its accuracy less that of its control, in points, on the same questions of a benchmark.

    ``low``, ``high``: 95 % interval; ``p``: None where too few images differ; ``detectable``: the smallest effect that would be found with
    80 % power; ``share``: of the reference's effect, None where that cannot be told from 0."""

    label: str
    benchmark: str
    point: str
    control: str
    effect: float
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int
    detectable: float | None
    share: float | None
    share_low: float | None
    share_high: float | None


class Footnote(TypedDict):
    """What is known about a published table or figure beside its numbers; ``kind`` as ``reference.footnotes`` has it."""

    kind: str
    text: str


class ClaimEntry(TypedDict):
    """What a paper says about its figure, and whether it holds here (``figures.base.Claim``)."""

    said: str
    how: str
    numbers: dict[str, float | None]
    holds: bool | None


class MeasuredDocument(TypedDict, total=False):
    """What tables and figures share."""

    name: Required[str]
    title: Required[str]
    paper: str | None
    source: str | None
    note: str | None
    scale: bool
    footnotes: list[Footnote]
    model: str
    provenance: Provenance
    figures: list[str]


class TableDocument(MeasuredDocument, total=False):
    """table.json."""

    kind: Required[Literal["table"]]
    published_on: str | None
    error_over: str | None
    split_by: str | None
    command: Required[str]
    published_columns: Required[dict[str, PublishedColumn]]  # by heading
    groups: Required[list[ColumnGroup]]
    rows: Required[list[TableRow]]
    effects: list[EffectRow]
    conclusion: list[str]  # what the numbers allow to say, a sentence each


class FigureDocument(MeasuredDocument, total=False):
    """figure.json; ``error`` where it could not be drawn. ``figures`` is empty: a figure stands alone."""

    kind: Required[Literal["figure"]]
    command: str
    plots: str | None
    claim: str | None
    caption: str
    measured_on: str
    claims: list[ClaimEntry]
    pictures: dict[str, list[str]]
    rows: list[PointRun]
    error: str


Document = TableDocument | FigureDocument
