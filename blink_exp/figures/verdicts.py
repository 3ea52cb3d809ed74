"""Statistics of claims: means with clustered standard errors, paired differences between runs, and three-valued verdicts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from statsmodels.stats.multitest import multipletests

from blink_exp.benchmarks.base import group_by
from blink_exp.documents.records import Record
from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError
from blink_exp.figures.base import Study

SURE = 2.0  # standard errors beyond which a difference counts
# what a claim says of its verdict: of one difference, and of several that must all be there
RULE = "Holds, or does not, where the difference is more than two standard errors from 0; else this cannot be told."
RULES = f"Holds: every difference is above 0 by more than {SURE:g} standard errors; does not: one is as far below; else open."
HOLM = f"Holm-corrected to the error that {SURE:g} standard errors leave to one comparison"
Gains = dict[str, dict[tuple[str, str], float]]  # by subtask, then image and question: what the question adds to the subtask's score


def verdict(difference: float | None, stderr: float | None) -> bool | None:
    """Whether a difference is above 0; None if it is within ``SURE`` standard errors of 0, or undefined."""
    if difference is None or stderr is None or abs(difference) <= SURE * stderr:
        return None
    return difference > 0


def holm(gaps: Sequence[Mean]) -> list[bool | None]:
    """``verdict`` of several differences at once: Holm's step-down at the two-sided error that ``SURE`` standard errors leave to one, so
    that the chance of any wrong verdict among them is no larger than that. One without an error cannot be told, and counts."""
    if not gaps:
        return []
    normal = NormalDist()
    p_values = [2 * normal.cdf(-_in_errors(gap)) for gap in gaps]
    rejected = multipletests(p_values, alpha=2 * normal.cdf(-SURE), method="holm")[0]
    return [(gap.value or 0.0) > 0 if sure else None for gap, sure in zip(gaps, rejected, strict=True)]


def _in_errors(gap: Mean) -> float:
    if gap.value is None or gap.stderr is None or gap.value == 0:
        return 0.0
    return abs(gap.value) / gap.stderr if gap.stderr else math.inf


def combined_verdict(verdicts: Iterable[bool | None]) -> bool | None:
    """Conjunction of three-valued verdicts: False if any is False, else None if any is None or there are none."""
    results = list(verdicts)
    if not results or (None in results and False not in results):
        return None
    return all(results)


@dataclass(frozen=True)
class Mean:
    """A mean of ``n`` values, or a difference of such means, with its standard error; None where there are too few for it."""

    value: float | None
    stderr: float | None
    n: int

    @property
    def above(self) -> bool | None:
        """Whether the mean is above 0, see ``verdict``."""
        return verdict(self.value, self.stderr)

    def formatted(self, digits: int) -> str:
        """ "0.50 ± 0.01", or "0.50" where there is no error."""
        return f"{self.value or 0:.{digits}f}" + ("" if self.stderr is None else f" ± {self.stderr:.{digits}f}")

    def less(self, other: float | None) -> Mean:
        """This mean minus a constant."""
        return Mean(None if self.value is None or other is None else self.value - other, self.stderr, self.n)

    def below(self, other: Mean) -> Mean:
        """``other`` minus this mean, for independent samples."""
        if self.value is None or other.value is None:
            return Mean(None, None, 0)
        has_errors = self.stderr is not None and other.stderr is not None
        return Mean(other.value - self.value, math.hypot(self.stderr or 0, other.stderr or 0) if has_errors else None, self.n + other.n)


def mean(values: Iterable[float | None], clusters: Sequence[Hashable] | None = None) -> Mean:
    """The mean of what is there (neither None nor NaN), with its standard error.

    ``clusters``: a name a value; those of one name hang together, as the questions on one image do. None: all are independent. There is
    no error of fewer than two clusters.
    """
    items = list(values)
    names = range(len(items)) if clusters is None else clusters
    present = [(float(v), name) for v, name in zip(items, names, strict=True) if v is not None and not math.isnan(v)]
    if not present:
        return Mean(None, None, 0)
    value = float(np.mean([v for v, _ in present]))
    deviations: dict[Hashable, float] = defaultdict(float)
    for v, name in present:
        deviations[name] += v - value
    n = len(deviations)
    stderr = float(np.sqrt(sum(d**2 for d in deviations.values()) * n / (n - 1)) / len(present)) if n > 1 else None
    return Mean(value, stderr, len(present))


def values(means: dict[str, Mean]) -> dict[str, float | None]:
    """The values without standard errors."""
    return {name: one.value for name, one in means.items()}


def differences(gaps: dict[str, Mean]) -> dict[str, float | None]:
    """Each difference with its standard error."""
    return {k: v for name, gap in gaps.items() for k, v in ((name, gap.value), (f"{name}, standard error", gap.stderr))}


# runs that answer the same questions


def gains(records: list[Record], score: str) -> Gains:
    """What each question adds to a score. ``total``: MME's accuracy + accuracy-plus of each subtask, both questions on an image as one
    (pairs with both answers only); else the per cent of right answers. The score is the sum over subtasks of the mean."""
    answered = [r for r in records if r["correct"] is not None]
    if score != "total":
        return {"": {(r["image_id"], r["id"]): 100.0 * r["correct"] for r in answered}}
    pairs = {
        k: {i: pair for i, pair in group_by(rows, "image_id").items() if len(pair) == 2}
        for k, rows in group_by(answered, "category").items()
    }
    return {
        k: {(i, ""): 50.0 * sum(r["correct"] for r in pair) + 100.0 * all(r["correct"] for r in pair) for i, pair in images.items()}
        for k, images in pairs.items()
        if images
    }


def contrast(first: Sequence[Gains], second: Sequence[Gains]) -> Mean:
    """The mean score of the ``first`` runs less that of the ``second``, paired question by question, its standard error over images (``n``
    of them): the questions on one hang together. There is no error where a subtask has a single image in common."""
    if not first or not second:
        return Mean(None, None, 0)
    gaps, count = [], 0
    for subtask in first[0]:
        shared = [key for key in first[0][subtask] if all(key in run.get(subtask, {}) for run in (*first, *second))]
        if not shared:
            continue
        a, b = ([[run[subtask][key] for key in shared] for run in runs] for runs in (first, second))
        images = [image for image, _ in shared]
        gaps.append(mean(np.mean(a, axis=0) - np.mean(b, axis=0), images))
        count += len(set(images))
    if not gaps:
        return Mean(None, None, 0)
    errors = [gap.stderr for gap in gaps if gap.stderr is not None]
    return Mean(sum(gap.value or 0.0 for gap in gaps), math.hypot(*errors) if len(errors) == len(gaps) else None, count)


def headline(rows: list[PointRun], name: str) -> str:
    """The score that a figure over MME's total plots: ``total``, or accuracy on a benchmark that has no total."""
    score = next((s for s in ("total", "accuracy") if all(s in row["scores"] for row in rows)), None)
    if score is None:
        raise UserError(f"figure={name} needs a benchmark with a total or an accuracy; use benchmark=mme or mosaic_mme")
    return score


def point(study: Study, label: str) -> PointRun:
    """The measured point that others are compared with."""
    row = next((r for r in study.done if r["point"] == label), None)
    if row is None:
        raise UserError(
            f"figure={study.name} compares with its point {label}, which was not measured; see its error, then repeat the command"
        )
    return row
