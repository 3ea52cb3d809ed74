"""Training pairs of an image and a quadrant, and their collation to a batch in which every image appears once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from blink_exp.backbone.canvas import region_box
from blink_exp.errors import UserError, nearest

Transform = Callable[[Image.Image], torch.Tensor]  # an image to (3, size, size) pixels
Item = tuple[torch.Tensor, torch.Tensor, int]
QUADRANTS = ("one", "all")


class PairBatch(NamedTuple):
    """Training pairs. ``full``: (images, 3, size, size) pixels of the distinct images; ``crop``: (pairs, 3, size, size) of a
    quadrant; ``quadrant``: (pairs,) its index; ``owner``: (pairs,) the row of ``full`` that the quadrant is cut from."""

    full: torch.Tensor
    crop: torch.Tensor
    quadrant: torch.Tensor
    owner: torch.Tensor


class PairDataset(Dataset[Any]):
    """(full, crop, quadrant) items: pixels (3, size, size) twice, and the quadrant's index. Item i is the same in every run and epoch.

    Args:
        canvases: maps i to a square image.
        length: number of items.
        images: number of distinct images, which repeat after that; None: unlimited.
        quadrants: ``one``: one pair of each image, its quadrant drawn from seed and i; ``all``: four consecutive pairs of each image, one
            for each quadrant (Blink, App. A.2), so that a batch runs the image once.
    """

    def __init__(
        self,
        canvases: Callable[[int], Image.Image],
        length: int,
        transform: Transform,
        seed: int,
        images: int | None = None,
        quadrants: str = "one",
    ):
        if quadrants not in QUADRANTS:
            raise UserError(f"data.quadrants={quadrants} is not known; {nearest(quadrants, QUADRANTS)}")
        self.canvases, self.length, self.transform, self.seed = canvases, length, transform, seed
        self.images, self.quadrants = images, quadrants

    def __len__(self) -> int:
        return self.length

    def pair(self, i: int) -> tuple[int, int]:
        """(image, quadrant) of item i."""
        if self.quadrants == "all":
            image, quadrant = divmod(i, 4)
        else:
            image, quadrant = i, int(np.random.default_rng((self.seed, 7, i)).integers(4))
        return (image % self.images if self.images else image), quadrant

    def __getitem__(self, i: int) -> Item:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return self.__getitems__([i])[0]

    def __getitems__(self, items: list[int]) -> list[Item]:
        """Several items, called by DataLoader for a batch: an image of several items is read once and is the same tensor in all."""
        views: dict[int, tuple[Image.Image, torch.Tensor]] = {}
        out = []
        for i in items:
            image, quadrant = self.pair(i)
            if image not in views:
                canvas = self.canvases(image)
                views[image] = canvas, self.transform(canvas)
            canvas, full = views[image]
            out.append((full, self.transform(canvas.crop(region_box(quadrant, 2, *canvas.size))), quadrant))
        return out


def collate(items: list[Item]) -> PairBatch:
    """A batch of items; full views that are the same tensor appear once."""
    fulls = {id(full): full for full, _, _ in items}
    row = {key: k for k, key in enumerate(fulls)}
    crops, quadrants = default_collate([(crop, quadrant) for _, crop, quadrant in items])
    return PairBatch(torch.stack(list(fulls.values())), crops, quadrants, torch.tensor([row[id(full)] for full, _, _ in items]))
