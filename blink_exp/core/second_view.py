"""A second view: a part of an image that is shown as an image of its own, in front of the text.

A chooser says which part. It is pure: the same subject always gives the same part, so a result depends neither on batch size nor on order.
Parts are cut from the image's *canvas*, what its base view shows (``blink_exp.backbone.canvas``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from blink_exp.documents.records import ShownPart

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions
PixelBox = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Subject:
    """What a part of an image is chosen by.

    Args:
        sample: an id that does not depend on batch size or order.
        size: (width, height) of the canvas in pixels.
        regions: where the answer is to be seen, as fractions of the canvas, where the benchmark says so.
        scores: p * p attention of the untouched model on the cells of the image, in raster order, where the chooser reads it.
        generic: the same for the chooser's ``generic`` question.
    """

    sample: str
    size: tuple[int, int]
    regions: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    generic: tuple[float, ...] = ()


class RegionChooser(Protocol):
    """Chooses the part of an image that is shown as a second view."""

    @property
    def alone(self) -> bool:
        """Whether the part is shown in place of the image, not behind it."""
        ...

    @property
    def annotated(self) -> bool:
        """Whether it goes by annotated regions, which few benchmarks have."""
        ...

    @property
    def layer(self) -> int | None:
        """The LLM layer whose attention it reads; None: none."""
        ...

    @property
    def generic(self) -> str | None:
        """A question that asks for nothing in particular, whose attention it reads as well; None: none."""
        ...

    @property
    def p(self) -> int:
        """Cells a side of the attention that it reads, and regions a side of the canvas."""
        ...

    def choose(self, subject: Subject) -> int | PixelBox:
        """A region of p x p, in raster order, or pixels of the canvas."""
        ...


@dataclass(frozen=True)
class SecondView:
    """A part that was shown. ``box``: as fractions of the image, cut to it; ``region``: its number among p x p; None: of any place and
    size."""

    box: Box
    region: int | None = None

    def to_json(self) -> ShownPart:
        return {"box": list(self.box), "region": self.region}


@dataclass(frozen=True)
class Placement:
    """Where a canvas lies on its image: cut out of the middle, padded on both sides, or the image itself.

    ``image``, ``canvas``: (width, height) in pixels.
    """

    image: tuple[int, int]
    canvas: tuple[int, int]

    def on_canvas(self, box: Box) -> Box:
        """A box as fractions of the image, as fractions of the canvas. What is not on it may be outside of [0, 1]."""
        corners = [(x * self._size(k) - self._offset(k)) / self.canvas[k] for x, k in zip(box, (0, 1, 0, 1), strict=True)]
        return corners[0], corners[1], corners[2], corners[3]

    def on_image(self, pixels: PixelBox) -> Box:
        """Pixels of the canvas as fractions of the image, cut to it."""
        corners = [min(1.0, max(0.0, (x + self._offset(k)) / self._size(k))) for x, k in zip(pixels, (0, 1, 0, 1), strict=True)]
        return corners[0], corners[1], corners[2], corners[3]

    def _size(self, axis: int) -> float:
        """The image's length in pixels of the canvas. A very large image was made smaller before it was padded."""
        padded = self.canvas[0] == self.canvas[1] != min(self.image)
        return self.image[axis] * (self.canvas[0] / max(self.image) if padded else 1)

    def _offset(self, axis: int) -> float:
        """Pixels of the image in front of the canvas; negative for padding."""
        return (self._size(axis) - self.canvas[axis]) / 2


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes have in common."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
