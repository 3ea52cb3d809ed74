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

from blink_exp.documents import Record, Skipped
from blink_exp.errors import UserError

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image

R = TypeVar("R", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Sample:
    """One question. ``image`` opens the image (and may fail: a missing or broken file is reported, not fatal);
    ``image_id``: equal for questions on one image; ``regions``: where the answer is to be seen, if annotated; ``mask``: makes the
    (height, width) bool mask of what is to be seen there, in image pixels, if annotated; ``answer``: None where the split keeps it
    secret; ``fields``: what else the benchmark's rule reads (options, ten answers, ...), as plain values that are written to the record."""

    id: str
    image_id: str
    image: Callable[[], Image.Image] = field(repr=False, compare=False)
    question: str
    answer: str | None
    category: str
    regions: tuple[Box, ...] = ()
    mask: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class UnusableImage:
    """In place of the image of a sample that cannot be asked: opening it raises OSError with ``why``, so that whatever skips and counts an
    image that does not open does the same with a row that is no question."""

    why: str

    def __call__(self) -> Image.Image:
        raise OSError(self.why)


def mark_skipped(sample: Sample, why: str) -> Sample:
    """``sample`` as one that is skipped. It has an image of its own, else it would be asked along with another question on the same one."""
    return replace(sample, image=UnusableImage(why), image_id=f"{sample.id}/skipped")


def placeholder_sample(name: str, why: str) -> Sample:
    """A sample that is skipped, of a row from which none can be made. ``name``: its id, by its place in the data."""
    return mark_skipped(Sample(name, name, UnusableImage(why), "", None, ""), why)


def skip_duplicate_ids(samples: Iterable[Sample]) -> Iterator[Sample]:
    """``samples``, of which those with an id that an earlier one has are skipped: records are known by their ids."""
    ids: set[str] = set()
    for i, sample in enumerate(samples):
        if sample.id in ids:
            sample = placeholder_sample(f"{sample.id} (row {i})", f"row {i} has the id {sample.id} of an earlier row")
        ids.add(sample.id)
        yield sample


def usable_samples(samples: list[Sample], where: str) -> list[Sample]:
    """Those of ``samples`` that are not skipped for what their rows hold. Raises UserError where there is none: then it is the data set.

    ``where``: what messages call the data."""
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
    """A number with the count of samples behind it and its standard error (None where it has none)."""

    value: float
    samples: int
    stderr: float | None = None


class Benchmark(Protocol):
    """``protocol``: whose prompts and rules these are: ``llava`` (the original LLaVA scripts), ``lmms_eval``, or ``own``."""

    name: str
    protocol: str
    headline: str  # name of the score that tables show
    max_new_tokens: int

    def samples(self) -> list[Sample]: ...

    def prompt(self, sample: Sample) -> str:
        """The question as the model is asked it."""
        ...

    def correct(self, sample: Sample, prediction: str) -> float | None:
        """How right a prediction is, from 0 (False) to 1 (True); None where the sample has no answer to compare with."""
        ...

    def score(self, records: list[Record]) -> dict[str, Score]:
        """Scores of records with ``id``, ``image_id``, ``category``, ``answer``, ``prediction``, ``correct`` and the sample's ``fields``.
        Neither their order nor the shards they come from may matter."""
        ...


@runtime_checkable
class Submits(Protocol):
    """A benchmark that is scored elsewhere too: on a test server or by a judge."""

    def submit(self, records: list[Record], folder: Path) -> list[Path]:
        """Writes what the server or judge takes and returns the files."""
        ...


@runtime_checkable
class Judged(Protocol):
    """A benchmark for which somebody must read the answers: a judge, or rules that say which option an answer means."""

    def judged(self, records: list[Record]) -> list[Record]:
        """The records with what was found written beside each, and ``correct`` with it. ``score`` does so itself where it was not done."""
        ...


@runtime_checkable
class Compares(Protocol):
    """A benchmark whose scores come from setting two runs against each other."""

    def compare(self, ours: list[Record], against: list[Record]) -> list[Record]:
        """Records of the comparison, which ``score`` takes."""
        ...


@runtime_checkable
class Probes(Protocol):
    """A benchmark of the vision tower: it asks no question and runs no method."""

    def probe(self, backbone: Any, limit: int | None, advance: Callable[[int], None]) -> tuple[list[Record], list[Skipped]]:
        """(one record an image, images that could not be read). ``advance`` moves the progress bar."""
        ...


def normalized(text: str) -> str:
    """Lower case, no punctuation, single spaces: the rule of exact match here."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


class ExactMatch:
    """Questions asked as they are, right where prediction and answer agree once ``normalized``; accuracy in all and by category."""

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
    """The mean of values from 0 to 1, in per cent, with its standard error (for right and wrong: the binomial one). Of no value: NaN, which
    is written as null and shown as an empty cell."""
    hits = [float(hit) for hit in hits]
    n = len(hits)
    if not n:
        return Score(float("nan"), 0)
    p = math.fsum(hits) / n  # exact, so that the order of fractional hits cannot show
    return Score(scale * p, n, scale * (math.fsum((hit - p) ** 2 for hit in hits) / n / n) ** 0.5)


def accuracies(records: list[Record]) -> dict[str, Score]:
    """Accuracy in all and, where there are several, by category; ``without_answer`` counts records that have nothing to compare with."""
    answered = [r for r in records if r["correct"] is not None]
    groups = group_by(answered, "category")
    return {
        **({"accuracy": mean(r["correct"] for r in answered)} if answered else {}),
        **({k: mean(r["correct"] for r in v) for k, v in groups.items()} if len(groups) > 1 else {}),
        **({"without_answer": Score(len(records) - len(answered), len(records))} if len(answered) < len(records) else {}),
    }


def total(scores: Iterable[Score]) -> Score:
    """A sum of independent scores; its error is known where all of theirs are."""
    scores = list(scores)
    errors = [s.stderr for s in scores if s.stderr is not None]
    error = sum(e**2 for e in errors) ** 0.5 if len(errors) == len(scores) else None
    return Score(sum(s.value for s in scores), sum(s.samples for s in scores), error)


def group_by(records: Iterable[R], key: str) -> dict[str, list[R]]:
    """Records in groups, in the order of the sorted group names."""
    groups: dict[str, list[R]] = defaultdict(list)
    for record in records:
        groups[record[key]].append(record)
    return dict(sorted(groups.items()))


def spread(samples: list[Sample], limit: int | None) -> list[Sample]:
    """About ``limit`` samples, evenly over the benchmark and whole images only, so that pairs stay pairs."""
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
    """The questions on each image, images in order of their first."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.image_id].append(sample)
    return list(groups.values())
