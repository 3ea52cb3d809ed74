"""Draws the page: pictures and maps as PNG data URIs, charts as SVG. Takes tensors and numbers, returns text; deterministic.

Maps have one pixel per cell and are scaled by the browser, so a page with a map per layer stays small. Colours come from the page's
style sheet, which supports dark mode.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Box
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.views import ViewGeometry
from blink_exp.figures import shared
from blink_exp.viewer.trace import PARTS, Stage

LONGEST = 720  # pixels on the longer side of a picture: a full-size photograph would make a page of 30 MB
HEAT = (213, 94, 0)  # Okabe and Ito's vermilion
GONE = (70, 70, 70, 217)
WIDTH = 420  # of a chart, in its own units


def png(image: Image.Image) -> str:
    """An image as a PNG data URI."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def picture(image: Image.Image) -> str:
    """A picture as a data URI, scaled down to ``LONGEST``."""
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return png(thumbnail)


def base_view(backbone: Backbone, image: Image.Image) -> str:
    """The base view as the vision tower sees it."""
    return png(shared.base_view(backbone, image))


def heat(values: torch.Tensor) -> str:
    """A (rows, columns) map of values >= 0, from transparent at 0 to opaque at the maximum; NaN (no token) is dark."""
    values_or_zero = values.nan_to_num(0.0)
    top = float(values_or_zero.max())
    out = np.zeros((*values.shape, 4), np.uint8)
    out[..., :3] = HEAT
    out[..., 3] = (values_or_zero / top * 235).round().numpy() if top > 0 else 0
    out[values.isnan().numpy()] = GONE
    return png(Image.fromarray(out, "RGBA"))


def fade(share: torch.Tensor) -> str:
    """A (rows, columns) map of shares from 0 (dark) to 1 (transparent)."""
    out = np.full((*share.shape, 4), GONE, np.uint8)
    out[..., 3] = (GONE[3] * (1 - share)).round().numpy()
    return png(Image.fromarray(out, "RGBA"))


@dataclass(frozen=True)
class Piece:
    """A patch of the base view as CSS background-size and background-position."""

    size: str
    position: str

    @classmethod
    def of(cls, grid: PatchGrid, region: int) -> Piece:
        r, c = divmod(region, grid.p)
        percent = [100 * k / max(1, grid.p - 1) for k in (c, r)]
        return cls(f"{100 * grid.p}%", f"{percent[0]:.4g}% {percent[1]:.4g}%")


def outlines(boxes: tuple[Box, ...]) -> Markup:
    """An overlay of dashed boxes, given as fractions of the picture."""
    rectangles = "".join(f'<rect x="{a:.5g}" y="{b:.5g}" width="{c - a:.5g}" height="{d - b:.5g}" class="mark"/>' for a, b, c, d in boxes)
    return _overlay(1, 1, rectangles)


def patches(grid: PatchGrid) -> Markup:
    """An overlay of the cells of the base view and of its numbered p x p patches."""
    fine = _lines(range(1, grid.width), range(1, grid.height), grid.width, grid.height, "cell")
    h, w = grid.patch
    bold = _lines(range(w, grid.width, w), range(h, grid.height, h), grid.width, grid.height, "patch")
    size = min(h, w) / 5
    words = "".join(
        f'<text x="{r % grid.p * w + 0.2 * size:.4g}" y="{r // grid.p * h + 1.05 * size:.4g}" font-size="{size:.4g}">{r}</text>'
        for r in range(grid.p**2)
    )
    return _overlay(grid.width, grid.height, fine + bold + words)


def tiles(views: ViewGeometry) -> Markup:
    """An overlay of the tiles of an image. The padding of the stitched grid is removed first, as in the backbone."""
    rows, columns = views.unpadded.shape
    top, left = ((views.stitched == views.unpadded[0, 0]).nonzero()[0]).tolist()
    across = [k * views.side - left for k in range(1, views.columns) if 0 < k * views.side - left < columns]
    down = [k * views.side - top for k in range(1, views.rows) if 0 < k * views.side - top < rows]
    return _overlay(columns, rows, _lines(across, down, columns, rows, "patch"))


def _lines(across: Iterable[float], down: Iterable[float], width: int, height: int, kind: str) -> str:
    path = "".join(f"M{x} 0V{height}" for x in across) + "".join(f"M0 {y}H{width}" for y in down)
    return f'<path d="{path}" class="{kind}"/>' if path else ""


def _overlay(width: int, height: int, inside: str) -> Markup:
    return Markup(f'<svg class="over" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{inside}</svg>')


