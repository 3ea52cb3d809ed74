"""The files of conf/table and conf/figure: what an experiment runs, and how it is laid out."""

from __future__ import annotations

from typing import Required, TypedDict

from blink_exp.documents.references import Param
from blink_exp.documents.settings import PlainSettings
from blink_exp.documents.tables import MeasuredColumn


class RivalCell(TypedDict):
    """Arguments of ``reference.rival``, but for the column."""

    backbone: str
    tokens: int | None
    method: str


class ExperimentPoint(TypedDict, total=False):
    """A point of an experiment; see ``studies.plan``."""

    label: str
    overrides: list[str]
    published: dict[str, Param]  # arguments of ``reference.entry``: ``table``, ``row`` and params
    baseline: str
    control: bool
    needs: str
    match: str
    trains: list[str]
    once: bool
    not_at: list[str]
    rival: str
    rival_cell: RivalCell  # of the ``rival`` at the budget that it was expanded for
    budget: str  # the name of the budget that it was expanded for
    series: str
    x: float | str


class ExperimentBudget(TypedDict):
    overrides: list[str]
    tokens: int


class ExperimentSweep(TypedDict):
    series: str
    x: list[float | str]
    overrides: list[str]


class Recipe(TypedDict):
    """Rows of a table without measurements. ``values``: {row: where its value stands in the settings of ``config``, None: nowhere}."""

    config: str
    overrides: list[str]
    values: dict[str, str | None]


class EffectPair(TypedDict):
    """``point`` and ``control``: labels of the points whose difference is the effect ``label``."""

    label: str
    point: str
    control: str


class RegionEffects(TypedDict):
    reference: str
    pairs: list[EffectPair]
    tokens: list[str]


class Experiment(TypedDict, total=False):
    """A file of conf/table or conf/figure: what is run (``studies.plan``), and how it is laid out (``studies.tables``) or drawn."""

    name: Required[str]
    title: Required[str]
    paper: str
    source: str | None
    note: str | None
    overrides: list[str]
    benchmarks: dict[str, str | list[str]]  # a preset's name or several, for ``scale`` and ``published``
    at: dict[str, list[str]]
    points: list[ExperimentPoint]
    budgets: dict[str, ExperimentBudget]
    rivals_on: str
    sweeps: list[ExperimentSweep]
    trains: list[str]
    # of a table
    published: dict[str, str]
    published_on: str
    published_digits: int | None
    measured: dict[str, dict[str, str | MeasuredColumn]]
    recipe: Recipe
    split_by: str
    untouched: str
    best_control: str
    digits: int | None
    error_digits: int
    error_over: str
    figures: list[str]
    effects: RegionEffects
    # of a figure
    draw: PlainSettings
