"""Questions that the full view gets wrong and the close-up right, with what the tower sees of each. In no paper."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.backbone.canvas import ImageRegions, region_box
from blink_exp.backbone.model import Backbone
from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.figures.base import COLORS, Claim, Drawing, Study, records_of
from blink_exp.figures.shared import base_view, measured_on, shortened, square, styled
from blink_exp.figures.verdicts import RULE, mean

FULL, TOKENSR, CLOSE = "full view", "TokenSR", "close-up"


@dataclass(frozen=True)
class Example:
    """A question. ``answers``: {point: record}; ``region``: the patch that was expanded first; ``views``: the image, the base view as the
    tower sees it, and the close-up as the tower sees it."""

    answers: dict[str, Record]
    region: int
    views: tuple[Image.Image, Image.Image, Image.Image]


def examples(study: Study, helped: int, not_helped: int) -> Drawing:
    """The first ``helped`` questions, by id, that the full view gets wrong and the close-up right, and the first ``not_helped`` that both
    get wrong, on different images. Questions whose close-up was expanded only."""
    rows = {row["point"]: row for row in study.done}
    if not {FULL, CLOSE} <= rows.keys():
        raise UserError(f"figure={study.name} needs the points {FULL} and {CLOSE}, and one of them failed; see their errors")
    records = {point: {r["id"]: r for r in records_of(row)} for point, row in rows.items()}
    ids = [k for k in sorted(records[FULL]) if k in records[CLOSE] and expanded_first(records[CLOSE][k]) is not None]
    wrong = [k for k in ids if not records[FULL][k]["correct"]]
    used: set[str] = set()
    chosen = first_of([k for k in wrong if records[CLOSE][k]["correct"]], helped, records[FULL], used)
    chosen += first_of([k for k in wrong if not records[CLOSE][k]["correct"]], not_helped, records[FULL], used)
    backbone, _, benchmark = study.load()
    samples = {sample.id: sample for sample in benchmark.samples()}
    p = study.settings.grid.p
    drawn = [example(backbone, {point: of[k] for point, of in records.items() if k in of}, samples[k].image(), p) for k in chosen]
    grid = PatchGrid(p, *backbone.grid)
    where = measured_on(backbone.identity, benchmark.name, len(ids))
    data = {"examples": chosen, "answers": {k: {point: of[k]["prediction"] for point, of in records.items() if k in of} for k in chosen}}
    return Drawing({"closer_look": sheet(drawn, grid)}, data, [gain(records, ids)], caption(helped, not_helped), where)


def expanded_first(record: Record) -> int | None:
    """The patch of a record's first expansion; None without any."""
    return next((step["region"] for step in record["layers"] if step["decision"] == "expand"), None)


def first_of(ids: list[str], count: int, records: dict[str, Record], used: set[str]) -> list[str]:
    """The first ``count`` of ``ids`` on images that are not ``used`` yet, which are then."""
    chosen: list[str] = []
    for k in ids:
        if len(chosen) < count and records[k]["image_id"] not in used:
            used.add(records[k]["image_id"])
            chosen.append(k)
    return chosen


def example(backbone: Backbone, answers: dict[str, Record], image: Image.Image, p: int) -> Example:
    region = expanded_first(answers[CLOSE])
    assert region is not None
    crop = ImageRegions(backbone, "", image).crop(region, p)
    return Example(answers, region, (square(backbone, image), base_view(backbone, image), base_view(backbone, crop)))


def gain(records: dict[str, dict[str, Record]], ids: list[str]) -> Claim:
    """Whether the close-up answers more of the questions right on which it expanded something."""
    differences = [float(records[CLOSE][k]["correct"] or 0) - float(records[FULL][k]["correct"] or 0) for k in ids]
    change = mean(differences, [records[FULL][k]["image_id"] for k in ids])
    numbers: dict[str, float | None] = {
        "right from the close-up only": float(sum(d > 0 for d in differences)),
        "right from the full view only": float(sum(d < 0 for d in differences)),
        "mean difference": change.value,
        "standard error": change.stderr,
        "questions": float(len(ids)),
    }
    statement = "The close-up answers more questions right than the full view."
    return Claim(statement, f"share right, close-up - full view. {RULE}", numbers, change.above)


def caption(helped: int, not_helped: int) -> str:
    return (
        "A row a question: the image with what is asked about (dashed) and the patch that is expanded first (box); what the vision"
        " tower sees of the image; what it sees of that patch, cut from the image at its own resolution (the close-up)."
        f" Chosen by rule: the first {helped} questions, by id, that the full view gets wrong and the close-up right,"
        f" and the first {not_helped} that both get wrong."
    )


def sheet(drawn: list[Example], grid: PatchGrid) -> Figure:
    """A row for each example: image, base view, close-up, and the answers."""
    with styled():
        figure, axes = plt.subplots(max(1, len(drawn)), 4, figsize=(7.0, 1.75 * max(1, len(drawn))), squeeze=False, layout="constrained")
        for line, one in zip(axes, drawn, strict=False):
            draw(line, one, grid)
        for k, title in enumerate(("image", "seen of the image", "seen of the patch", "")):
            axes[0, k].set_title(title)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
        for axis in axes[:, 3]:
            axis.axis("off")
    return figure


def draw(line: list[Axes], one: Example, grid: PatchGrid) -> None:
    image, seen, close = one.views
    record = one.answers[FULL]
    line[0].imshow(image, extent=(0, 1, 1, 0))
    for left, top, right, bottom in record["regions"]:
        line[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linestyle="--"))
    left, top, right, bottom = (x / 1000 for x in region_box(one.region, grid.p, 1000, 1000))
    line[0].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=COLORS[2], linewidth=2))
    line[1].imshow(seen)
    line[2].imshow(close)
    answers = [f"{point}: {r['prediction'][:24]} ({'right' if r['correct'] else 'wrong'})" for point, r in one.answers.items()]
    text = "\n".join([shortened(record["question"], 60), f"answer: {record['answer']}", "", *answers])
    line[3].text(0.0, 0.5, text, fontsize=7, va="center", transform=line[3].transAxes)
