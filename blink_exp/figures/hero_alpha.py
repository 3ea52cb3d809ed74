"""Scores by category against alpha, the weight of CLSsim against CLIPscore in a tile's share of the budget (HERO, Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from hydra.utils import get_class

from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study, records_of
from blink_exp.figures.verdicts import HOLM, Mean, combined_verdict, holm

AVERAGE = "average"
BEST = 0.5  # alpha at which the paper's average peaks
# MMStar's categories and (alpha, width) of where the paper sees their peaks: "around 0.7", "at 0.5", "at 0.2"
PEAKS = {
    "coarse perception": (0.7, 0.1),
    "instance reasoning": (0.7, 0.1),
    "fine-grained perception": (0.5, 0.0),
    "logical reasoning": (0.5, 0.0),
    "math": (0.5, 0.0),
    "science & technology": (0.2, 0.0),
}
MARKERS = "osD^vPX*"


class AlphaCurves(TypedDict):
    """``accuracy``, ``stderr``: {category: one for each ``alpha``}."""

    alpha: list[float]
    accuracy: dict[str, list[float | None]]
    stderr: dict[str, list[float | None]]


class AlphaScores:
    """Correctness at each alpha, on the questions that every point answered.

    Args:
        points: {alpha: per-sample records}.
        balanced: whether the average is that of the categories' accuracies (MMStar) and not of all questions.
    """

    def __init__(self, points: dict[float, list[Record]], balanced: bool):
        answers = {x: {r["id"]: r for r in rows if r["correct"] is not None} for x, rows in sorted(points.items())}
        ids = sorted(set.intersection(*(set(rows) for rows in answers.values())))
        self.x = list(answers)
        self.right = {x: np.asarray([float(rows[i]["correct"]) for i in ids]) for x, rows in answers.items()}
        self.images = np.asarray([answers[self.x[0]][i]["image_id"] for i in ids])
        categories = np.asarray([answers[self.x[0]][i]["category"] for i in ids])
        self.categories = sorted(set(categories.tolist())) if len(set(categories.tolist())) > 1 else []
        masks = {name: [categories == name] for name in self.categories}
        parts = [group for groups in masks.values() for group in groups] if balanced and masks else [np.ones(len(ids), dtype=bool)]
        self.groups = masks | {AVERAGE: parts}

    def count(self, name: str) -> int:
        return int(sum(group.sum() for group in self.groups[name]))

    def mean(self, name: str, values: np.ndarray) -> Mean:
        """The mean of (questions,) ``values`` in a category or, balanced as it is, on average, with its standard error over images: the
        questions on one hang together, also across categories. There is no error where a category has a single image."""
        groups = self.groups[name]
        value = float(np.mean([values[group].mean() for group in groups]))
        counts = [len(set(self.images[group])) for group in groups]
        if min(counts) < 2:
            return Mean(value, None, self.count(name))
        pulls = np.zeros(len(values))  # how far each question draws the mean
        for group, n in zip(groups, counts, strict=True):
            part = values[group]
            pulls[group] = (part - part.mean()) / (len(part) * len(groups)) * (n / (n - 1)) ** 0.5
        by_image = np.bincount(np.unique(self.images, return_inverse=True)[1], pulls)
        return Mean(value, float(np.linalg.norm(by_image)), self.count(name))

    def line(self, name: str) -> list[Mean]:
        """Accuracy in per cent at each alpha."""
        return [self.mean(name, 100 * self.right[x]) for x in self.x]

    def peak(self, name: str) -> float | None:
        """The alpha of the highest accuracy; None where several share it."""
        line = {x: self.mean(name, self.right[x]).value for x in self.x}
        highest = [x for x, value in line.items() if value == max(v for v in line.values() if v is not None)]
        return highest[0] if len(highest) == 1 else None

    def sides(self, near: Sequence[float]) -> tuple[list[float], list[float]]:
        """The alphas among ``near``, and the others."""
        return [x for x in self.x if x in near], [x for x in self.x if x not in near]

    def lead(self, name: str, near: Sequence[float]) -> float | None:
        """How far, in per cent, the best alpha among ``near`` is above the best other one. Both are picked on the very questions that they
        are compared on, so an error of it would be too small: ``peaks`` judges."""
        best = [max((self.mean(name, 100 * self.right[x]).value or 0.0 for x in xs), default=None) for xs in self.sides(near)]
        return None if best[0] is None or best[1] is None else best[0] - best[1]


def peaks(scored: AlphaScores, places: Mapping[str, Sequence[float]]) -> dict[str, bool | None]:
    """{name: whether its peak is among the alphas ``places`` names}: True where one of them is above every other alpha, False where another
    alpha is above all of them, each difference paired question by question and all of all names Holm-corrected together."""
    comparisons = [
        (name, a, b) for name, near in places.items() for inside, outside in [scored.sides(near)] for a in inside for b in outside
    ]
    verdicts = dict(
        zip(comparisons, holm([scored.mean(name, 100 * (scored.right[a] - scored.right[b])) for name, a, b in comparisons]), strict=True)
    )

    def peak(name: str, inside: list[float], outside: list[float]) -> bool | None:
        if not inside or not outside:
            return None
        if any(all(verdicts[name, a, b] is True for b in outside) for a in inside):
            return True
        return False if any(all(verdicts[name, a, b] is False for a in inside) for b in outside) else None

    return {name: peak(name, *scored.sides(near)) for name, near in places.items()}


def claims(scored: AlphaScores) -> list[Claim]:
    """Where the average peaks, and where each category does: on MMStar against the paper's alphas, elsewhere as numbers alone."""
    rule = f"questions of every point, paired, errors over images, {HOLM}."
    average = peaks(scored, {AVERAGE: [BEST]})[AVERAGE]
    out = [
        Claim(
            f"The average peaks at alpha = {BEST}",
            f"Accuracy at {BEST} less that at each other alpha, {scored.count(AVERAGE)} {rule} Holds: it is above every other; does not: "
            "another is above it; else open. Lead: over the best other, picked afterwards.",
            {"peak": scored.peak(AVERAGE), "lead": scored.lead(AVERAGE, [BEST])},
            average,
        )
    ]
    numbers: dict[str, float | None] = {f"peak, {name}": scored.peak(name) for name in scored.categories}
    if set(scored.categories) == set(PEAKS):
        places = {name: [x for x in scored.x if abs(x - at) <= width + 1e-9] for name, (at, width) in PEAKS.items()}
        verdicts = peaks(scored, places)
        where = ", ".join(f"{name} {'near' if width else 'at'} {at}" for name, (at, width) in PEAKS.items())
        numbers |= {f"lead, {name}": scored.lead(name, near) for name, near in places.items()}
        numbers |= {f"holds (1) or not (0), {name}": None if v is None else float(v) for name, v in verdicts.items()}
        how = (
            f"Accuracy at each alpha there (near: within 0.1) less that at each one elsewhere, {rule} A category holds where one there is "
            "above every one elsewhere, and does not where one elsewhere is above all there; the claim holds where all six do. Lead: the "
            "best there less the best elsewhere, picked afterwards."
        )
        out.append(Claim(f"Categories peak apart: {where}", how, numbers, combined_verdict(verdicts.values())))
    elif scored.categories:
        how = f"Alpha of the highest accuracy, if one alone has it, {scored.count(AVERAGE)} questions in all. The paper's are MMStar's."
        out.append(Claim("Categories peak at alphas of their own", how, numbers, None))
    return out


