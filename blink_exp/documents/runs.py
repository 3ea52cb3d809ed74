"""What a run left: scores, costs, paired tests; metrics.json, and the row that a sweep keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

from blink_exp.documents.records import Skipped


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


class LoadingOptions(TypedDict):
    """How a model was loaded, as far as it affects results."""

    dtype: str
    device: str
    attn_implementation: str
    quantization: str | None
    pad: bool
    system_prompt: str
    revision: str | None


class PredictionSettings(TypedDict, total=False):
    """Keys of metrics.json that affect predictions; shards may differ in the others (device, batch_size)."""

    backbone: str
    method: str
    layers: list[int]
    dtype: str
    attn_implementation: str
    quantization: str | None
    pad: bool
    system_prompt: str | None
    revision: str | None
    seed: int


class PredictionOrigin(PredictionSettings, total=False):
    """What predictions were made with, as far as it is known."""

    visual_tokens_of_the_image: int


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


class TrainingMetrics(Provenance, total=False):
    """What metrics.json holds of a finished training. ``layers``: by layer what ``training.quality`` measured; ``parameters``: of all
    modules; ``images``: statistics of the source."""

    layers: Required[dict[Any, dict[str, float]]]
    parameters: Required[int]
    images: Mapping[str, object]
    skipped_images: list[str]
    backbone: LoadingOptions
    devices: int
    parts_of_a_step: int
