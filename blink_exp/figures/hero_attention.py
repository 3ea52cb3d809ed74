"""What CLIP's CLS token attends to at every layer, on an image with one clear object (HERO, Fig. 8) and on a cluttered one (Fig. 9).

The paper shows one image of each kind. Here its statements are numbers by layer over many images of both kinds: how spread attention is
(entropy), how far it has collapsed on few tokens (share of the top tenth), and how well it covers the foreground (IoU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import cover, iou, on_view
from blink_exp.benchmarks.mosaic_saliency import CLEAR, CLUTTERED, KINDS
from blink_exp.errors import UserError
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLORS, PAGE, Claim, Drawing, Study
from blink_exp.figures.hero_measures import annotation_mask, block, cls_attention_maps, layer_names, pictures_of
from blink_exp.figures.verdicts import RULE, RULES, Mean, combined_verdict, differences, mean, values
from blink_exp.methods.budgets import top

MEASURES = {"entropy": "entropy of CLS attention\n(1: even)", "peak": "share of the top 10 %\nof tokens", "iou": "IoU with\nthe foreground"}
# (first, last) layer of 24: what the paper calls initial, early-middle, midpoint and later layers, and the end. Not given; chosen from its
# words: layer 4 covers the ship already, layer 9 the street, layers 6-10 the objects of Fig. 4, and 12 is the middle.
INITIAL, FOCUSED, MIDDLE, LATER, END = (1, 3), (4, 10), (11, 14), (15, 22), (23, 24)


@dataclass(frozen=True)
class ImageMeasures:
    """One image: its kind (None: neither), the share of the view that its foreground covers (None: no mask), and {measure: (layers,)}; NaN
    where there is no mask."""

    sample: Sample
    kind: str | None
    share: float | None
    by_layer: dict[str, np.ndarray]


def measures(maps: torch.Tensor, covered: torch.Tensor | None) -> dict[str, np.ndarray]:
    """{measure: (layers,)} of (layers, N) attention, of which the foreground covers (N,) shares of the patches.

    Entropy over that of even attention; the share that the ceil(N / 10) largest hold; IoU of as many patches as the foreground covers, so
    that a perfect layer has 1 however large the object is.
    """
    n = maps.shape[1]
    p = maps.double() / maps.double().sum(1, keepdim=True)
    entropy = -(p * p.clamp(min=1e-300).log()).sum(1) / math.log(n)
    peak = p.topk(math.ceil(n / 10)).values.sum(1)
    ious = np.full(len(maps), np.nan)
    if covered is not None and bool(covered.any()):
        k = max(1, round(float(covered.sum())))
        ious = np.asarray([iou(covered, top(row, k)) for row in p])
    return {"entropy": entropy.numpy(), "peak": peak.numpy(), "iou": ious}


def measure_images(backbone: Backbone, samples: Sequence[Sample]) -> list[ImageMeasures]:
    """What is measured of each image, and its kind: the benchmark's own word or, where it has none, by what the foreground covers of the
    view: the largest third is clear, the smallest cluttered."""
    images = []
    for sample, image, attention in cls_attention_maps(backbone, samples):
        mask = annotation_mask(sample, image.size)
        covered = cover(on_view(backbone, mask), backbone.grid[0]) if mask is not None else None
        share = float(covered.mean()) if covered is not None else None
        images.append(
            ImageMeasures(sample, sample.category if sample.category in KINDS else None, share, measures(attention.mean(1), covered))
        )
    if any(one.kind for one in images):
        return images
    shares = sorted(one.share for one in images if one.share is not None)
    if len(shares) < 3:
        return images
    low, high = shares[len(shares) // 3 - 1], shares[-(len(shares) // 3)]
    return [ImageMeasures(one.sample, third(one.share, low, high), one.share, one.by_layer) for one in images]


def third(share: float | None, low: float, high: float) -> str | None:
    if share is None or low < share < high:
        return None
    return CLEAR if share >= high else CLUTTERED


def stages(images: Sequence[ImageMeasures], kind: str) -> list[Claim]:
    """The paper's stages (Sec. III-B) on images of one kind, each as differences between blocks of layers within an image."""
    depth = len(images[0].by_layer["entropy"]) if images else 24
    initial, focused, middle, later, end = (block(*part, depth) for part in (INITIAL, FOCUSED, MIDDLE, LATER, END))
    before = list(range(1, later[0]))
    rest = [layer for layer in range(1, depth + 1) if layer not in focused]

    def claim(statement: str, *gaps: tuple[str, list[int], list[int]]) -> Claim:
        numbers: dict[str, Mean] = {}
        changes: dict[str, Mean] = {}
        for measure, more, less in gaps:
            a, b = (np.asarray([one.by_layer[measure][np.asarray(x) - 1].mean() for one in images]) for x in (more, less))
            numbers |= {f"{measure}, {layer_names(more)}": mean(a), f"{measure}, {layer_names(less)}": mean(b)}
            changes[f"{measure}, {layer_names(more)} less {layer_names(less)}"] = mean(a - b)
        count = min(gap.n for gap in changes.values())
        how = (
            f"Means over layers within an image, {count} {kind} images; peak: share of the top 10 % of tokens. The paper names the stages, "
            f"not their layers: these are ours. {RULES}"
        )
        return Claim(
            f"{kind} images: {statement}",
            how,
            values(numbers) | differences(changes),
            combined_verdict(gap.above for gap in changes.values()),
        )

    return [
        claim(f"attention is broad in the initial layers ({layer_names(initial)}), then narrows", ("entropy", initial, focused)),
        claim(
            f"from early to middle layers ({layer_names(focused)}) it settles on the objects",
            ("iou", focused, initial),
            ("iou", focused, rest),
        ),
        claim(f"towards the midpoint ({layer_names(middle)}) it diffuses", ("entropy", middle, focused)),
        claim(
            f"beyond it ({layer_names(later)}) it collapses on few background tokens",
            ("peak", later, before),
            ("iou", focused, later),
        ),
        claim(f"in the final layers ({layer_names(end)}) it relaxes", ("peak", later, end)),
    ]


