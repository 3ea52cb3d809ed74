"""What Blink does to an image, layer by layer: scan, expansion and drop. The README's picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.records import LayerStep, Record
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import prepare
from blink_exp.evaluation.results import settings_of
from blink_exp.figures.base import Claim, Drawing, Study, records_of
from blink_exp.figures.shared import measured_on, square, styled, tip

EDGE = {"expand": "#009E73", "drop": "#D55E00", "keep": "#777777"}  # of Okabe and Ito's, as the other figures'
WIDTH = 1.05  # inches a panel

Example = tuple[Image.Image, Record]


def decisions(study: Study, images: int = 3) -> Drawing:
    """``images`` questions of the first Blink point, in one picture."""
    row = next((r for r in study.done if r["method"] in ("blink", "blink_interp")), None)
    if row is None:
        raise UserError(f"figure={study.name} needs a measured point with method=blink; see the points that failed")
    backbone, method, benchmark = prepare(settings_of(row["folder"]))
    assert method.policy is not None
    grid = PatchGrid(method.policy.p, *backbone.grid)
    records = records_of(row)
    samples = {s.id: s for s in benchmark.samples()}
    chosen_examples = [(square(backbone, samples[r["id"]].image()), r) for r in examples(records, worked_on, images)]
    return Drawing(
        {"blink": sheet(chosen_examples, grid)},
        {"decisions": {r["id"]: r["layers"] for _, r in chosen_examples}, "shares": by_decision(records)},
        [at_work(records)],
        "A row a question: the image with what is asked about (dashed), then a panel a layer. Box: the most attended patch; rho: its share "
        "of the visual attention. Green: it is expanded, and shown clear. Orange: what was expanded is dropped. Grey: nothing is done. "
        "Below: visual and expanded tokens that the layer works on. Drawn: right answers in whose course an expansion is made and taken "
        "back, where there are any.",
        measured_on(row["backbone"], benchmark.name, len(records)),
    )


def examples(records: list[Record], interest: Callable[[Record], tuple[Any, ...]], images: int) -> list[Record]:
    """``images`` records of different images, highest ``interest`` first, of different categories as far as possible."""
    ordered = sorted(records, key=interest, reverse=True)
    chosen: list[Record] = []
    for new_kind in (True, False):
        for r in ordered:
            repeated = r["category"] in {c["category"] for c in chosen}
            if r["image_id"] not in {c["image_id"] for c in chosen} and not (new_kind and repeated):
                chosen.append(r)
    return chosen[:images]


def worked_on(r: Record) -> tuple[Any, ...]:
    """Sort key: correct answers with an expansion that was dropped again come first."""
    kinds = [effective_decision(s) for s in r["layers"]]
    return ("expand" in kinds and "drop" in kinds, "expand" in kinds, bool(r["correct"]))


def effective_decision(step: LayerStep) -> str:
    """expand, drop or keep: the decision that took effect."""
    return step["decision"] if step["effective"] else "keep"


def by_decision(records: list[Record]) -> dict[str, dict[str, float]]:
    """{layer: {decision: share of questions for which it took effect}}."""
    steps: dict[int, list[str]] = {}
    for r in records:
        for s in r["layers"]:
            steps.setdefault(s["layer"], []).append(effective_decision(s))
    return {str(layer): {kind: kinds.count(kind) / len(kinds) for kind in EDGE} for layer, kinds in sorted(steps.items())}


def at_work(records: list[Record]) -> Claim:
    """The claim that regions are expanded and dropped within one forward pass, the idea of the method."""
    kinds = [[effective_decision(s) for s in r["layers"]] for r in records]
    n = max(1, len(kinds))
    both = sum("expand" in k and "drop" in k for k in kinds) / n
    numbers: dict[str, float | None] = {
        "questions with an expansion": sum("expand" in k for k in kinds) / n,
        "questions with an expansion that is dropped again": both,
        "questions with two expansions or more": sum(k.count("expand") > 1 for k in kinds) / n,
        "questions": float(len(records)),
    }
    how = "shares of questions by the decisions carried out on them; holds if there is any such question"
    return Claim("Within one pass, regions are expanded and dropped again.", how, numbers, both > 0 if records else None)


def sheet(questions: list[Example], grid: PatchGrid) -> Figure:
    """A figure with one row per question, see ``draw_one``."""
    panels = max((len(r["layers"]) for _, r in questions), default=0) + 1
    with styled():
        figure = plt.figure(figsize=(WIDTH * panels, 1.95 * max(1, len(questions))), layout="constrained")
        parts = figure.subfigures(max(1, len(questions)), 1, squeeze=False)[:, 0]
        for k, (part, (image, record)) in enumerate(zip(parts, questions, strict=False)):
            draw_one(part, image, record, grid, k)
    return figure


def draw_one(part: SubFigure, image: Image.Image, record: Record, grid: PatchGrid, number: int) -> None:
    """One question: the image, then one panel per layer with its top patch, rho, decision and tokens."""
    steps = record["layers"]
    axes = part.subplots(1, len(steps) + 1, squeeze=False)[0]
    axes[0].imshow(image, extent=(0, 1, 1, 0))
    axes[0].set_title("image\n\n")
    for left, top, right, bottom in record["regions"]:
        axes[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linestyle="--"))
    for axis, step in zip(axes[1:], steps, strict=True):
        left, top, right, bottom = grid.box(step["region"])
        decision = effective_decision(step)
        axis.imshow(image, alpha=0.35, extent=(0, 1, 1, 0))
        if decision == "expand":
            w, h = image.size
            crop = image.crop((round(left * w), round(top * h), round(right * w), round(bottom * h)))
            axis.imshow(crop, extent=(left, right, bottom, top))
        rho = "" if step["rho"] is None else f"{step['rho']:.2f}"
        tooltip = tip(f"layer {step['layer']}: rho {rho}, {decision}, {step['visual_tokens']} tokens", 100 * number + step["layer"])
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=EDGE[decision], linewidth=2.5, gid=tooltip)
        axis.add_patch(frame)
        axis.set_title(f"layer {step['layer']}\nrho {rho}\n{decision}", color=EDGE[decision])
        axis.set_xlabel(f"{step['visual_tokens']} tokens", fontsize=7)
    for axis in axes:
        axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        axis.spines[:].set_visible(True)
    verdict = {True: " (right)", False: " (wrong)"}.get(record["correct"], "")
    question = " ".join(record["question"].split())
    part.suptitle(f"“{question[:100]}”  answer: {record['answer']}, said: {record['prediction'][:40]}{verdict}", fontsize=8)
