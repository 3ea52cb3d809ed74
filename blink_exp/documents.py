"""Plain data that modules hand on and that files hold, as JSON and YAML have it: records, runs, tables, figures, experiments, searches."""

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


class ScoreValue(TypedDict):
    value: Any  # a number; None for the mean of nothing
    stderr: float | None
    samples: int


Measure = Literal["delta", "low", "high", "detectable"]  # of a paired test, in points


class PairedTest(TypedDict, total=False):
    """The difference of two runs by one score, on the questions that both answered (``reports.statistics.compare``). ``p`` and the rest are
    None where too few images differ to tell."""

    delta: Any  # in points; None in a table where the column is itself the difference
    p: float | None  # two-sided
    test: str  # "McNemar", "bootstrap" or ``reports.statistics.BOTH``
    n: int  # samples compared
    low: float | None  # 95 % interval, in points
    high: float | None
    detectable: float | None  # the smallest difference that would be found with a power of 80 %
    against: str  # label of the control that it is compared with, where that is not the row's baseline


class LayerSummary(TypedDict):
    """What a policy did at a layer. ``rho``: mean saliency ratio; ``expand``, ``drop``: shares of the samples; ``visual_tokens``: mean."""

    rho: float | None
    expand: float
    drop: float
    visual_tokens: float


class BlinkSummary(TypedDict):
    visual_tokens_of_the_image: int
    layers: dict[Any, LayerSummary]  # by layer: an int, in a file its digits


class TokenBudget(TypedDict):
    """What a method that drops visual tokens was asked for, and the schedule by which it keeps to it (``evaluation.budget``)."""

    tokens: int | None
    retention_ratio: float | None
    nominal: int  # visual tokens of an image of nominal size, for which ``by_layer`` and ``average`` hold
    by_layer: list[int] | None
    average: float | None


class TokenCounts(TypedDict, total=False):
    """Visual tokens that were worked on, means over the samples (``evaluation.tokens.realised``)."""

    gflops: float  # of a prompt's prefill, by formula
    entering: float  # the LLM, without newlines
    newlines: float
    layer: Any  # a layer; None where the LLM's depth is not known


class Cost(TypedDict, total=False):
    """Means over ``prompts`` prompts that ran alone (``evaluation.cost``)."""

    visual_tokens_nominal: float
    visual_tokens: float
    newline_tokens: float
    prompt_tokens: float
    tokens_by_layer: list[float]  # of the whole prompt
    prefill_flops_formula: float
    prefill_flops_counted: float
    kv_bytes: float
    encode_seconds: float
    prefill_seconds: float
    selection_seconds: float  # only where tokens are chosen before the LLM
    decode_tokens_per_second: float
    peak_memory_bytes: int
    peak_memory_is: str
    prompts: int


class SharedRun(TypedDict):
    """How many points ran together, and their seconds."""

    points: int
    seconds: float


class Provenance(TypedDict, total=False):
    """Where numbers come from. ``versions``: by package; ``date``: of a table, figure or multirun."""

    versions: dict[str, str]
    commit: str | None
    seed: int
    seconds: float
    date: str


class ScoredRun(TypedDict, total=False):
    """A run's scores and the benchmark that gave them."""

    benchmark: Required[str]
    protocol: Required[str]
    split: str | None
    headline: Required[Any]  # a score's name, or several
    scores: Required[dict[str, ScoreValue]]
    samples: Required[int]
    without_answer: int
    files: list[str]  # to be scored elsewhere


