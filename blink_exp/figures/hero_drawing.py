"""Pieces that HERO's pictures share: curves that say their values, images with boxes, labels at the end of lines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from blink_exp.benchmarks.base import Box
from blink_exp.figures.base import STYLE, TIP, Drawing

Maker = Callable[..., Drawing]


def styled(maker: Maker) -> Maker:
    """A maker in the common style: text takes the size that is set when it is made."""

    @functools.wraps(maker)
    def inside(*args: Any, **kwargs: Any) -> Drawing:
        with plt.rc_context(STYLE):  # type: ignore[arg-type]
            return maker(*args, **kwargs)

    return inside


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches and its (rows, columns) array of axes."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **settings)


def curve(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float | None],
    words: Sequence[str],
    color: str,
    marker: str = "o",
    label: str | None = None,
    stderr: Sequence[float | None] | None = None,
    **line: Any,
) -> None:
    """A line through points that each say ``words`` where the pointer rests, with a band of a standard error. Values that are None are
    left out."""
    there = [k for k, value in enumerate(y) if value is not None]
    xs, ys = [x[k] for k in there], [float(y[k]) for k in there]  # type: ignore[arg-type]
    size = line.pop("markersize", 3.5)
    axis.plot(xs, ys, color=color, label=label, marker=marker, markersize=size, **{"linewidth": 1.2, **line})
    if stderr is not None:
        errors = [stderr[k] or 0.0 for k in there]
        low, high = [v - e for v, e in zip(ys, errors, strict=True)], [v + e for v, e in zip(ys, errors, strict=True)]
        axis.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    for k, px, py in zip(there, xs, ys, strict=True):  # above the line's own markers, and wider, so that they are easily hit
        axis.plot([px], [py], marker="o", markersize=size + 3, color=color, alpha=0.01, linestyle="none", gid=f"{TIP}{words[k]}")


def picture(axis: Axes, image: Image.Image, boxes: Sequence[Box] = (), title: str | None = None) -> None:
    """An image without ticks, what is asked about in dashes."""
    axis.imshow(image, extent=(0, 1, 1, 0), aspect=image.height / image.width, interpolation="nearest" if max(image.size) < 512 else None)
    bare(axis, title)
    for left, top, right, bottom in boxes:
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="black", linestyle="--", linewidth=1)
        frame.set(zorder=3, clip_on=False)  # over what a maker lays on the image, and whole at its rim
        axis.add_patch(frame)


def bare(axis: Axes, title: str | None = None) -> None:
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    if title:
        axis.set_title(title)


def layer_ticks(depth: int) -> list[int]:
    """The first layer and every quarter; all of them where there are few."""
    return [1, *range(depth // 4, depth + 1, depth // 4)] if depth >= 8 else list(range(1, depth + 1))


def shortened(text: str, most: int = 100) -> str:
    """A question on one line, cut where it is long. Dollars would begin a formula."""
    line = " ".join(text.split()).replace("$", r"\$")
    return line if len(line) <= most else f"{line[: most - 1]}…"
