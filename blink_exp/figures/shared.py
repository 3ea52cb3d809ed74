"""Helpers shared by the figures of both papers: style, tooltips, curves, images with boxes, text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Box
from blink_exp.documents.runs import PointRun
from blink_exp.figures.base import STYLE, TIP
from blink_exp.files import read_object
from blink_exp.images import CANVAS_SIDE


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The look of every figure, for a ``with`` block or a function under ``@styled()``: text takes the size that is set when it is made."""
    rules: Any = STYLE  # matplotlib's own type names every rule there is
    with plt.rc_context(rules):
        yield


def tip(text: str, number: int | None = None) -> str:
    """The gid of an artist with the tooltip ``text``; ``number`` makes equal texts unique."""
    return f"{TIP}{text}" if number is None else f"{TIP}{text}#{number}"


# axes


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches and its (rows, columns) array of axes."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **settings)


def curve(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float | None],
    tooltips: Sequence[str],
    color: str,
    marker: str = "o",
    label: str | None = None,
    stderr: Sequence[float | None] | None = None,
    **line: Any,
) -> None:
    """A line through points that each say ``tooltips`` where the pointer rests, with a band of a standard error. Values that are None are
    left out."""
    present = [k for k, value in enumerate(y) if value is not None]
    xs, ys = [x[k] for k in present], [float(y[k]) for k in present]  # type: ignore[arg-type]
    size = line.pop("markersize", 3.5)
    axis.plot(xs, ys, color=color, label=label, marker=marker, markersize=size, **{"linewidth": 1.2, **line})
    if stderr is not None:
        errors = [stderr[k] or 0.0 for k in present]
        low, high = [v - e for v, e in zip(ys, errors, strict=True)], [v + e for v, e in zip(ys, errors, strict=True)]
        axis.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    for k, px, py in zip(present, xs, ys, strict=True):  # above the line's own markers, and wider, so that they are easily hit
        axis.plot([px], [py], marker="o", markersize=size + 3, color=color, alpha=0.01, linestyle="none", gid=tip(tooltips[k]))


def bare(axis: Axes, title: str | None = None) -> None:
    """Removes ticks and frame."""
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    if title:
        axis.set_title(title)


def layer_ticks(depth: int) -> list[int]:
    """The first layer and every quarter; all of them where there are few."""
    return [1, *range(depth // 4, depth + 1, depth // 4)] if depth >= 8 else list(range(1, depth + 1))


# images


def picture(axis: Axes, image: Image.Image, boxes: Sequence[Box] = (), title: str | None = None) -> None:
    """An image without ticks; annotated boxes are dashed."""
    axis.imshow(image, extent=(0, 1, 1, 0), aspect=image.height / image.width, interpolation="nearest" if max(image.size) < 512 else None)
    bare(axis, title)
    for left, top, right, bottom in boxes:
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linestyle="--", linewidth=1)
        frame.set(zorder=3, clip_on=False)  # over what a maker lays on the image, and whole at its rim
        axis.add_patch(frame)


def square(backbone: Backbone, image: Image.Image) -> Image.Image:
    """The image as the base view shows it, in its own pixels where nothing is cut off: stretched (LLaVA-NeXT's thumbnail), or cropped or
    padded by the image processor."""
    if image.width == image.height:
        return image
    return image.resize((min(max(image.size), CANVAS_SIDE),) * 2) if backbone.tiled else base_view(backbone, image)


def base_view(backbone: Backbone, image: Image.Image) -> Image.Image:
    """The pixels that the vision tower sees: cropped, padded or squeezed by the backbone's own image processor."""
    processor = backbone.processor.image_processor
    pixels = backbone.transform(image).permute(1, 2, 0).cpu().numpy() * np.array(processor.image_std) + np.array(processor.image_mean)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


# words and numbers


def shortened(text: str, most: int = 100) -> str:
    """A question on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def rounded(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Values rounded for data.json."""
    return [None if v is None else round(float(v), digits) for v in values]


def measured_on(backbone: str, benchmark: str, count: int, what: str = "questions") -> str:
    """What a figure was measured on. ``backbone``: its identity."""
    return f"{backbone}, {benchmark}, {count} {what}"


def point_measured_on(row: PointRun) -> str:
    """The same of a measured point."""
    benchmark = read_object(Path(row["folder"]) / "metrics.json", {"benchmark": str}, "measure the point again")["benchmark"]
    return measured_on(row["backbone"], benchmark, row["samples"])