@draw.styled()
def categories(study: Study) -> Drawing:
    """Fig. 5: accuracy against alpha (``x`` of the points), a line a category, the average in black."""
    rows = {float(row["x"]): row for row in study.done if "x" in row}
    if not rows:
        why = next((f": {row['error']}" for row in study.rows if row["status"] == "failed"), "")
        raise UserError(f"{study.name} has no measured point{why}; give its sweep values of alpha from 0 to 1")
    one = rows[min(rows)]
    scored = AlphaScores({x: records_of(row) for x, row in rows.items()}, balanced=AVERAGE in one["scores"])
    figure, ((axis,),) = draw.canvas(COLUMN, 0.95 * COLUMN)
    data: AlphaCurves = {"alpha": scored.x, "accuracy": {}, "stderr": {}}
    for k, name in enumerate([*scored.categories, AVERAGE]):
        line = scored.line(name)
        black = name == AVERAGE
        tooltips = [f"alpha {x}: {name} {m.formatted(2)}" for x, m in zip(scored.x, line, strict=True)]
        color, marker = ("black", "o") if black else (COLORS[k % 6], MARKERS[k % len(MARKERS)])
        band = [m.stderr for m in line] if black else None
        width = 1.8 if black else 1.0
        draw.curve(axis, scored.x, [m.value for m in line], tooltips, color, marker, name.replace("_", " "), band, linewidth=width)
        data["accuracy"][name], data["stderr"][name] = [m.value for m in line], [m.stderr for m in line]
    axis.set(xlabel="alpha (0: CLIPscore alone, 1: CLSsim alone)", ylabel="accuracy (%)", xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, columnspacing=1)
    failed = len(study.rows) - len(study.done)
    kind = "the mean of the categories" if AVERAGE in one["scores"] else "over all questions"
    caption = (
        f"Accuracy of HERO against alpha, a line a category; black: the average, {kind}, with a band of a standard error over images."
        + (f" {failed} points were not measured and are left out." if failed else "")
    )
    name = get_class(study.settings.benchmark["_target_"]).name  # type: ignore[attr-defined]
    measured_on = draw.measured_on(one["backbone"], name, scored.count(AVERAGE))
    return Drawing({study.name: figure}, data, claims(scored), caption, measured_on)
