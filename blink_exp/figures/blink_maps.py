"""Blink, Fig. 2: attention maps of the last prompt token by layer, on images with several targets."""

from __future__ import annotations

import itertools
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.benchmarks.base import Box, spread
from blink_exp.core.saliency import PatchGrid
from blink_exp.documents.records import Record
from blink_exp.evaluation.answering import prompt_of
from blink_exp.evaluation.evaluator import chosen
from blink_exp.figures.base import COLORS, PAGE, Claim, Drawing, Study
from blink_exp.figures.blink_attention import last_token_attention
from blink_exp.figures.blink_layers import layers_between, scan_records, targets
from blink_exp.figures.shared import measured_on, rounded, square, styled, tip
from blink_exp.figures.verdicts import RULE, mean
from blink_exp.methods.blink import relative_layers
from blink_exp.methods.none import none

TOP, RIGHT = COLORS[1], COLORS[0]  # boxes: of the most attended patch, of what the question is about


def by_layer(
    study: Study, layers: tuple[int, ...], images: int = 2, samples: int | None = None, middle: tuple[int, int] = (12, 26)
) -> Drawing:
    """Fig. 2. ``layers``: those that are drawn, of 32; ``images``: cases; ``samples``: about so many questions behind the claims, at most;
    ``middle``: the layers that the claims look at, of 32: those of Fig. 3, as Fig. 2 names none."""
    backbone, _, benchmark = study.load()
    questions = {s.id: s for s in spread(chosen(benchmark, study.settings), samples)}
    p = study.settings.grid.p
    grid = PatchGrid(p, *backbone.grid)
    records = scan_records(backbone, benchmark, list(questions.values()), study.settings.batch_size, p)
    panel_layers, inside = relative_layers(list(layers), backbone.depth), layers_between(*middle, backbone.depth)
    rows, data = [], []
    for record in cases(records, grid, panel_layers, images):
        sample = questions[record["id"]]
        image = sample.image()
        attention, _ = last_token_attention(
            backbone, none(), image, f"{benchmark.name}:{sample.image_id}", prompt_of(backbone, benchmark, sample), panel_layers
        )
        rows.append((square(backbone, image), record, {i: attention[i].visual for i in panel_layers}))
        data.append({"id": record["id"], "attention": {str(i): rounded(attention[i].visual.tolist(), 6) for i in panel_layers}})
    several = sum(len(targets(r, grid)) > 1 for r in records)
    chosen_by = "whose top patch moves between its targets" if several else "whose top patch moves most"
    return Drawing(
        {"attention_by_layer": plot(rows, grid)},
        {"layers": list(panel_layers), "cases": data},
        claims(records, grid, inside),
        "Attention of the last text token on the visual tokens, over the image, untouched model; each map from 0 (dark) to its own largest "
        "value (light), by square roots. Box on a map: the patch with the largest sum; on the image: what the question is about. Drawn: "
        f"questions {chosen_by}.",
        measured_on(backbone.identity, benchmark.name, len(records)),
    )


def top_patches(record: Record, layers: set[int]) -> list[int]:
    """The top patch of each of ``layers``, in order."""
    return [step["region"] for step in record["layers"] if step["layer"] in layers]


def cases(records: list[Record], grid: PatchGrid, layers: tuple[int, ...], images: int) -> list[Record]:
    """Questions to draw, on different images: right answers first, and those whose top patch takes most of several targets (most patches,
    where no question has several)."""
    several = [r for r in records if len(targets(r, grid)) > 1]

    def moves(r: Record) -> tuple[int, bool]:
        top = set(top_patches(r, set(layers)))
        return len(top & targets(r, grid) if several else top), bool(r["correct"])

    by_image: dict[str, Record] = {}
    for r in sorted(several or records, key=moves, reverse=True):
        by_image.setdefault(r["image_id"], r)
    return list(by_image.values())[:images]


