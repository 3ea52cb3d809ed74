"""What a benchmark is: samples with ids that never change, a prompt, and a rule that turns records into scores."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image

from blink_exp.documents.records import Record, Skipped
from blink_exp.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image
OpenImage = Callable[[], Image.Image]  # raises OSError where it cannot be read

R = TypeVar("R", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Sample:
    """One question. ``image`` opens the image (and may fail: a missing or broken file is reported, not fatal);
    ``image_id``: equal for questions on one image; ``regions``: where the answer is to be seen, if annotated; ``mask``: makes the
    (height, width) bool mask of what is to be seen there, in image pixels, if annotated; ``answer``: None where the split keeps it
    secret; ``fields``: what else the benchmark's rule reads (options, ten answers, ...), as plain values that are written to the record."""

    id: str
    image_id: str
    image: OpenImage = field(repr=False, compare=False)
    question: str
    answer: str | None
    category: str
    regions: tuple[Box, ...] = ()
    mask: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class UnusableImage:
    """Stands in for the image of a row that cannot be evaluated. Opening it raises OSError(``why``), so that the row is skipped and counted
    like a sample whose image does not open."""

    why: str

    def __call__(self) -> Image.Image:
        raise OSError(self.why)


def mark_skipped(sample: Sample, why: str) -> Sample:
    """``sample`` with an ``UnusableImage``. It gets its own image id, so that it is not grouped with other questions on its image."""
    return replace(sample, image=UnusableImage(why), image_id=f"{sample.id}/skipped")


def placeholder_sample(name: str, why: str) -> Sample:
    """A skipped sample for a row from which no sample can be built. ``name``: its id, made from the row number."""
    return mark_skipped(Sample(name, name, UnusableImage(why), "", None, ""), why)


def skip_duplicate_ids(samples: Iterable[Sample]) -> Iterator[Sample]:
    """``samples`` in order; one that repeats an earlier id becomes a skipped sample, because records are keyed by id."""
    ids: set[str] = set()
    for i, sample in enumerate(samples):
        if sample.id in ids:
            sample = placeholder_sample(f"{sample.id} (row {i})", f"row {i} has the id {sample.id} of an earlier row")
        ids.add(sample.id)
        yield sample


def usable_samples(samples: list[Sample], where: str) -> list[Sample]:
    """The samples whose rows are valid. Raises UserError if there is none, as the data set itself is then wrong.

    ``where``: name of the data in messages."""
    valid = [s for s in samples if not isinstance(s.image, UnusableImage)]
    if not samples:
        raise UserError(f"{where} holds no row; copy the data set again")
    if not valid:
        assert isinstance(samples[0].image, UnusableImage)
        why = f"none of its {len(samples)} rows can be asked, first {samples[0].id}: {samples[0].image.why}"
        raise UserError(f"{where}: {why}; take a copy with the published columns")
    return valid


@dataclass(frozen=True)
class Score:
    """A value, the number of samples it is computed from, and its standard error (None if undefined)."""

    value: float
    samples: int
    stderr: float | None = None


class Count(Score):
    """How many of ``samples`` something is so of, such as an answer that was not read. It says how a score came about and is none, so runs
    are not compared by it."""


class Benchmark(Protocol):
    """``protocol``: whose prompts and rules these are: ``llava`` (the original LLaVA scripts), ``lmms_eval``, or ``own``."""

    name: str
    protocol: str
    headline: str  # name of the score that tables show
    max_new_tokens: int

    def samples(self) -> list[Sample]: ...

    def prompt(self, sample: Sample) -> str:
        """The prompt text for the model."""
        ...

    def correct(self, sample: Sample, prediction: str) -> float | None:
        """Correctness of a prediction, from 0 (False) to 1 (True); None if the sample has no reference answer."""
        ...

    def score(self, records: list[Record]) -> dict[str, Score]:
        """Scores of records with ``id``, ``image_id``, ``category``, ``answer``, ``prediction``, ``correct`` and the sample's ``fields``.
        The result must not depend on record order or sharding."""
        ...


@runtime_checkable
class Submits(Protocol):
    """A benchmark that can also be scored by a test server or a judge."""

    def submit(self, records: list[Record], folder: Path) -> list[Path]:
        """Writes the submission files and returns their paths."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A benchmark whose answers are interpreted after generation, by a judge or by option-matching rules."""

    def judged(self, records: list[Record]) -> list[Record]:
        """The records with the verdict and ``correct`` added. ``score`` calls this for records that lack them."""
        ...


