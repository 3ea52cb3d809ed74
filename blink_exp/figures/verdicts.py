"""How a claim is judged: means with the error of what hangs together, paired changes between runs, and verdicts of three values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blink_exp.benchmarks.base import by
from blink_exp.errors import UserError
from blink_exp.figures.base import Study

SURE = 2.0  # standard errors beyond which a difference counts
# what a claim says of its verdict: of one difference, and of several that must all be there
RULE = "Holds, or does not, where the difference is more than two standard errors from 0; else this cannot be told."
RULES = f"Holds: every difference is above 0 by more than {SURE:g} standard errors; does not: one is as far below; else open."
Gains = dict[str, dict[str, float]]  # by subtask and image: what an image adds to the subtask's score


def told(difference: float | None, stderr: float | None) -> bool | None:
    """Whether a difference is above 0; None where it is within ``SURE`` standard errors of it, or where there is none."""
    if difference is None or stderr is None or abs(difference) <= SURE * stderr:
        return None
    return difference > 0


def all_told(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether every one holds: False as soon as one does not, None while one cannot be told, or of none at all."""
    found = list(verdicts)
    if not found or (None in found and False not in found):
        return None
    return all(found)


@dataclass(frozen=True)
class Mean:
    """A mean of ``n`` values, or a difference of such means, with its standard error; None where there are too few for it."""

    value: float | None
    stderr: float | None
    n: int

    @property
    def above(self) -> bool | None:
        """Whether what it is the mean of is above 0."""
        return told(self.value, self.stderr)

    def less(self, other: float | None) -> Mean:
        """How far it lies above a number."""
        return Mean(None if self.value is None or other is None else self.value - other, self.stderr, self.n)

    def below(self, other: Mean) -> Mean:
        """How far this mean lies below one of other images."""
        if self.value is None or other.value is None:
            return Mean(None, None, 0)
        known = self.stderr is not None and other.stderr is not None
        return Mean(other.value - self.value, math.hypot(self.stderr or 0, other.stderr or 0) if known else None, self.n + other.n)


def mean(values: Iterable[float | None], clusters: Sequence[Hashable] | None = None) -> Mean:
    """The mean of what is there (neither None nor NaN), with its standard error.

    ``clusters``: a name a value; those of one name hang together, as the questions on one image do. None: all are independent. There is
    no error of fewer than two clusters.
    """
    given = list(values)
    names = range(len(given)) if clusters is None else clusters
    known = [(float(v), name) for v, name in zip(given, names, strict=True) if v is not None and not math.isnan(v)]
    if not known:
        return Mean(None, None, 0)
    value = float(np.mean([v for v, _ in known]))
    apart: dict[Hashable, float] = defaultdict(float)
    for v, name in known:
        apart[name] += v - value
    n = len(apart)
    stderr = float(np.sqrt(sum(d**2 for d in apart.values()) * n / (n - 1)) / len(known)) if n > 1 else None
    return Mean(value, stderr, len(known))


def values(means: dict[str, Mean]) -> dict[str, float | None]:
    """Without their standard errors."""
    return {name: one.value for name, one in means.items()}


def differences(gaps: dict[str, Mean]) -> dict[str, float | None]:
    """Each difference with its standard error."""
    return {k: v for name, gap in gaps.items() for k, v in ((name, gap.value), (f"{name}, standard error", gap.stderr))}


# runs that answer the same questions


def gains(records: list[dict[str, Any]], score: str) -> Gains:
    """What each image adds to a score. ``total``: MME's accuracy + accuracy-plus of each subtask (pairs with both answers only); else the
    per cent of right answers, question by question. The score is the sum over subtasks of the mean over images."""
    answered = [r for r in records if r["correct"] is not None]
    if score != "total":
        return {"": {r["id"]: 100.0 * r["correct"] for r in answered}}
    pairs = {k: {i: pair for i, pair in by(rows, "image_id").items() if len(pair) == 2} for k, rows in by(answered, "category").items()}
    return {
        k: {i: 50.0 * sum(r["correct"] for r in pair) + 100.0 * all(r["correct"] for r in pair) for i, pair in images.items()}
        for k, images in pairs.items()
        if images
    }


def contrast(first: Sequence[Gains], second: Sequence[Gains]) -> Mean:
    """The mean score of the ``first`` runs less that of the ``second``, paired image by image (``n`` of them)."""
    if not first or not second:
        return Mean(None, None, 0)
    difference = variance = 0.0
    count = 0
    for subtask in first[0]:
        images = [i for i in first[0][subtask] if all(i in run.get(subtask, {}) for run in (*first, *second))]
        if not images:
            continue
        a, b = ([[run[subtask][i] for i in images] for run in runs] for runs in (first, second))
        apart = np.mean(a, axis=0) - np.mean(b, axis=0)
        difference += float(apart.mean())
        variance += float(apart.var(ddof=1)) / len(images) if len(images) > 1 else 0.0
        count += len(images)
    return Mean(difference, variance**0.5, count)


def headline(rows: list[dict[str, Any]], name: str) -> str:
    """The score that a figure over MME's total plots: ``total``, or accuracy on a benchmark that has no total."""
    found = next((s for s in ("total", "accuracy") if all(s in row["scores"] for row in rows)), None)
    if found is None:
        raise UserError(f"figure={name} needs a benchmark with a total or an accuracy; use benchmark=mme or mosaic_mme")
    return found


def point(study: Study, label: str) -> dict[str, Any]:
    """The measured point that others are compared with."""
    row = next((r for r in study.done if r["point"] == label), None)
    if row is None:
        raise UserError(
            f"figure={study.name} compares with its point {label}, which was not measured; see its error, then repeat the command"
        )
    return row
