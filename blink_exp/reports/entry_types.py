"""What the templates of a page read of a table or figure (``reports.entries``), all of it ready to be shown; "" for what is not there."""

from __future__ import annotations

from typing import Literal, TypedDict

from markupsafe import Markup

from blink_exp.documents.tables import Footnote

Link = tuple[str, str]  # name or title, and address


class RunLine(TypedDict):
    """``benchmark``: "" of a figure's point."""

    point: str
    benchmark: str
    failed: bool
    error: str
    samples: int | None
    skipped: int | None
    seconds: str
    backbone: str
    commit: str
    command: str


class ProvenanceLine(TypedDict):
    commit: str
    date: str
    seconds: str
    seed: int | None
    versions: dict[str, str]


class Head(TypedDict):
    """What tables and figures share. ``short``: the title without its paper; ``side``: "scale", "backbone" or "none", the kind of model
    that ``label`` names; ``variant``: what the user set beside the model; ``figures``: those below a table; ``links``: (id, title) of
    others."""

    id: str
    name: str
    title: str
    short: str
    paper: str
    source: str
    cited: str
    side: str
    label: str
    variant: str
    error: str | None
    note: str | None
    command: str | None
    footnotes: list[Footnote]
    provenance: ProvenanceLine
    files: list[Link]
    runs: list[RunLine]
    figures: list[Entry]
    links: list[Link]


class CellParts(TypedDict):
    """A cell taken apart, so that the page can set the number larger than what goes with it. ``kind``: its CSS classes; ``title``: for the
    pointer."""

    number: str
    error: str
    star: str
    delta: str
    dagger: str
    best: bool
    kind: str
    title: str


class TableLine(TypedDict):
    label: str
    cells: list[CellParts]


class DifferenceLine(TypedDict):
    """``at``: places of the difference and of the ends of its interval, 0 to 100, no difference at 50."""

    heading: str
    benchmark: str
    point: str
    baseline: str
    delta: str
    interval: list[str]
    p: str
    significant: bool
    test: str
    n: int | None
    at: dict[str, float]


class TableParts(TypedDict):
    """``columns``: (heading, CSS class, whether a group begins); ``groups``: (label, CSS class, number of columns)."""

    kind: Literal["table"]
    columns: list[tuple[str, str, bool]]
    groups: list[tuple[str, str, int]]
    rows: list[TableLine]
    effect_headings: tuple[str, ...]
    effects: list[tuple[str, list[str]]]
    effect_meaning: str
    conclusion: list[str]
    benchmarks: list[str]
    legend: list[str]
    differences: list[DifferenceLine]


class PictureParts(TypedDict):
    """``width``: in points."""

    markup: Markup
    width: float
    files: list[Link]


class ClaimLine(TypedDict):
    """``numbers``: (name, value); ``verdict``: CSS class and words."""

    said: str
    how: str
    numbers: list[tuple[str, str]]
    verdict: tuple[str, str]


class FigureParts(TypedDict):
    """``lost``: names of the pictures that are not there; ``plots``, ``claim``: of the paper."""

    kind: Literal["figure"]
    pictures: list[PictureParts]
    lost: list[str]
    caption: str
    measured_on: str
    plots: str
    claim: str
    claims: list[ClaimLine]


class TableEntry(Head, TableParts): ...


class FigureEntry(Head, FigureParts): ...


Entry = TableEntry | FigureEntry
