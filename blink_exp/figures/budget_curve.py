"""Accuracy against the visual tokens that a layer holds, a line a method, with controls that anything should beat."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypedDict

from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLORS, PAGE, Claim, Drawing, Study

MARKERS = "osD^vPX*"
CONTROL = "#8a8a8a"
APART = 1.2  # least ratio of two budgets whose numbers stand beside each other


class BudgetCurves(TypedDict):
    """``untouched``: the whole model's score; ``methods``: {method: {"tokens a layer", ``score`` or "stderr": one for each budget}}."""

    score: str
    untouched: float | None
    methods: dict[str, dict[str, list[Any]]]


def tokens_of(run: PointRun) -> float:
    """Visual tokens a layer, averaged over the LLM: measured, not the budget that was asked for."""
    return float(run["tokens"]["layer"])


@draw.styled()
def curves(study: Study, untouched: str, controls: list[str]) -> Drawing:
    """A line for each ``series`` of the points; ``untouched``: the series of the whole model, a dashed level; ``controls``: series drawn in
    grey. The score is the benchmark's headline."""
    series: dict[str, list[PointRun]] = {}
    scored = [run for run in study.done if run["scores"].get(run["headline"]) is not None]
    for run in scored:
        series.setdefault(run["series"], []).append(run)
    lines = {name: sorted(runs, key=tokens_of) for name, runs in series.items() if name != untouched}
    if not lines:
        why = next((f": {row['error']}" for row in study.rows if row["status"] == "failed"), "")
        raise UserError(f"{study.name} has no point with a score{why}")
    one = next(iter(lines.values()))[0]
    score = one["headline"]
    figure, ((axis,),) = draw.canvas(PAGE, 0.55 * PAGE)
    data: BudgetCurves = {"score": score, "untouched": None, "methods": {}}
    if whole := series.get(untouched):
        data["untouched"] = whole[0]["scores"][score]
        axis.axhline(data["untouched"], color="black", linewidth=0.8, linestyle="--", label=untouched)
    shown = [name for name in lines if name not in controls]
    for name, runs in lines.items():
        x, y, error = [tokens_of(r) for r in runs], [r["scores"][score] for r in runs], [r["stderr"].get(score) for r in runs]
        data["methods"][name] = {"tokens a layer": x, score: y, "stderr": error}
        control = name in controls
        k = controls.index(name) if control else shown.index(name)
        color, marker = (CONTROL, "+x1"[k % 3]) if control else (COLORS[k % len(COLORS)], MARKERS[k % len(MARKERS)])
        style = {"linestyle": ":" if control else "-" if k < len(COLORS) else "-."}
        tooltips = [f"{name}: {tokens:.1f} tokens a layer, {value:.1f}" for tokens, value in zip(x, y, strict=True)]
        draw.curve(axis, x, y, tooltips, color, marker, name, None, **style)
    axis.set(xlabel="visual tokens a layer, averaged over the LLM", ylabel=score)
    axis.set_xscale("log", base=2)
    ticks = ticks_of([round(x) for line in data["methods"].values() for x in line["tokens a layer"]])
    axis.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axis.minorticks_off()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False)
    errors = [e for line in data["methods"].values() for e in line["stderr"] if e is not None]
    left_out = len(study.rows) - len(scored)
    caption = (
        f"{score} against visual tokens a layer (measured, logarithmic), a line a method; grey and dotted: controls; dashed: the untouched "
        "model."
        + (f" A point's standard error is at most {max(errors):.1f}." if errors else "")
        + (f" {left_out} points have no score and are left out." if left_out else "")
    )
    return Drawing(
        {study.name: figure}, data, claims(data, controls), caption, draw.measured_on(one["backbone"], one["benchmark"], one["samples"])
    )


def ticks_of(budgets: list[int]) -> list[int]:
    """The budgets that most lines have, without those whose numbers would be written over another's."""
    chosen: list[int] = []
    for budget, _ in Counter(budgets).most_common():
        if all(max(budget, other) >= APART * min(budget, other) for other in chosen):
            chosen.append(budget)
    return sorted(chosen)


def claims(data: BudgetCurves, controls: list[str]) -> list[Claim]:
    """Numbers alone: how many methods are above every control at their smallest budget. Budgets differ a little, so nothing is tested here;
    the tables do (rivals_llava, rivals_next)."""
    score, least = data["score"], {name: line[data["score"]][0] for name, line in data["methods"].items()}
    beside = [least[name] for name in controls if name in least]
    methods = {name: value for name, value in least.items() if name not in controls}
    if not beside or not methods:
        return []
    numbers = {"best control": max(beside), "best method": max(methods.values())}
    numbers["methods above it"] = float(sum(value > max(beside) for value in methods.values()))
    return [
        Claim(
            "Methods beat the controls at the smallest budget",
            f"{score} at the smallest budget of each of {len(methods)} methods",
            numbers,
            None,
        )
    ]