def best_layers(clear: Sequence[ImageMeasures], cluttered: Sequence[ImageMeasures]) -> Claim:
    """Whether the layer of largest IoU differs from image to image. The paper says no more (ship: layer 4, street: layer 9); whether it
    comes later on cluttered images is a number beside it."""
    groups = {kind: [one.by_layer["iou"] for one in images] for kind, images in zip(KINDS, (clear, cluttered), strict=True)}
    groups = {kind: [row for row in rows if not np.isnan(row).any()] for kind, rows in groups.items()}
    numbers: dict[str, float | None] = {}
    best = {kind: mean(float(row.argmax()) + 1 for row in rows) for kind, rows in groups.items()}
    for kind, rows in groups.items():
        numbers[f"best layer by mean IoU, {kind}"] = int(np.mean(rows, axis=0).argmax()) + 1 if rows else None
        numbers[f"mean of each image's best layer, {kind}"] = best[kind].value
    a, b = best[CLEAR], best[CLUTTERED]
    layers = [int(row.argmax()) + 1 for rows in groups.values() for row in rows]
    commonest = max(sorted(set(layers)), key=layers.count, default=None)
    other = mean(float(layer != commonest) for layer in layers)
    numbers |= {"commonest best layer": commonest} | differences(
        {"share of images with another": other, "later if cluttered, by": a.below(b)}
    )
    return Claim(
        "The layer that covers the foreground best differs from image to image",
        f"Layer of largest IoU, image by image, {a.n} clear and {b.n} cluttered images. Compared: share of images whose best layer is not "
        f"the commonest one, with one half. {RULE}",
        numbers,
        other.less(0.5).above,
    )


