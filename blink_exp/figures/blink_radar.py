"""Blink, Fig. 4: subtask scores when the most attended patch is copied at one layer, against the untouched model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blink_exp.benchmarks import mme, mosaic_mme
from blink_exp.documents.records import Record
from blink_exp.figures.base import COLORS, PAGE, Claim, Drawing, Study, records_of
from blink_exp.figures.shared import point_measured_on, styled, tip
from blink_exp.figures.verdicts import RULE, Gains, combined_verdict, gains, headline, point, verdict

GROUPS = {  # as MME has them, then what the scenes of this project ask in their place
    "perception": tuple(dict.fromkeys((*mme.PERCEPTION, *mosaic_mme.PERCEPTION))),
    "cognition": tuple(dict.fromkeys((*mme.COGNITION, *mosaic_mme.COGNITION))),
}
DRAWS = 1000  # of images, for the error of an area
PALETTE = (COLORS[6], *COLORS[:6])  # the untouched model in black
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def copied(study: Study, baseline: str) -> Drawing:
    """Fig. 4: a polygon a measured point, a panel a group of subtasks. ``baseline``: label of the point that areas are compared with."""
    base = point(study, baseline)
    rows = [base, *(row for row in study.done if row is not base)]
    score = headline(rows, study.name)
    runs = {row["point"]: by_subtask(records_of(row), score) for row in rows}
    panels = groups(list(runs[baseline]))
    scores = {
        name: {label: [float(np.mean(list(run[s].values()))) for s in names] for label, run in runs.items()}
        for name, names in panels.items()
    }
    few = [name for name, names in panels.items() if len(names) < 3]
    return Drawing(
        {"copied": plot(panels, scores)},
        {"subtasks": panels, "scores": scores},
        [claim(name, [{s: run[s] for s in names} for run in runs.values()], list(runs)) for name, names in panels.items()],
        "Radius: subtask score, from 0 in the middle; angle: subtask. The most attended patch is copied, enlarged, in front of the text at "
        "one layer, and stays."
        + (f" {' and '.join(few).capitalize()} has too few subtasks for a polygon here: x is the score." if few else ""),
        point_measured_on(base),
    )


def by_subtask(records: list[Record], score: str) -> Gains:
    """The contribution of each question (or pair, for benchmarks with pairs) to the score of its subtask."""
    if score == "total":
        return gains(records, score)
    categories = sorted({r["category"] for r in records})
    by_category = {k: gains([r for r in records if r["category"] == k], score)[""] for k in categories}
    return {k: v for k, v in by_category.items() if v}


def groups(subtasks: list[str]) -> dict[str, list[str]]:
    """{panel: subtasks} in MME's order; one panel for other benchmarks."""
    panels = {name: [s for s in members if s in subtasks] for name, members in GROUPS.items()}
    if sum(map(len, panels.values())) < len(subtasks):
        return {"categories": sorted(subtasks)}
    return {name: names for name, names in panels.items() if names}


def area(scores: np.ndarray) -> np.ndarray:
    """(...,) areas of polygons with (..., n) radii at equal angles; of one or two radii, which enclose nothing, their sum."""
    n = scores.shape[-1]
    sums: np.ndarray = (scores if n < 3 else scores * np.roll(scores, -1, axis=-1)).sum(-1)
    return sums if n < 3 else 0.5 * math.sin(2 * math.pi / n) * sums