class Mark(NamedTuple):
    """A scan in the chart of ratios; without ``rho`` it is not drawn."""

    layer: int
    rho: Any
    decision: str


def ratios(rho: list[float | None], marks: list[Mark], limits: dict[str, float], floor: float) -> Markup:
    """The saliency ratio by layer: a line of ``rho`` (one value per layer), and ``marks`` at the scanned ratios.
    ``limits``: {name: threshold}; ``floor``: ratio of uniform attention."""
    left, right, top, bottom = 34, 14, 8, 158
    depth = len(rho)

    def x(layer: float) -> float:
        return round(left + (WIDTH - left - right) * (layer + 0.5) / depth, 2)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value, 2)

    out = [f'<path class="axis" d="M{left} {top}V{bottom}H{WIDTH - right}"/>']
    out += [f'<text x="{left - 4}" y="{y(v) + 3}" class="end">{v:g}</text>' for v in (0, 0.25, 0.5, 0.75, 1)]
    out += [f'<text x="{x(k)}" y="{bottom + 12}" class="middle">{k}</text>' for k in range(0, depth, max(1, depth // 8))]
    out.append(f'<text x="{(left + WIDTH - right) / 2:g}" y="{bottom + 25}" class="middle">decoder layer</text>')
    levels = {f"even spread {floor:.2g}": floor} | limits
    for k, (name, value) in enumerate(levels.items()):
        out.append(f'<path class="limit{" even" if not k else ""}" d="M{left} {y(value)}H{WIDTH - right}"/>')
        # thresholds stand at the left, the even spread at the right, so that equal values do not hide one another
        at, anchor = (WIDTH - right, "end") if not k else (left + 4, "start")
        out.append(f'<text x="{at}" y="{y(value) - 3}" class="{anchor}">{escape(name)}</text>')
    points = [(k, v) for k, v in enumerate(rho) if v is not None]
    out.append('<path class="line" d="' + "".join(f"{'L' if i else 'M'}{x(k)} {y(v)}" for i, (k, v) in enumerate(points)) + '"/>')
    for mark in (m for m in marks if m.rho is not None):
        kind = mark.decision.split()[0]
        shape = {"expand": "M-4 3H4L0 -4.5Z", "drop": "M-4 -3H4L0 4.5Z"}.get(kind, "M-3 -3H3V3H-3Z")
        title = f"layer {mark.layer}: rho {mark.rho:.3f}, {mark.decision}"
        translation = f"translate({x(mark.layer)} {y(mark.rho)})"
        out.append(f'<path class="{kind}" d="{shape}" transform="{translation}"><title>{escape(title)}</title></path>')
    return _chart(bottom + 32, "Saliency ratio by layer", out)


def sequences(stages: list[Stage]) -> Markup:
    """One bar per layer over its sequence: system | visual | expanded | text."""
    left, right, high = 34, 14, 8
    longest = max(sum(s.counts.values()) for s in stages)
    unit = (WIDTH - left - right) / longest
    out = []
    for stage in stages:
        y, start = 4 + stage.layer * high, 0
        if not stage.layer % 4:
            out.append(f'<text x="{left - 4}" y="{y + 6}" class="end">{stage.layer}</text>')
        for part in PARTS:
            count = stage.counts[part]
            if count:
                title = f"layer {stage.layer}: {count} {part} tokens at {start} to {start + count - 1}"
                frame = f'x="{left + unit * start:.2f}" y="{y}" width="{unit * count:.2f}" height="{high - 1}"'
                out.append(f'<rect class="{part}" {frame}><title>{title}</title></rect>')
            start += count
    bottom = 4 + len(stages) * high
    step = _round_step(longest)
    for at in range(0, longest + 1, step):
        out.append(f'<text x="{left + unit * at:.2f}" y="{bottom + 10}" class="middle">{at}</text>')
    out.append(f'<text x="{(left + WIDTH - right) / 2:g}" y="{bottom + 23}" class="middle">position in the sequence</text>')
    return _chart(bottom + 28, "Tokens by layer", out)


def _round_step(longest: int) -> int:
    """A tick step of 1, 2 or 5 times a power of ten that gives about five ticks up to ``longest``."""
    scale = 1
    while longest / scale > 50:
        scale *= 10
    return scale * next((k for k in (1, 2, 5) if longest / scale / k <= 5.5), 10)


def _chart(height: int, label: str, inside: list[str]) -> Markup:
    return Markup(f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(inside)}</svg>')
