"""CLIP layers compared: how alike their CLS attention is (HERO, Fig. 2), and how well it covers salient objects (Fig. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch.nn import functional as F

from blink_exp import hub
from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.mosaic_saliency import patches
from blink_exp.documents.records import Record
from blink_exp.errors import UserError, flat
from blink_exp.figures import shared as draw
from blink_exp.figures.base import COLORS, COLUMN, Claim, Drawing, Study, records_of
from blink_exp.figures.hero_measures import block, cls_attention_maps, layer_names, pictures_of
from blink_exp.figures.verdicts import RULES, combined_verdict, differences, mean, values
from blink_exp.methods.hero import relative_layers

HALVES, LAST = ((1, 12), (13, 24)), (22, 24)  # of 24 layers, as HERO says them
OBJECTS, SHALLOW = (6, 7, 8, 9, 10), (1, 12)


def similarity(attention: torch.Tensor, heads_first: bool = True) -> np.ndarray:
    """(layers, layers) cosine similarity of an image's (layers, heads, N) CLS attention: of the mean over heads or, without
    ``heads_first``, of each head, then averaged."""
    unit = F.normalize((attention.mean(1, keepdim=True) if heads_first else attention).double(), dim=-1)
    return torch.einsum("ahn,bhn->abh", unit, unit).mean(-1).numpy()


def inside(matrix: np.ndarray, layers: Sequence[int]) -> float:
    """Mean over the pairs of different layers (1-based) of a (layers, layers) matrix."""
    k = np.asarray(layers) - 1
    part = matrix[np.ix_(k, k)]
    return float((part.sum() - np.trace(part)) / (len(k) * (len(k) - 1)))


def between(matrix: np.ndarray, some: Sequence[int], others: Sequence[int]) -> float:
    """Mean over the pairs of a layer of ``some`` and one of ``others`` (1-based)."""
    return float(matrix[np.ix_(np.asarray(some) - 1, np.asarray(others) - 1)].mean())


def blocks(matrices: Sequence[np.ndarray], name: str) -> list[Claim]:
    """Two claims on (layers, layers) similarities, one an image: two blocks, and the last eighth of the layers apart from its block."""
    depth = len(matrices[0])
    early, late = (block(*half, depth) for half in HALVES)
    last = block(*LAST, depth)
    rest = [layer for layer in late if layer not in last]
    first, second, across = ([f(m) for m in matrices] for f in (_inside(early), _inside(late), lambda m: between(m, early, late)))
    gaps = [mean(np.subtract(part, across)) for part in (first, second)]
    n = len(matrices)
    alike = {f"inside {layer_names(early)}": mean(first), f"inside {layer_names(late)}": mean(second), "between them": mean(across)}
    out = [
        Claim(
            f"{name}: CLS attention is alike inside {layer_names(early)} and inside {layer_names(late)}, not between them",
            f"Mean cosine similarity over pairs of different layers, {n} images. Differences: each block less what is between. {RULES}",
            values(alike) | differences(dict(zip(("first block", "second block"), gaps, strict=True))),
            combined_verdict(gap.above for gap in gaps),
        )
    ]
    if len(rest) > 1:
        within, across_block = [inside(m, rest) for m in matrices], [between(m, rest, last) for m in matrices]
        gap = mean(np.subtract(within, across_block))
        out.append(
            Claim(
                f"{name}: {layer_names(last)} diverge slightly from the rest of their block",
                f"Mean cosine similarity inside {layer_names(rest)}, less that between them and {layer_names(last)}, {n} images. {RULES}",
                values({f"inside {layer_names(rest)}": mean(within), f"to {layer_names(last)}": mean(across_block)})
                | differences({"inside less across": gap}),
                gap.above,
            )
        )
    return out


def _inside(layers: Sequence[int]) -> Callable[[np.ndarray], float]:
    return lambda matrix: inside(matrix, layers)


@draw.styled()
def heat(study: Study, second: str | None = None, heads_first: bool = True) -> Drawing:
    """Fig. 2: cosine similarity of CLS attention, layer by layer. ``second``: folder or hub id of a CLIP to draw beside the backbone's;
    ``heads_first``: see ``similarity``."""
    backbone, _, benchmark = study.load()
    samples = pictures_of(benchmark, study.settings)
    encoders = [(f"CLIP of {backbone.name}", backbone)] + ([(second.rstrip("/").split("/")[-1], other_clip(second))] if second else [])
    figure, axes = draw.canvas(COLUMN * len(encoders), 0.85 * COLUMN, 1, len(encoders))
    claims, data, count = [], {}, 0
    for axis, (name, encoder) in zip(axes[0], encoders, strict=True):
        matrices = similarities(encoder, samples, heads_first)
        claims += blocks(matrices, name)
        average = np.mean(matrices, axis=0)
        data[name], count = average.tolist(), len(matrices)
        image = heat_map(axis, average, f"{name}, {len(average)} layers")
    figure.colorbar(image, ax=axes[0][-1], shrink=0.9).set_label("cosine similarity")
    order = "averaged over heads first" if heads_first else "each head, then averaged"
    caption = f"Cosine similarity of CLS attention to the patches of the base view between any two CLIP layers ({order}), mean over images."
    if not second:
        caption += " The paper's second panel shows another encoder (CLIP-ViT-B), which this backbone does not have: it is left empty."
    measured_on = draw.measured_on(backbone.identity, benchmark.name, count, "images")
    return Drawing({study.name: figure}, {"similarity": data}, claims, caption, measured_on)


def similarities(encoder: Any, samples: Sequence[Sample], heads_first: bool) -> list[np.ndarray]:
    return [similarity(attention, heads_first) for _, _, attention in cls_attention_maps(encoder, samples)]


def heat_map(axis: Any, matrix: np.ndarray, title: str) -> Any:
    """A (layers, layers) matrix with layer 1 at the lower left; every cell says its value where the pointer rests."""
    depth = len(matrix)
    image = axis.imshow(matrix, origin="lower", extent=(0.5, depth + 0.5) * 2, cmap="viridis", interpolation="nearest", vmax=1)
    for (a, b), value in np.ndenumerate(matrix):
        tooltip = f"layers {b + 1} and {a + 1}: {value:.3f}"
        axis.add_patch(Rectangle((b + 0.5, a + 0.5), 1, 1, facecolor="white", edgecolor="none", alpha=0.001, gid=draw.tip(tooltip)))
    axis.set(xlabel="CLIP layer", ylabel="CLIP layer", xticks=draw.layer_ticks(depth), yticks=draw.layer_ticks(depth))
    axis.set_title(title)
    return image


def other_clip(path: str) -> Any:
    """What ``cls_attention_maps`` reads of a backbone, of a CLIP alone. Raises UserError where ``path`` holds none."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    if not Path(path).is_dir():
        hub.check_connection()
    try:
        tower: Any = CLIPVisionModel.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False)
        processor = CLIPImageProcessorPil.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"figure.draw.second={path} gives no CLIP ({flat(error)}); give the folder or hub id of one, or null") from None
    config = SimpleNamespace(vision_config=tower.config, vision_feature_layer=-2, vision_feature_select_strategy="default")
    model = SimpleNamespace(model=SimpleNamespace(vision_tower=tower), config=config, device=tower.device, dtype=tower.dtype)
    return SimpleNamespace(
        model=model,
        grid=(tower.config.image_size // tower.config.patch_size,) * 2,
        check=lambda needs: None,
        transform=lambda image: processor(images=image, return_tensors="pt").pixel_values[0],
    )


def object_layers(records: list[Record], depth: int) -> Claim:
    """The claim of Fig. 4 on records with ``iou`` by layer: layers 6-10 above the others of 1-12, at relative depth."""
    rows = [{int(k): v for k, v in r["iou"].items()} for r in records if r["iou"] is not None]
    common = set.intersection(*(set(row) for row in rows)) if rows else set()
    best = sorted(relative_layers("layers", OBJECTS, depth) & common)
    rest = sorted((set(block(*SHALLOW, depth)) & common) - set(best))
    inner, outer = ([float(np.mean([row[k] for k in layers])) for row in rows] if layers else [] for layers in (best, rest))
    gap = mean(np.subtract(inner, outer) if best and rest else [])
    by_layer = {k: float(np.mean([row[k] for row in rows])) for k in sorted(common)}
    top = max(by_layer, key=by_layer.__getitem__) if by_layer else None
    best_name = f"layers {best[0]}-{best[-1]}" if best else "layers 6-10"
    return Claim(
        f"CLS attention covers salient objects better at {best_name} than at the other layers of the first half",
        f"IoU of the most attended patches with the object's mask, those layers less the others, mean over {gap.n} images. {RULES}",
        values({f"IoU, {best_name}": mean(inner), "IoU, other layers": mean(outer)})
        | differences({"difference": gap})
        | {"best layer": top},
        gap.above,
    )


@draw.styled()
def objects(study: Study) -> Drawing:
    """Fig. 4: mean IoU of the most CLS-attended patches with object masks, by CLIP layer."""
    backbone, _, benchmark = study.load()
    rows = [row for row in study.done if any(name.startswith("iou_layer_") for name in row["scores"])]
    if not rows:
        why = next((f": {row['error']}" for row in study.rows if row["status"] == "failed"), "")
        raise UserError(f"{study.name} draws object masks, which were not measured{why}; use benchmark=mosaic_saliency or duts")
    records = records_of(rows[-1])
    depth, tokens = backbone.model.config.vision_config.num_hidden_layers, backbone.grid[0] * backbone.grid[1]
    share = patches(benchmark.top, getattr(benchmark, "of", tokens), tokens) / tokens  # type: ignore[attr-defined]
    visible = [r for r in records if r["iou"] is not None]
    layers = sorted({int(k) for r in visible for k in r["iou"]})
    means = [mean(r["iou"].get(str(k), float("nan")) for r in visible) for k in layers]
    chance = mean(chance_iou(r["object"], share) for r in visible).value
    figure, ((axis,),) = draw.canvas(COLUMN, 0.62 * COLUMN)
    marked = sorted(relative_layers("layers", OBJECTS, depth))
    axis.axvspan(marked[0] - 0.5, marked[-1] + 0.5, color=COLORS[4], alpha=0.2, linewidth=0)
    tooltips = [f"layer {k}: IoU {m.formatted(3)}" for k, m in zip(layers, means, strict=True)]
    draw.curve(axis, layers, [m.value for m in means], tooltips, COLORS[0], stderr=[m.stderr for m in means])
    if chance is not None:
        axis.axhline(chance, color="#777777", linestyle=":", linewidth=1)
        axis.annotate("random patches", (layers[-1], chance), ha="right", va="bottom", fontsize=7, color="#555555")
    axis.set(xlabel="CLIP layer", ylabel="mean IoU", xticks=layers if len(layers) < 14 else layers[:: len(layers) // 8])
    axis.set_ylim(bottom=0)
    data = {"layers": layers, "iou": [m.value for m in means], "stderr": [m.stderr for m in means], "random": chance, "top": share * tokens}
    caption = (
        f"Mean IoU of the {round(share * tokens)} of {tokens} patches with most CLS attention (mean over heads) with the mask of salient "
        f"objects, by CLIP layer; band: a standard error. Shaded: {layer_names(marked)}. Dotted: as many patches at random."
    )
    measured_on = draw.measured_on(backbone.identity, benchmark.name, len(visible), "images")
    return Drawing({study.name: figure}, data, [object_layers(records, depth)], caption, measured_on)


def chance_iou(object_share: float, top_share: float) -> float:
    """IoU of patches chosen at random: the ratio of the expected areas."""
    hit = object_share * top_share
    return hit / (object_share + top_share - hit)
