"""Blink, Fig. 7: what the choice of layers does to the total, for ranges that start late or end late, and for single layers."""

from __future__ import annotations

import itertools
from typing import TypedDict

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study, records_of
from blink_exp.figures.shared import point_measured_on, styled, tip
from blink_exp.figures.verdicts import RULE, Gains, Mean, contrast, gains, headline, point, verdict

Curve = dict[int, Gains]  # by start, end or single layer


class RangeChange(TypedDict):
    """The change of the score at a start, end or single layer ``x``."""

    x: int
    change: float | None
    stderr: float | None


def layer_ranges(study: Study, baseline: str, start: str, end: str, single: str, default: tuple[int, int] = (12, 18)) -> Drawing:
    """Fig. 7. ``baseline``: label of the point that changes are taken from; ``start``, ``end``, ``single``: the figure's series, whose x is
    the first layer (the last being ``default``'s), the last layer (the first being ``default``'s), and the only one."""
    base, default = point(study, baseline), (default[0], default[1])  # from YAML it comes as a list
    series = {name: [r for r in study.done if r.get("series") == name] for name in (start, end, single)}
    score = headline([base, *itertools.chain(*series.values())], study.name)
    untouched = gains(records_of(base), score)
    curves = {name: {int(r["x"]): gains(records_of(r), score) for r in rows} for name, rows in series.items()}
    data = {name: changes(curve, untouched) for name, curve in curves.items()}
    left_out = sum(r["status"] != "done" for r in study.rows)
    return Drawing(
        {"layer_ranges": plot([data[start], data[end]], data[single], default, score)},
        {"score": score, "series": data, "baseline": base["scores"][score]},
        claims(curves[start], curves[end], curves[single], untouched, default),
        f"Change of {score} against {baseline} on the same questions. Above, x: first layer of ranges that end at {default[1]}; below, x: "
        f"last layer of ranges that start at {default[0]}; in both, one layer alone at x. Dashed: the default {default[0]}-{default[1]}. "
        "Bands: one standard error of the paired change." + (f" {left_out} points failed and are left out." if left_out else ""),
        point_measured_on(base),
    )


def changes(curve: Curve, untouched: Gains) -> list[RangeChange]:
    """A curve's points in order of x."""
    gaps = {x: contrast([curve[x]], [untouched]) for x in sorted(curve)}
    return [{"x": x, "change": gap.value, "stderr": gap.stderr} for x, gap in gaps.items()]


def claims(start: Curve, end: Curve, single: Curve, untouched: Gains, default: tuple[int, int]) -> list[Claim]:
    """The paper's four sentences on Fig. 7, each as a difference of means over points, paired question by question."""

    def compare(statement: str, first: str, a: list[Gains], second: str, b: list[Gains], sign: int = 1) -> Claim:
        gap = contrast(a, b)
        numbers = {
            f"mean change, {first}": contrast(a, [untouched]).value,
            f"mean change, {second}": contrast(b, [untouched]).value,
            "difference": gap.value,
            "standard error": gap.stderr,
            "points": float(len(a) + len(b)),
        }
        how = f"mean over points: {first} less {second}, the same questions; standard error over images. {RULE}"
        return Claim(statement, how, numbers, verdict(None if gap.value is None else sign * gap.value, gap.stderr))

    def runs_between(curve: Curve, first: int, last: int) -> list[Gains]:
        return [curve[x] for x in sorted(curve) if first <= x <= last]

    best, ranges = range_default(start, end, untouched, default)
    return [
        compare(
            "A single layer of 7-26 gives a better total than one of the early layers 4-6.",
            *("layers 7-26", runs_between(single, 7, 26), "layers 4-6", runs_between(single, 4, 6)),
        ),
        compare(
            f"Ranges that end at {default[1]} do better without layers 4-9.",
            *("starts from 10 on", runs_between(start, 10, default[1]), "starts 4-9", runs_between(start, 4, 9)),
        ),
        compare(
            f"Ranges that start at {default[0]} lose when layers 14-18 are included.",
            *("ends 14-18", runs_between(end, 14, 18), "ends up to 13", runs_between(end, default[0], 13)),
            sign=-1,
        ),
        Claim(
            f"The range {default[0]}-{default[1]} is effective, though not the best.",
            f"change against the untouched model, and the best of {ranges} ranges. Holds by the change alone. {RULE}",
            best,
            verdict(best["change"], best["standard error"]),
        ),
    ]


def range_default(start: Curve, end: Curve, untouched: Gains, default: tuple[int, int]) -> tuple[dict[str, float | None], int]:
    """(numbers of the default range among all, how many ranges there are)."""
    ranges = {(x, default[1]): run for x, run in start.items()} | {(default[0], x): run for x, run in end.items()}
    gaps = {key: contrast([run], [untouched]) for key, run in ranges.items()}
    default_gap = gaps.get(default, Mean(None, None, 0))
    values = [gap.value for gap in gaps.values() if gap.value is not None]
    better = None if default_gap.value is None else float(sum(change > default_gap.value for change in values))
    best = max(values, default=None)
    return {
        "change": default_gap.value,
        "standard error": default_gap.stderr,
        "best change of all ranges": best,
        "ranges above it": better,
    }, len(ranges)


def plot(ranges: list[list[RangeChange]], single: list[RangeChange], default: tuple[int, int], score: str) -> Figure:
    """Two panels, one below the other: ranges by first layer, ranges by last layer, each with the single layers of its x."""
    labels = (f"range x to {default[1]}", f"range {default[0]} to x")
    titles = (f"first layer (last: {default[1]})", f"last layer (first: {default[0]})")
    with styled():
        figure, axes = plt.subplots(2, 1, figsize=(COLUMN, 3.9), layout="constrained", sharey=True)
        count = itertools.count()
        for axis, line, label, title, mark in zip(axes, ranges, labels, titles, default, strict=True):
            axis.axhline(0, color="#777777", linewidth=0.8)
            axis.axvline(mark, color="#777777", linewidth=0.8, linestyle="--")
            positions = {p["x"] for p in line} or {p["x"] for p in single}
            alone = [p for p in single if min(positions, default=0) <= p["x"] <= max(positions, default=0)]
            for points, color, style, name in ((line, COLORS[0], "o-", label), (alone, COLORS[1], "s-", "layer x alone")):
                measured = [(p["x"], p["change"], p["stderr"]) for p in points if p["change"] is not None]
                x, y = [at for at, _, _ in measured], [change for _, change, _ in measured]
                error = [stderr or 0.0 for *_, stderr in measured]
                low, high = ([a + sign * e for a, e in zip(y, error, strict=True)] for sign in (-1, 1))
                axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
                axis.plot(x, y, style[1], color=color, linewidth=1.2)
                for at, change, stderr in measured:
                    tooltip = f"{name.replace('x', str(at))}: {change:+.2f}" + ("" if stderr is None else f" ± {stderr:.2f}")
                    axis.plot(at, change, style[0], color=color, markersize=3, gid=tip(tooltip, next(count)))
                axis.plot([], [], style, color=color, markersize=3, linewidth=1.2, label=name)
            axis.set(xlabel=title, ylabel=f"change of {score}")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0)
    return figure