def claims(records: list[Record], grid: PatchGrid, inside: set[int]) -> list[Claim]:
    """That the top patch does not stay the same over the layers ``inside``, and that it goes from one target to another."""
    where = f"Over layers {min(inside)}-{max(inside)}, Fig. 3's middle layers; Fig. 2 names none."
    tops = [top_patches(r, inside) for r in records]
    images = [r["image_id"] for r in records]
    changed = mean([float(len(set(t)) > 1) for t in tops], images)
    numbers = {
        "share of questions whose top patch changes": changed.value,
        "standard error": changed.stderr,
        "distinct top patches, mean": mean(float(len(set(t))) for t in tops).value,
        "changes from a layer to the next, share": mean(
            sum(a != b for a, b in itertools.pairwise(t)) / max(1, len(t) - 1) for t in tops
        ).value,
        "questions": float(len(records)),
    }
    moves = Claim(
        "The most attended patch changes with depth.",
        f"{where} 1 distinct patch would be a focus that never moves. Compared: share of questions with 2 or more, with one half. {RULE}",
        numbers,
        changed.less(0.5).above,
    )
    aimed = [(t, targets(r, grid), r["image_id"]) for t, r in zip(tops, records, strict=True) if len(targets(r, grid)) > 1]
    several = mean([float(len(set(t) & right) > 1) for t, right, _ in aimed], [image for *_, image in aimed])
    on = mean(sum(x in right for x in t) / max(1, len(t)) for t, right, _ in aimed).value
    chance = mean(len(right) / grid.p**2 for _, right, _ in aimed).value
    numbers = {
        "share of questions whose top patch takes two targets or more": several.value,
        "standard error": several.stderr,
        "top patch is a target, share of layers": on,
        "the same by chance": chance,
        "questions with several targets": float(len(aimed)),
    }
    verdict = several.less(0.5).above
    if verdict and on is not None and chance is not None and on <= chance:
        verdict = False
    return [
        moves,
        Claim(
            "On an image with several targets the most attended patch goes from one to another.",
            f"{where} Questions whose annotated regions lie in two patches or more. Compared: share of them whose top patch is a different "
            f"target at different layers, with one half; does not hold where targets are on top no more often than by chance. {RULE}",
            numbers,
            verdict,
        ),
    ]


def draw_box(axis: Axes, box: Box, color: str, style: str = "-", gid: str | None = None) -> None:
    """Draws a box in relative coordinates, 0 to 1 on both axes."""
    left, top, right, bottom = box
    frame = {"fill": False, "edgecolor": color, "linewidth": 1.8, "linestyle": style, "gid": gid}
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))  # type: ignore[arg-type]


def draw_image(axis: Axes, image: Image.Image, record: Record, title: str) -> None:
    """The image with boxes on the annotated regions, and the question below it."""
    axis.imshow(image, extent=(0, 1, 1, 0))
    for box in record["regions"]:
        draw_box(axis, box, RIGHT, "--")
    axis.set_title(title)
    lines = textwrap.wrap(" ".join(record["question"].split()), 24, max_lines=3, placeholder=" ...")
    axis.set_xlabel("\n".join(lines), fontsize=6)


def heat(axis: Axes, values: torch.Tensor, side: tuple[int, int], top: float | None = None) -> None:
    """A (n,) map of ``side`` (rows, columns), dark at 0, light at ``top`` (None: its own largest); square roots, as a few tokens hold most
    of the attention."""
    grid = np.asarray(values).reshape(side)
    scale = PowerNorm(0.5, 0, max(float(grid.max()) if top is None else top, 1e-12))
    axis.imshow(grid, norm=scale, cmap="viridis", interpolation="nearest", extent=(0, 1, 1, 0))


def plot(rows: list[tuple[Image.Image, Record, dict[int, torch.Tensor]]], grid: PatchGrid) -> Figure:
    """One row per case: the image, then one map per layer with a box on its top patch."""
    width = len(rows[0][2]) + 1
    with styled():
        figure, axes = plt.subplots(
            len(rows), width, figsize=(PAGE, (PAGE / width + 0.35) * len(rows)), squeeze=False, layout="constrained"
        )
        for k, (line, (image, record, maps)) in enumerate(zip(axes, rows, strict=True)):
            draw_image(line[0], image, record, f"case {k + 1}")
            for axis, (layer, values) in zip(line[1:], maps.items(), strict=True):
                heat(axis, values, (grid.height, grid.width))
                sums = grid.sums(values)
                region = int(sums.argmax())
                share = float(sums[region] / sums.sum())
                tooltip = tip(f"layer {layer}: the top patch has {share:.3f} of the visual attention", 100 * k + layer)
                draw_box(axis, grid.box(region), TOP, gid=tooltip)
                axis.set_title(f"layer {layer}")
                axis.set_xlabel(f"rho {share:.2f}", fontsize=7)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    return figure