@runtime_checkable
class Subsets(Protocol):
    """A benchmark with accuracies over a part of its questions that is not a category."""

    def counts(self, score: str, record: Record) -> bool:
        """Whether the accuracy called ``score`` counts ``record``."""
        ...


@runtime_checkable
class Compares(Protocol):
    """A benchmark whose scores come from a pairwise comparison of two runs."""

    def compare(self, ours: list[Record], against: list[Record]) -> list[Record]:
        """Records of the comparison, which ``score`` takes."""
        ...


@runtime_checkable
class Probes(Protocol):
    """A benchmark of the vision tower: no question, no method."""

    def probe(self, backbone: Any, limit: int | None, advance: Callable[[int], None]) -> tuple[list[Record], list[Skipped]]:
        """(one record per image, skipped images). ``advance`` moves the progress bar."""
        ...


def normalized(text: str) -> str:
    """Lower case, no punctuation, single spaces: the normalisation of ``ExactMatch``."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


class ExactMatch:
    """Exact match after ``normalized``; the prompt is the question. Scores: overall accuracy and accuracy by category."""

    protocol = "own"
    headline = "accuracy"
    max_new_tokens = 4

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else normalized(prediction) == normalized(sample.answer)

    def score(self, records: list[Record]) -> dict[str, Score]:
        groups = group_by(records, "category")
        return {"accuracy": mean(r["correct"] for r in records), **{k: mean(r["correct"] for r in v) for k, v in groups.items()}}


def mean(hits: Iterable[float], scale: float = 100.0) -> Score:
    """The mean of values in [0, 1], in per cent, with its standard error (binomial for 0/1 values). NaN without values, written as
    null and shown as an empty cell."""
    hits = [float(hit) for hit in hits]
    n = len(hits)
    if not n:
        return Score(float("nan"), 0)
    p = math.fsum(hits) / n  # exact, so that the order of fractional hits cannot show
    return Score(scale * p, n, scale * (math.fsum((hit - p) ** 2 for hit in hits) / n / n) ** 0.5)


def accuracies(records: list[Record]) -> dict[str, Score]:
    """Overall accuracy and, with several categories, accuracy by category; ``without_answer``: records without a reference."""
    answered = [r for r in records if r["correct"] is not None]
    groups = group_by(answered, "category")
    return {
        **({"accuracy": mean(r["correct"] for r in answered)} if answered else {}),
        **({k: mean(r["correct"] for r in v) for k, v in groups.items()} if len(groups) > 1 else {}),
        **without_answer(records, answered),
    }


def without_answer(records: list[Record], answered: list[Record]) -> dict[str, Score]:
    """The count of records without a reference, if there are any."""
    return {"without_answer": Count(len(records) - len(answered), len(records))} if len(answered) < len(records) else {}


def total(scores: Iterable[Score]) -> Score:
    """The sum of independent scores, of those with samples; its standard error is None if any of theirs is. NaN if there is none."""
    scores = [score for score in scores if score.samples]
    if not scores:
        return Score(float("nan"), 0)
    errors = [s.stderr for s in scores if s.stderr is not None]
    error = sum(e**2 for e in errors) ** 0.5 if len(errors) == len(scores) else None
    return Score(sum(s.value for s in scores), sum(s.samples for s in scores), error)


def group_by(records: Iterable[R], key: str) -> dict[str, list[R]]:
    """{value of ``key``: records}, sorted by value."""
    groups: dict[str, list[R]] = defaultdict(list)
    for record in records:
        groups[record[key]].append(record)
    return dict(sorted(groups.items()))


def spread(samples: list[Sample], limit: int | None) -> list[Sample]:
    """About ``limit`` samples, spread evenly over the benchmark; all questions on an image stay together."""
    if limit is None or limit >= len(samples):
        return samples
    images = group_by_image(samples)
    count = max(1, round(limit * len(images) / len(samples)))
    return [s for k in range(count) for s in images[k * len(images) // count]]


def shard(samples: list[Sample], part: str) -> list[Sample]:
    """Part "k/n" of the samples, k from 1 to n; the questions on one image stay together."""
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    k, n = (int(g) for g in match.groups()) if match else (0, 0)
    if not 1 <= k <= n:
        raise UserError(f"shard={part} is no part; use k/n with k from 1 to n, e.g. shard=1/8")
    return [s for image in group_by_image(samples)[k - 1 :: n] for s in image]


def group_by_image(samples: list[Sample]) -> list[list[Sample]]:
    """The questions on each image, in order of first occurrence."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.image_id].append(sample)
    return list(groups.values())
