"""Published numbers: the files of ``blink_exp.reference``."""

from __future__ import annotations

from typing import Any, Required, TypedDict

from blink_exp.documents.tables import Footnote

Word = bool | float | str | None
Param = Word | list[int]  # a setting as a paper states it


class PublishedRow(TypedDict, total=False):
    """``params``: the settings that the paper states; ``per_benchmark``: those that differ there; ``values``: by column, None where a cell
    is lost or was not reported; ``derived``: columns that follow from printed numbers without being printed; ``missing``: {column without
    a number: why}; ``conjecture``: {column: a guess, basis: its reason}, which is never reference data; ``suspect``: {column: the number
    that another table prints}."""

    label: Required[str]
    params: Required[dict[str, Param]]
    per_benchmark: dict[str, dict[str, Param]]
    values: Required[dict[str, float | str | None]]
    derived: list[str]
    missing: dict[str, str]
    conjecture: dict[str, float | str]
    suspect: dict[str, float]


class PublishedExperiment(TypedDict):
    """What a table or figure ``varies``, and over which ``points``; a figure that plots nothing has none."""

    varies: str
    points: Any


class PublishedTable(TypedDict, total=False):
    """``null_means``: why a value is null where the row does not say; ``published_deltas``: printed differences, by method and column."""

    id: Required[str]
    caption: Required[str]
    columns: Required[list[str]]
    rows: Required[list[PublishedRow]]
    experiment: Required[PublishedExperiment]
    claims: list[str]
    notes: list[Footnote]
    null_means: str
    published_deltas: dict[str, dict[str, float]]


class PublishedFigure(TypedDict, total=False):
    id: Required[str]
    plots: Required[str]
    series: Required[list[str]]
    claim: Required[str]
    experiment: Required[PublishedExperiment]
    notes: list[Footnote]


class PublishedPaper(TypedDict):
    """Every table and figure of a paper; ``param_schema``: {param: what it means, or its values}."""

    param_schema: dict[str, str]
    tables: list[PublishedTable]
    figures: list[PublishedFigure]


class VanillaNumbers(TypedDict):
    """What others print for untouched models. ``sources``: {key: title}; ``models``: {preset: {id of a point of parity: its numbers}},
    which are by source, and ``band`` (how far a measured one may be off) and ``center`` (of the band, where it is not the first source's).
    """

    sources: dict[str, str]
    models: dict[str, dict[str, dict[str, float]]]


class RivalSource(TypedDict):
    """``origin``: "copied" or "re-run" by those who print it, None where that is not known."""

    title: str
    origin: str | None
    table: str | None


class RivalNumbers(TypedDict):
    """What others print for methods at budgets in tokens. ``anchor``: the source whose number goes first; ``untouched``: {model: {column:
    number}}; ``cells``: {model: {tokens: {method: {source: {column: number}}}}}."""

    anchor: str
    sources: dict[str, RivalSource]
    untouched_source: str
    untouched: dict[str, dict[str, float]]
    cells: dict[str, dict[int, dict[str, dict[str, dict[str, float]]]]]


# how a param is said in overrides: ``words`` by its value, ``scale`` the same on the scale model, ``as`` with {} for the value
ParamRule = TypedDict("ParamRule", {"words": dict[Word, list[str]], "scale": dict[Word, list[str]], "as": list[str]}, total=False)


class Vocabulary(TypedDict):
    """``benchmarks``: {name in a paper: preset}."""

    params: dict[str, ParamRule]
    benchmarks: dict[str, str]