def claim(panel: str, runs: list[Gains], labels: list[str]) -> Claim:
    """Whether every run but the first encloses more than the first does. The error of a change comes from drawing images anew, each with
    all of its questions and the same ones for both runs; where a subtask has a single image there is none."""
    rng = np.random.default_rng(0)
    means, drawn_means, images_ = [], [], []
    for subtask in runs[0]:
        shared = [key for key in runs[0][subtask] if all(key in run[subtask] for run in runs)]
        values = np.array([[run[subtask][key] for key in shared] for run in runs])  # (runs, questions)
        names, owner = np.unique([image for image, _ in shared], return_inverse=True)
        sums = np.stack([np.bincount(owner, row, len(names)) for row in values])  # (runs, images)
        index = rng.integers(len(names), size=(DRAWS, len(names)))
        means.append(values.mean(1))
        drawn_means.append(sums[:, index].sum(2) / np.bincount(owner)[index].sum(1))
        images_.append(len(names))
    areas, spread = area(np.stack(means, -1)), area(np.stack(drawn_means, -1))  # (runs,), (runs, draws)
    enclosed = "area enclosed" if len(runs[0]) > 2 else "sum of the scores"
    numbers: dict[str, float | None] = {f"{enclosed}, {labels[0]}": float(areas[0])}
    verdicts = []
    for label, size, draws in zip(labels[1:], areas[1:], spread[1:], strict=True):
        change, stderr = (
            (float(size / areas[0] - 1), float((draws / spread[0] - 1).std(ddof=1))) if areas[0] and spread[0].all() else (None, None)
        )
        stderr = stderr if min(images_) > 1 else None
        numbers |= {f"{label}: change": change, f"{label}: standard error": stderr}
        verdicts.append(verdict(change, stderr))
    how = (
        f"{enclosed} over {labels[0]}'s, less 1, on {len(runs[0])} subtasks, {sum(images_)} images; standard error from {DRAWS} draws of "
        f"the images. {RULE} Holds if it does for every copy."
    )
    return Claim(
        f"Copying the most attended patch at any of the layers encloses a larger area ({panel}).", how, numbers, combined_verdict(verdicts)
    )


def plot(panels: dict[str, list[str]], scores: dict[str, dict[str, list[float]]]) -> Figure:
    """One radar chart per panel with three or more subtasks, else one line of dots per subtask."""
    top = max((v for panel in scores.values() for values in panel.values() for v in values), default=1.0)
    numbers = itertools.count()
    with styled():
        figure = plt.figure(figsize=(PAGE, 3.3), layout="constrained")
        for k, (panel, names) in enumerate(panels.items()):
            enclosing = len(names) > 2
            axis: Any = figure.add_subplot(1, len(panels), k + 1, projection="polar" if enclosing else None)
            (radar if enclosing else dots)(axis, names, scores[panel], top * 1.05, numbers)
            axis.set_title(panel)
            handles = axis.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[1]), frameon=False)
    return figure


def radar(axis: Any, names: list[str], scores: dict[str, list[float]], top: float, numbers: Iterator[int]) -> None:
    """One polygon per run; the first is dashed and drawn on top."""
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    for j, (label, values) in enumerate(scores.items()):
        line = {"linewidth": 1.6, "linestyle": (0, (3, 3)), "zorder": 4} if j == 0 else {"linewidth": 1.2, "zorder": 3}
        axis.plot([*angles, angles[0]], [*values, values[0]], color=PALETTE[j % len(PALETTE)], **line)
        plot_points(axis, j, label, names, values, angles, values, numbers)
    axis.set_xticks(angles, [name.replace("_", "\n") for name in names])
    axis.set_ylim(0, top)
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_rlabel_position(180 / len(names))
    axis.tick_params(axis="y", labelsize=6, colors="#555555")
    axis.tick_params(axis="x", pad=7)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines["polar"].set_color("#aaaaaa")


def dots(axis: Any, names: list[str], scores: dict[str, list[float]], top: float, numbers: Iterator[int]) -> None:
    """One line per subtask, the runs stacked vertically."""
    for j, (label, values) in enumerate(scores.items()):
        plot_points(axis, j, label, names, values, values, [i + 0.12 * j for i in range(len(names))], numbers)
    axis.set_yticks([i + 0.06 * (len(scores) - 1) for i in range(len(names))], [name.replace("_", "\n") for name in names])
    axis.set(xlabel="subtask score", xlim=(0, top), ylim=(-0.5, len(names) - 0.15))
    axis.set_box_aspect(0.6)


def plot_points(
    axis: Any, run: int, label: str, names: list[str], values: list[float], x: list[float], y: list[float], numbers: Iterator[int]
) -> None:
    """The points of a run, each with its exact value as a tooltip."""
    for name, value, a, b in zip(names, values, x, y, strict=True):
        legend_entry = {"label": label} if name == names[0] else {}
        style = {"color": PALETTE[run % len(PALETTE)], "markersize": 4, "zorder": 3, "linestyle": "none"}
        axis.plot(
            [a], [b], marker=MARKERS[run % len(MARKERS)], gid=tip(f"{label}, {name}: {value:.2f}", next(numbers)), **style, **legend_entry
        )