class Metrics(ScoredRun, total=False):
    """What metrics.json holds of a finished evaluation."""

    backbone: Required[str]
    method: Required[str]
    layers: list[int]
    against: str | None  # the run that it is compared with
    differences: dict[str, PairedTest]  # of two runs, by score
    blink: Required[BlinkSummary]
    budget: TokenBudget | None
    positions: str | None  # the preset of the group, null for the default
    cost: Cost | None
    skipped: Required[list[Skipped]]
    kept: int
    together: SharedRun | None
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
    tokens: TokenCounts
    budget: TokenBudget | None
    cost: Cost | None
    headline: Any
    benchmark: str
    protocol: str
    samples: int
    files: list[str]
    skipped_samples: int
    first_skipped: str | None
    seconds: float
    together: SharedRun | None
    backbone: str
    scale: bool
    commit: str | None
    blink: BlinkSummary
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
    deltas: dict[str, dict[str, PairedTest]]  # by benchmark and heading
    published: dict[str, float | str | None]  # by heading
    derived: list[str]
    missing: dict[str, str]
    conjecture: dict[str, float | str]  # guesses by heading, never reference data, and ``basis``
    published_deltas: dict[str, float]
    budget: str  # of the budgets that the table's points run at
    ranges: dict[str, list[float]]  # lowest and highest of several published numbers, by heading
    sources: dict[str, str]  # of published numbers that come from several papers
    settings: dict[str, Any]  # of a recipe


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
    footnotes: list[Footnote]
    published_columns: Required[dict[str, PublishedColumn]]  # by heading
    groups: Required[list[ColumnGroup]]
    rows: Required[list[TableRow]]
    effects: list[EffectRow]
    conclusion: list[str]  # what the numbers allow to say, a sentence each
    model: str
    provenance: Provenance
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
    footnotes: list[Footnote]
    caption: str
    measured_on: str
    claims: list[ClaimEntry]
    pictures: dict[str, list[str]]
    rows: list[PointRun]
    model: str
    provenance: Provenance
    error: str
    figures: list[str]  # none: a figure stands alone


Document = TableDocument | FigureDocument


class ExperimentPoint(TypedDict, total=False):
    """A point of an experiment; see ``studies.plan``."""

    label: str
    overrides: list[str]
    published: dict[str, Any]  # arguments of ``reference.entry``, or of a rival's cell
    baseline: str
    control: bool
    needs: str
    match: str
    trains: list[str]
    once: bool
    not_at: list[str]
    rival: str
    budget: str  # the name of the budget that it was expanded for
    series: str
    x: Any


class ExperimentBudget(TypedDict):
    overrides: list[str]
    tokens: int


class ExperimentSweep(TypedDict):
    series: str
    x: list[Any]
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
    benchmarks: dict[str, Any]  # a preset's name or several, for ``scale`` and ``published``
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
    draw: dict[str, Any]


class SearchPart(TypedDict):
    """A setting on one part of the benchmark. ``worth``: the score less the price of its tokens; ``tokens``: visual tokens a layer."""

    score: Any
    stderr: float | None
    worth: float
    samples: int
    skipped: int
    tokens: float | None
    folder: str


class SearchSetting(TypedDict):
    point: str
    command: str
    validation: SearchPart
    test: SearchPart


class SearchDocument(Provenance, total=False):
    """tuning.json. ``settings``: that which was chosen, ``best``, and ``default``; ``difference``: best less default, on the test part."""

    benchmark: str
    protocol: str
    backbone: str
    objective: str
    token_price: float
    settings: dict[str, SearchSetting]
    difference: PairedTest | None
    points: int
    failed: int


class ParityVerdict(TypedDict, total=False):
    """``measured``: None where the run failed or is scored elsewhere; ``difference``: from the first source, or the center of the band."""

    measured: Required[float | None]
    stderr: Any  # of ``measured``; without it the run's own, by score
    difference: float | None
    verdict: Required[str]


class ParityRow(ParityVerdict, total=False):
    """A benchmark of parity.json: its ``PointRun`` with a verdict in place of its scores' errors. ``published``: by source."""

    id: str
    published: dict[str, float]
    point: str
    status: str
    error: str
    backbone: str
    samples: int
    skipped_samples: int


class ParityDocument(TypedDict):
    """parity.json. ``backbone``: None where nothing was measured."""

    title: str
    model: str
    backbone: str | None
    command: str
    rows: list[ParityRow]


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
    settings: dict[str, Any]
    size: tuple[int, int]
    grid: dict[str, int]
    second_view: ShownPart | None
    views: dict[str, int]
    thresholds: dict[str, float]
    layers: list[LayerLine]
    kept: ViewTokens | None
    answers: list[AnswerLine]
    command: str | None


class TrainingMetrics(Provenance, total=False):
    """What metrics.json holds of a finished training. ``layers``: by layer what ``training.quality`` measured; ``parameters``: of all
    modules; ``images``: statistics of the source."""

    layers: Required[dict[Any, dict[str, float]]]
    parameters: Required[int]
    images: dict[str, Any]
    skipped_images: list[str]
    backbone: dict[str, Any]
    devices: int
    parts_of_a_step: int
