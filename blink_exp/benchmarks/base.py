"""What a benchmark is: samples with ids that never change, a prompt, and a rule that turns records into scores."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image


@dataclass(frozen=True)
class Sample:
    """One question. ``image`` opens the image (and may fail: a missing or broken file is reported, not fatal);
    ``image_id``: equal for questions on one image; ``regions``: where the answer is to be seen, if annotated; ``mask``: makes the
    (height, width) bool mask of what is to be seen there, in image pixels, if annotated."""

    id: str
    image_id: str
    image: Callable[[], Image.Image] = field(repr=False, compare=False)
    question: str
    answer: str
    category: str
    regions: tuple[Box, ...] = ()
    mask: Callable[[], Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Score:
    """A number with the count of samples behind it and its standard error (None where it has none)."""

    value: float
    samples: int
    stderr: float | None = None


class Benchmark(Protocol):
    name: str
    max_new_tokens: int

    def samples(self) -> list[Sample]: ...

    def prompt(self, sample: Sample) -> str:
        """The question as the model is asked it."""
        ...

    def correct(self, sample: Sample, prediction: str) -> bool: ...

    def score(self, records: list[dict[str, Any]]) -> dict[str, Score]:
        """Scores of records with ``id``, ``image_id``, ``category`` and ``correct``. Their order must not matter."""
        ...


def normalized(text: str) -> str:
    """Lower case, no punctuation, single spaces: the rule of exact match here."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


class ExactMatch:
    """Questions asked as they are, right where prediction and answer agree once ``normalized``; accuracy in all and by category."""

    max_new_tokens = 4

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> bool:
        return normalized(prediction) == normalized(sample.answer)

    def score(self, records: list[dict[str, Any]]) -> dict[str, Score]:
        groups = by(records, "category")
        return {"accuracy": mean(r["correct"] for r in records), **{k: mean(r["correct"] for r in v) for k, v in groups.items()}}


def mean(hits: Iterable[bool], scale: float = 100.0) -> Score:
    """A share in per cent, with the binomial standard error."""
    hits = list(hits)
    n = len(hits)
    if not n:
        return Score(float("nan"), 0)
    p = sum(hits) / n
    return Score(scale * p, n, scale * (p * (1 - p) / n) ** 0.5)


def by(records: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Records in groups, in the order of the sorted group names."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record[key]].append(record)
    return dict(sorted(groups.items()))


def spread(samples: list[Sample], limit: int | None) -> list[Sample]:
    """About ``limit`` samples, evenly over the benchmark and whole images only, so that pairs stay pairs."""
    if limit is None or limit >= len(samples):
        return samples
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.image_id].append(sample)
    ids = list(groups)
    wanted = max(1, round(limit * len(ids) / len(samples)))
    return [s for k in range(wanted) for s in groups[ids[k * len(ids) // wanted]]]
