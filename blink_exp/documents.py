"""Plain data that modules hand on and that files hold, as JSON has it: records, runs, rows, tables, figures."""

from __future__ import annotations

from typing import Any, Literal, Required, TypedDict


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


class Record(TypedDict, total=False):
    """One sample of an evaluation, a line of records.jsonl. Below ``layers`` what single benchmarks add."""

    id: Required[str]
    image_id: str
    category: Any
    question: str
    answer: Any
    prediction: Any  # text; None where nothing is asked
    correct: Any  # True, False, or a mark from 0 to 1; None where nobody can tell
    fields: dict[str, Any]
    regions: Any  # boxes, as fractions of the image
    visual_tokens: float  # that entered the LLM, without newlines
    newline_tokens: float
    layer_tokens: float  # visual tokens a layer, averaged over the LLM's layers
    prefill_flops: int  # of the prompt, by formula (``evaluation.tokens.prompt_flops``)
    second_view: dict[str, Any]  # the part of the image that was shown as a second one: its box as fractions of the image, its region
    layers: list[LayerStep]
    l2: str  # MMStar's sub-axis
    judge: dict[str, Any]
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


class ScoreValue(TypedDict):
    value: Any  # a number; None for the mean of nothing
    stderr: float | None
    samples: int


class Metrics(TypedDict, total=False):
    """What metrics.json holds of a finished evaluation."""

    backbone: Required[str]
    method: Required[str]
    layers: list[int]
    benchmark: Required[str]
    protocol: Required[str]
    split: str | None
    headline: Required[Any]
    scores: Required[dict[str, ScoreValue]]
    against: str | None  # the run that it is compared with
    differences: dict[str, dict[str, Any]]  # of two runs, by score (``reports.statistics.compare``)
    samples: Required[int]
    without_answer: int
    files: list[str]
    blink: Required[dict[str, Any]]
    budget: dict[str, Any] | None  # of a method that drops visual tokens (``evaluation.budget``)
    positions: str | None  # the preset of the group, null for the default
    cost: dict[str, Any] | None
    skipped: Required[list[Skipped]]
    kept: int
    together: dict[str, Any] | None
    seconds: Required[float]
    commit: Required[str | None]
    dtype: str
    pad: bool
    system_prompt: str | None


class PointRun(TypedDict, total=False):
    """A point of a table, figure or multirun: ``status`` "done" with what was measured, or "failed" with ``error``."""

    point: str
    status: str
    error: str
    method: str
    scores: dict[str, float | None]
    stderr: dict[str, float | None]
    tokens: dict[str, Any]
    budget: dict[str, Any] | None  # of a method that drops visual tokens (``evaluation.budget``)
    cost: dict[str, Any] | None
    headline: Any
    benchmark: str
    protocol: str
    samples: int
    files: list[str]
    skipped_samples: int
    first_skipped: str | None
    seconds: float
    together: dict[str, Any] | None
    backbone: str
    scale: bool
    commit: str | None
    blink: dict[str, Any]
    folder: str
    reused: bool
    share: dict[str, float]  # scores in per cent of the untouched model's
    over_control: dict[str, float]  # scores less those of the best control at the same budget
    training: dict[str, float]  # measures of the modules that a point of a table trained
    command: str  # that runs it alone
    overrides: list[str]  # of a multirun's job
    series: str  # of a figure
    x: Any


class TableRow(TypedDict, total=False):
    """A row of a table: what is published of a point, and its run on each benchmark."""

    point: str
    baseline: Any  # the point that it is compared with; None: with none
    control: bool  # whether it is a control of ours, which the paper does not have
    runs: dict[str, PointRun]
    deltas: dict[str, dict[str, Any]]  # by benchmark and heading
    published: dict[str, Any]  # by heading
    derived: list[str]
    missing: dict[str, str]
    conjecture: dict[str, Any]
    published_deltas: dict[str, float]
    budget: str  # of the budgets that the table's points run at
    ranges: dict[str, list[float]]  # lowest and highest of several published numbers, by heading
    sources: dict[str, str]  # of published numbers that come from several papers
    settings: dict[str, Any]  # of a recipe


class ColumnGroup(TypedDict):
    """The measured columns of one benchmark."""

    benchmark: str
    label: str
    columns: dict[str, dict[str, Any]]  # by heading: value, per, digits, error_digits, published


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


class TableDocument(TypedDict, total=False):
    """table.json."""

    kind: Required[Literal["table"]]
    name: Required[str]
    title: Required[str]
    paper: str | None
    source: str | None
    published_on: str | None
    note: str | None
    error_over: str | None
    split_by: str | None
    scale: bool
    command: Required[str]
    footnotes: list[dict[str, Any]]
    published_columns: Required[dict[str, dict[str, Any]]]
    groups: Required[list[ColumnGroup]]
    rows: Required[list[TableRow]]
    effects: list[EffectRow]
    conclusion: list[str]  # what the numbers allow to say, a sentence each
    model: str
    provenance: dict[str, Any]
    figures: list[str]


class FigureDocument(TypedDict, total=False):
    """figure.json; ``error`` where it could not be drawn."""

    kind: Required[Literal["figure"]]
    name: Required[str]
    title: Required[str]
    paper: str | None
    source: str | None
    note: str | None
    scale: bool
    command: str
    plots: str | None
    claim: str | None
    footnotes: list[dict[str, Any]]
    caption: str
    measured_on: str
    claims: list[dict[str, Any]]
    pictures: dict[str, list[str]]
    rows: list[PointRun]
    model: str
    provenance: dict[str, Any]
    error: str
    figures: list[str]  # none: a figure stands alone


Document = TableDocument | FigureDocument
