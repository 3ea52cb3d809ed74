"""How pictures are drawn: the saliency ratio by layer, what Blink does to an image, which tokens of it stay, what CLS attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.saliency import PatchGrid

COLORS = {"expand": "#1a9850", "drop": "#d73027", "keep": "#777777"}


def rho_by_layer(profile: dict[str, Any], selected: list[int], path: Path) -> Path:
    """Fig. 3: mean saliency ratio by layer (line), the share of right patches (dots), the selected layers (shaded)."""
    figure, axis = plt.subplots(figsize=(8, 3))
    layers = range(len(profile["rho"]))
    if selected:
        axis.axvspan(min(selected) - 0.5, max(selected) + 0.5, color="#fee08b", alpha=0.5, label=f"layers {min(selected)}-{max(selected)}")
    axis.plot(layers, profile["rho"], color="#762a83", label="saliency ratio rho (mean)")
    if profile["hit"][0] is not None:
        axis.plot(
            layers, profile["hit"], "o", color="#d73027", markersize=4, label="share of questions whose most salient patch is the right one"
        )
    axis.axhline(0.25, color="#999999", linewidth=0.8, linestyle=":")
    axis.set(xlabel="decoder layer (0-based)", ylim=(0, 1.05), xlim=(-0.5, len(profile["rho"]) - 0.5))
    axis.legend(fontsize=8, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def decisions(image: Image.Image, record: dict[str, Any], grid: PatchGrid, path: Path) -> Path:
    """One sample: the image, then a panel a layer with the most salient patch, rho, the decision, and the tokens that it leaves."""
    steps = record["layers"]
    figure, axes = plt.subplots(1, len(steps) + 1, figsize=(1.45 * (len(steps) + 1), 2.5))
    w, h = image.size
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=8)
    for left, top, right, bottom in record["regions"][:1]:
        axes[0].add_patch(
            Rectangle((left * w, top * h), (right - left) * w, (bottom - top) * h, fill=False, edgecolor="black", linestyle="--")
        )
    for axis, step in zip(axes[1:], steps, strict=True):
        left, top, right, bottom = grid.box(step["region"])
        color = COLORS[step["decision"] if step["effective"] else "keep"]
        axis.imshow(image, alpha=0.35)
        box = (int(left * w), int(top * h), int(right * w), int(bottom * h))
        if step["decision"] == "expand":
            axis.imshow(image.crop(box), extent=(box[0], box[2], box[3], box[1]))
        axis.set(xlim=(0, w), ylim=(h, 0))
        axis.add_patch(Rectangle((left * w, top * h), (right - left) * w, (bottom - top) * h, fill=False, edgecolor=color, linewidth=2.5))
        said = step["decision"] if step["effective"] else "keep"
        axis.set_title(f"layer {step['layer']}\nrho {step['rho']:.2f}\n{said}", fontsize=8, color=color)
        axis.set_xlabel(f"{step['visual_tokens']} tokens", fontsize=7)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    verdict = "right" if record["correct"] else "wrong"
    figure.suptitle(f"“{record['question']}”  answer: {record['answer']}, said: {record['prediction']} ({verdict})", fontsize=9, y=1.02)
    return _save(figure, path)


def kept(image: Image.Image, record: dict[str, Any], panels: list[tuple[str, Any, Any]], path: Path) -> Path:
    """Fig. 6 of HERO: the image, then a column a panel (label, tiles, thumbnail): maps of values in 0 to 1 over the whole image, where 1
    shows it and 0 darkens it; no tiles: None. The tiles stand above, the thumbnail below."""
    tiled = any(tiles is not None for _, tiles, _ in panels)
    w, h = image.size
    width = 1.7 if w >= h else 1.2
    size = (width * (len(panels) + 1), (1 + tiled) * width * h / w + 0.6)
    figure, axes = plt.subplots(1 + tiled, len(panels) + 1, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    axes[0][0].imshow(image)
    axes[0][0].set_title("image", fontsize=8)
    for left, top, right, bottom in record["regions"]:
        box = Rectangle((left * w, top * h), (right - left) * w, (bottom - top) * h, fill=False, edgecolor="black", linestyle="--")
        axes[0][0].add_patch(box)
    for axis in axes[1:, 0]:
        axis.axis("off")
    for column, (label, *both) in zip(axes[:, 1:].T, panels, strict=True):
        column[0].set_title(label, fontsize=8)
        for axis, values in zip(column, both if tiled else both[1:], strict=True):
            axis.imshow(image)
            if values is not None:
                fade = np.full((*values.shape, 4), 0.3)
                fade[..., 3] = 0.85 * (1 - np.asarray(values))
                axis.imshow(fade, extent=(0, w, h, 0), interpolation="nearest")
    figure.suptitle(f"“{record['question']}”  answer: {record['answer']}", fontsize=9)
    return _save(figure, path)


def maps(image: Image.Image, values: list[Any], path: Path, columns: int = 9) -> Path:
    """Figs. 8 and 9 of HERO: the image, stretched as the thumbnail is, and a (rows, columns) map a layer, counted from 1."""
    rows = -(-(len(values) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.2 * columns, 1.35 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(image.resize((256, 256)))
    axes.flat[0].set_title("image", fontsize=8)
    for number, (axis, value) in enumerate(zip(axes.flat[1:], values, strict=False), start=1):
        axis.imshow(value, vmin=0, cmap="viridis", interpolation="nearest")
        axis.set_title(f"layer {number}", fontsize=8)
    return _save(figure, path)


def stack(paths: list[Path], path: Path) -> Path:
    """Pictures below each other on white, as one."""
    images = [Image.open(p).convert("RGB") for p in paths]
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, ((sheet.width - image.width) // 2, top))
        top += image.height
    sheet.save(path, optimize=True)
    return path


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path
