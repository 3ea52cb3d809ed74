"""The canvas that the base view is made of, and its regions at the image's own resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from blink_exp.images import shrink_to_side

PADDING = (122, 116, 104)  # CLIP's mean colour


def square_canvas(image: Image.Image, pad: bool = False) -> Image.Image:
    """The largest centred square, or with ``pad`` the smallest square around the image, filled with CLIP's mean colour."""
    image = shrink_to_side(image) if pad else image
    w, h = image.size
    side = max(w, h) if pad else min(w, h)
    if not pad:
        left, top = (w - side) // 2, (h - side) // 2
        return image.crop((left, top, left + side, top + side))
    canvas = Image.new("RGB", (side, side), PADDING)
    canvas.paste(image, ((side - w) // 2, (side - h) // 2))
    return canvas


def base_canvas(image: Image.Image, image_processor: Any) -> Image.Image:
    """What the base view shows of an image, at the image's own resolution: a centred or padded square under LLaVA-1.5, all of it under
    LLaVA-NeXT, whose thumbnail is stretched."""
    if hasattr(image_processor, "image_grid_pinpoints"):
        return image
    pad = bool(getattr(image_processor, "do_pad", False))
    return square_canvas(image, pad) if pad or getattr(image_processor, "do_center_crop", True) else image


def region_box(index: int, p: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of region ``index``, in raster order, of p x p on a canvas. A canvas narrower than p pixels has
    regions of one pixel."""
    row, column = divmod(index, p)
    left, top = column * width // p, row * height // p
    return left, top, max(left + 1, (column + 1) * width // p), max(top + 1, (row + 1) * height // p)


@dataclass(eq=False)
class ImageRegions:
    """The regions of one image at its own resolution.

    ``backbone``: prepares them; ``key``: of the image in the backbone's caches; ``image``: prepared, or not.
    """

    backbone: Any
    key: str
    image: Any
    _canvas: Image.Image | None = None

    def crop(self, region: int, p: int) -> Image.Image:
        """Region ``region`` of p x p of the canvas."""
        if self._canvas is None:
            self._canvas = self.backbone.canvas(self.image)
        return self._canvas.crop(region_box(region, p, *self._canvas.size))

    def pixels(self, region: int, p: int) -> torch.Tensor:
        """(3, size, size) pixels of a region, resized to the tower's input."""
        pixels: torch.Tensor = self.backbone.transform(self.crop(region, p))
        return pixels