@draw.styled()
def by_layer(study: Study, kind: str = CLEAR) -> Drawing:
    """Figs. 8 (``kind=clear``) and 9 (``cluttered``): maps of one image of that kind, a panel a layer, and the measures of both kinds."""
    if kind not in KINDS:
        raise UserError(f"figure.draw.kind={kind} is no kind of image; use {' or '.join(KINDS)}")
    backbone, _, benchmark = study.load()
    images = measure_images(backbone, pictures_of(benchmark, study.settings))
    groups = {k: [one for one in images if one.kind == k] for k in KINDS}
    example = groups[kind][0] if groups[kind] else images[0 if kind == CLEAR else -1]
    claims = stages(groups[kind] if any(groups.values()) else images, kind if any(groups.values()) else "all")
    claims.append(best_layers(groups[CLEAR], groups[CLUTTERED]))
    used = {k: rows for k, rows in groups.items() if rows} or {"all": images}
    means = {
        k: {m: [mean(float(one.by_layer[m][i]) for one in rows) for i in range(len(rows[0].by_layer[m]))] for m in MEASURES}
        for k, rows in used.items()
    }
    pictures = {study.name: maps(backbone, example), f"{study.name}_layers": curves(means)}
    data = {
        "image": example.sample.id,
        "images": {k: len(rows) for k, rows in used.items()},
        "by_layer": {k: {m: [x.value for x in row] for m, row in curves_of.items()} for k, curves_of in means.items()},
        "stderr": {k: {m: [x.stderr for x in row] for m, row in curves_of.items()} for k, curves_of in means.items()},
    }
    named_kinds = all(one.sample.category in KINDS for one in images if one.kind)
    rule = "as the benchmark names them" if named_kinds else "the thirds of images whose foreground covers most and least of the view"
    which = f"Kinds: {rule}." if any(groups.values()) else "Nothing here says which images are clear or cluttered."
    caption = (
        "Attention of the CLS token to the patches of the base view, mean over heads; a panel a CLIP layer, each from 0 (dark) to its own "
        "largest value. Below: means over many images, by CLIP layer; bands: a standard error; IoU: of as many most attended patches as "
        f"the foreground covers. {which}"
    )
    counts = " and ".join(f"{len(rows)} {k}" for k, rows in used.items())
    measured_on = draw.measured_on(backbone.identity, benchmark.name, len(images), f"images ({counts})")
    return Drawing(pictures, data, claims, caption, measured_on)


def maps(backbone: Backbone, example: ImageMeasures, columns: int = 9) -> Figure:
    """The image as the base view shows it, and a panel a layer."""
    ((_, image, attention),) = cls_attention_maps(backbone, [example.sample])
    side = backbone.grid[0]
    rows = -(-(len(attention) + 1) // columns)
    figure, axes = draw.canvas(PAGE, PAGE / columns * rows * 1.22, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(draw.base_view(backbone, image), interpolation="nearest")
    axes.flat[0].set_title("image")
    for i, (axis, row) in enumerate(zip(axes.flat[1:], attention.mean(1), strict=False)):
        axis.imshow(row.view(side, side).numpy(), vmin=0, cmap="viridis", interpolation="nearest")
        axis.set_title(f"layer {i + 1}")
        tooltip = [f"{m} {by_layer[i]:.2f}" for m, by_layer in example.by_layer.items() if not math.isnan(by_layer[i])]
        axis.images[0].set_gid(draw.tip(f"layer {i + 1}: {', '.join(tooltip)}"))
    return figure


def curves(means: dict[str, dict[str, list[Mean]]]) -> Figure:
    """A panel a measure, a line a kind of image."""
    figure, axes = draw.canvas(PAGE, 0.28 * PAGE, 1, len(MEASURES))
    for axis, (measure, label) in zip(axes[0], MEASURES.items(), strict=True):
        for (kind, measured), color, marker in zip(means.items(), (COLORS[0], COLORS[1]), "os", strict=False):
            row = measured[measure]
            layers = list(range(1, len(row) + 1))
            tooltips = [f"{kind}, layer {k}: {m.value:.3f}" if m.value is not None else "" for k, m in zip(layers, row, strict=True)]
            draw.curve(axis, layers, [m.value for m in row], tooltips, color, marker, kind, [m.stderr for m in row], markersize=2.5)
        axis.set(xlabel="CLIP layer", ylabel=label, xticks=draw.layer_ticks(len(next(iter(means.values()))[measure])))
        if not axis.lines:
            axis.annotate("no masks", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes[0][0].legend(frameon=False)
    return figure
