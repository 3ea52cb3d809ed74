"""ViCrop by relative attention: MLLMs Know Where to Look (ICLR 2025, arXiv 2502.17422). Trained on nothing.

The map is the attention of the last prompt token on the image's cells at one layer, mean over heads, over the same for a question that
asks for nothing in particular. A window of a few sizes slides over it; the place with the largest sum is the best of its size, and the size
is chosen at which that place stands out most from its neighbours. The box, of any place and size, is shown as a second image.

``best_box`` is the authors' arithmetic (saccharomycetes/mllms_know). Here it runs on the canvas, which is what the map shows; the authors
lay the map over the whole image, also where the model sees its middle only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blink_exp.core.method import Method
from blink_exp.core.second_view import PixelBox, Subject
from blink_exp.methods.blink import relative_layers

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

RATIOS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)  # sides of a box, in sides of the tower's input
GENERIC = "Write a general description of the image."


@dataclass(frozen=True)
class RelativeAttention:
    """Chooses a box by relative attention.

    Args:
        layer: 0-based (the authors: 14 of LLaVA-1.5's 32).
        p: cells a side of the map: every visual token of a view.
        side: of the tower's input in pixels, which is the smallest box.
    """

    layer: int
    p: int
    side: int

    alone = annotated = False
    generic = GENERIC

    def choose(self, subject: Subject) -> PixelBox:
        tiny = torch.finfo(torch.float32).tiny
        ratio = torch.tensor(subject.scores) / torch.tensor(subject.generic).clamp(min=tiny)
        return best_box(ratio.view(self.p, self.p), subject.size, self.side)


def best_box(scores: torch.Tensor, size: tuple[int, int], side: int) -> PixelBox:
    """The box that stands out most, in pixels.

    Args:
        scores: (rows, columns) of the cells that an image of ``size`` (width, height) pixels is divided into.
        side: of the smallest box in pixels.

    An image that no box is smaller than is shown whole.
    """
    rows, columns = scores.shape
    width, height = size
    cell = width / columns, height / rows
    best: tuple[float, float, int, int, int, int] | None = None  # how much it stands out, ratio, column, row, columns, rows
    for ratio in RATIOS:
        across, down = (min(max(1, int(side * ratio / length)), most) for length, most in zip(cell, (columns, rows), strict=True))
        if (across, down) == (columns, rows):
            continue
        sums = _window_sums(scores, across, down)
        index = int(sums.T.flatten().argmax())  # the first of equal ones, column by column
        column, row = divmod(index, sums.shape[0])
        around = [(column - 1, row), (column + 1, row), (column, row - 1), (column, row + 1)]
        neighbours = [float(sums[y, x]) for x, y in around if 0 <= x < sums.shape[1] and 0 <= y < sums.shape[0]]
        stands_out = (float(sums[row, column]) - sum(neighbours) / len(neighbours)) / (across * down)
        if best is None or stands_out > best[0]:
            best = stands_out, ratio, column, row, across, down
    if best is None:
        return 0, 0, width, height
    _, ratio, column, row, across, down = best
    half = int(side * ratio) // 2
    left, right = _span(int(column * cell[0] + cell[0] * across / 2), half, width)
    top, bottom = _span(int(row * cell[1] + cell[1] * down / 2), half, height)
    return left, top, right, bottom


def _window_sums(scores: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """(rows - down + 1, columns - across + 1) sums of all windows, in float64."""
    return scores.double().unfold(0, down, 1).unfold(1, across, 1).sum((-1, -2))


def _span(centre: int, half: int, length: int) -> tuple[int, int]:
    """``half`` pixels on both sides of a centre, moved inside [0, length] and cut to it."""
    centre = min(max(centre, half), length - half)
    return max(0, centre - half), min(length, centre + half)


def configure(backbone: Backbone, *, layer: int, relative: bool) -> Method:
    """ViCrop on ``backbone``. ``relative``: ``layer`` is written for an LLM of 32 layers and scaled to the backbone's depth."""
    (attended,) = relative_layers([layer], backbone.depth, relative=relative)
    side = backbone.model.config.vision_config.image_size
    return Method(name="vicrop", second_view=RelativeAttention(attended, backbone.grid[0], side))
