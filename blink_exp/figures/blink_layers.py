"""Blink, Fig. 3: sharpness of attention by layer of the vanilla model, and whether its top patch is the annotated one."""

from __future__ import annotations

from typing import Any, TypedDict

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Box, Sample, spread
from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.records import Record
from blink_exp.evaluation.evaluator import chosen, evaluate
from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study
from blink_exp.figures.shared import measured_on, rounded, styled, tip
from blink_exp.figures.verdicts import RULE, mean
from blink_exp.methods.blink import BlinkPolicy, blink, relative_layers


def scan_records(
    backbone: Backbone, benchmark: Benchmark, samples: list[Sample], batch_size: int, p: int = 2, saliency: str = "attention"
) -> list[Record]:
    """Records of the vanilla model with every layer scanned; the thresholds are never met, so nothing is expanded or dropped."""
    policy = BlinkPolicy(tuple(range(backbone.depth)), tau_expand=1.0, tau_drop=0.0, p=p, saliency=saliency)
    return evaluate(backbone, blink(policy), benchmark, batch_size, samples=samples, progress=True)[0]


def patch_of(box: Box, grid: PatchGrid) -> int | None:
    """Index of the patch that contains a region; None if the region spans several patches."""
    for region in range(grid.p**2):
        left, top, right, bottom = grid.box(region)
        slack = 1e-6
        if box[0] >= left - slack and box[1] >= top - slack and box[2] <= right + slack and box[3] <= bottom + slack:
            return region
    return None


def targets(record: Record, grid: PatchGrid) -> set[int]:
    """The patches that contain the annotated regions of a question; empty if a region spans several patches."""
    regions = [patch_of(box, grid) for box in record["regions"]]
    return set() if None in regions else {patch for patch in regions if patch is not None}


def layers_between(first: int, last: int, depth: int) -> set[int]:
    """Layers ``first`` to ``last`` of a 32-layer LLM, at the same relative depth of one of ``depth`` layers."""
    scaled = relative_layers([first, last], depth)
    return set(range(scaled[0], scaled[-1] + 1))


def rho_by_layer(study: Study, middle: tuple[int, int] = (12, 26), samples: int | None = None) -> Drawing:
    """Fig. 3. ``middle``: the layers, of 32, where the paper finds correct and sharp attention; ``samples``: about so many, at most."""
    backbone, _, benchmark = study.load()
    questions = spread(chosen(benchmark, study.settings), samples)
    p, scorer = study.settings.grid.p, study.settings.saliency.scorer
    records = scan_records(backbone, benchmark, questions, study.settings.batch_size, p, "attention" if scorer == "random" else scorer)
    grid = PatchGrid(p, *backbone.grid)
    means = by_layer(records, grid, backbone.depth)
    inside = layers_between(*middle, backbone.depth)
    span = f"layers {min(inside)}-{max(inside)}"
    dots = (
        f" Dots: share of the {means['annotated']} questions about one patch for which the top patch is that one."
        if means["annotated"]
        else " No dots: of no question is it annotated in which one patch its answer is."
    )
    return Drawing(
        {"rho_by_layer": plot(means, inside, 1 / p**2)},
        {"layer": list(range(backbone.depth)), **means, "chance": 1 / p**2},
        claims(records, grid, inside),
        "x: decoder layer (0-based). Line: attention of the last text token on the most attended patch, over its attention on all visual "
        f"tokens, mean over {means['questions']} questions, untouched model.{dots} Shaded: {span}. Dotted: chance, one of {p * p} patches.",
        measured_on(backbone.identity, benchmark.name, means["questions"]),
    )


class LayerCurves(TypedDict):
    """``rho``: mean by layer; ``hit``: by layer, the share of single-patch questions whose top patch is that patch (None without such
    questions); ``annotated``: number of single-patch questions; ``questions``: number of all."""

    rho: list[Any]
    hit: list[Any]
    annotated: int
    questions: int


def by_layer(records: list[Record], grid: PatchGrid, depth: int) -> LayerCurves:
    rho: list[list[float]] = [[] for _ in range(depth)]
    hit: list[list[bool]] = [[] for _ in range(depth)]
    for record in records:
        right = targets(record, grid)
        for step in record["layers"]:
            rho[step["layer"]].append(step["rho"])
            if len(right) == 1:
                hit[step["layer"]].append(step["region"] in right)
    means = [[sum(v) / len(v) if v else None for v in values] for values in (rho, hit)]
    return {"rho": rounded(means[0]), "hit": rounded(means[1]), "annotated": len(hit[0]), "questions": len(records)}


def claims(records: list[Record], grid: PatchGrid, inside: set[int]) -> list[Claim]:
    """Both halves of what the paper says of the middle layers ``inside``, each as a mean within less the mean over the other layers."""
    name = f"layers {min(inside)}-{max(inside)}"
    aimed = [r for r in records if len(targets(r, grid)) == 1]
    out = []
    for word, statement, rows in (
        ("hit", f"The most attended patch is the right one more often in {name} than in the other layers.", aimed),
        ("rho", f"The most attended patch holds a larger share of the attention in {name} than in the other layers.", records),
    ):
        pairs = []
        for r in rows:
            right = targets(r, grid)
            values = {s["layer"]: float(s["region"] in right) if word == "hit" else s["rho"] for s in r["layers"]}
            within = [v for layer, v in values.items() if layer in inside]
            others = [v for layer, v in values.items() if layer not in inside]
            if within and others:
                pairs.append((sum(within) / len(within), sum(others) / len(others), r["image_id"]))
        images = [image for *_, image in pairs]
        gap = mean([a - b for a, b, _ in pairs], images)
        numbers = {
            f"{word} in {name}": mean([a for a, _, _ in pairs]).value,
            f"{word} in the others": mean([b for _, b, _ in pairs]).value,
            "difference": gap.value,
            "standard error": gap.stderr,
            "questions": float(len(pairs)),
        }
        measure = "share of layers whose top patch is the annotated one" if word == "hit" else "mean share of the top patch"
        how = f"{measure}, question by question, in {name} less in the others; standard error over {len(set(images))} images. {RULE}"
        out.append(Claim(statement, how, numbers, gap.above))
    return out


def plot(curves: LayerCurves, inside: set[int], chance: float) -> Figure:
    """Plots the result of ``by_layer`` as Fig. 3."""
    layers = range(len(curves["rho"]))
    with styled():
        figure, axis = plt.subplots(figsize=(COLUMN, 2.2), layout="constrained")
        axis.axvspan(min(inside) - 0.5, max(inside) + 0.5, color="#eeeeee", zorder=0)
        axis.axhline(chance, color="#777777", linewidth=0.8, linestyle=":", zorder=1)
        axis.plot(layers, curves["rho"], color=COLORS[3], label="top patch / all visual attention")
        for layer, value in enumerate(curves["rho"]):
            axis.plot(layer, value, "o", color=COLORS[3], markersize=1.5, gid=tip(f"layer {layer}: {value:.3f} of visual attention", layer))
        for layer, value in enumerate(curves["hit"]):
            if value is not None:
                name = "top patch is the right one" if layer == 0 else None
                tooltip = f"layer {layer}: right patch on top in {value:.3f} of questions"
                axis.plot(layer, value, "o", color=COLORS[1], markersize=3.5, linestyle="none", label=name, gid=tip(tooltip, layer))
        axis.set(xlabel="decoder layer", ylabel="share", xlim=(-0.7, len(curves["rho"]) - 0.3), ylim=(0, 1))
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.2, columnspacing=1.0)
    return figure
