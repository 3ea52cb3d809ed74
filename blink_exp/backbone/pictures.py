"""Prepares images for the vision tower, optionally in worker processes ahead of the model."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Rows
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader

from blink_exp.backbone.canvas import base_canvas
from blink_exp.core.views import TileGrid
from blink_exp.errors import UserError, flat, reason
from blink_exp.images import shrink_to_side

LARGE = 2**22  # pixels above which an image is prepared when opened: a batch of such originals would not fit in memory
AT_MOST = 8  # default number of worker processes with a GPU


class PreparedImage(NamedTuple):
    """A prepared image. ``by_grid``: its views in each grid of tiles that was asked for, None being the backbone's own choice:
    (views, 3, size, size) pixels, the base view first; ``height``, ``width``: of the image itself; ``canvas``: what its regions are cut
    from, if that was asked for."""

    by_grid: Mapping[TileGrid | None, torch.Tensor]
    height: int
    width: int
    canvas: Image.Image | None = None

    @property
    def views(self) -> torch.Tensor:
        """The views in the backbone's own choice of tiles."""
        return self.views_in(None)

    def views_in(self, tile_grid: TileGrid | None) -> torch.Tensor:
        if tile_grid not in self.by_grid:
            raise ValueError(f"an image was prepared without its views in the grid of tiles {tile_grid}; name it in tile_grids")
        return self.by_grid[tile_grid]


class UnreadableImage(NamedTuple):
    """An image that could not be opened, and why."""

    why: str


OpenedImage = Image.Image | PreparedImage | UnreadableImage
ImagesById = Mapping[str, Image.Image | PreparedImage]  # by id, prepared or not


def prepare_image(
    image: Image.Image | PreparedImage, image_processor: Any, canvas: bool = False, tile_grids: Collection[TileGrid | None] = (None,)
) -> PreparedImage:
    """``image`` by the backbone's own image processor, unless it is prepared already.

    ``canvas``: whether to keep its canvas; ``tile_grids``: the grids of tiles to make views in, see ``PreparedImage``."""
    if isinstance(image, PreparedImage):
        return image
    by_grid = {tile_grid: _views(image, image_processor, tile_grid) for tile_grid in tile_grids}
    return PreparedImage(by_grid, image.height, image.width, base_canvas(image, image_processor) if canvas else None)


def _views(image: Image.Image, image_processor: Any, tile_grid: TileGrid | None) -> torch.Tensor:
    """(views, 3, size, size) pixels. With a ``tile_grid`` the image is fitted into its rows x columns of tiles, whatever its shape."""
    forced = {}
    if tile_grid is not None:
        sides = [count * image_processor.crop_size[side] for count, side in zip(tile_grid, ("height", "width"), strict=True)]
        forced = {"image_grid_pinpoints": [sides]}
    pads = getattr(image_processor, "do_pad", False) and not hasattr(image_processor, "image_grid_pinpoints")  # to a square around it
    pixels: torch.Tensor = image_processor(images=shrink_to_side(image) if pads else image, return_tensors="pt", **forced).pixel_values[0]
    return pixels if pixels.dim() == 4 else pixels[None]


def check_workers(workers: int | None, device: str) -> int:
    """Number of worker processes. None: 0 where the model runs on the CPU, else one for each free core, at most 8.

    Raises UserError for a value that is not a number >= 0."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # a scheduler may restrict them
        return 0 if device == "cpu" else min(AT_MOST, cores - 1)
    if not isinstance(workers, int) or workers < 0:
        raise UserError(f"workers={workers} is no number of processes; use 0 or more, or null")
    return workers


def open_images(
    images: Rows[Callable[[], Image.Image]],
    backbone: Any,
    workers: int = 0,
    ahead: int = 1,
    canvas: bool = False,
    tile_grids: Collection[TileGrid | None] = (None,),
) -> Iterator[OpenedImage]:
    """Opens ``images`` in order.

    Without workers an image is opened on demand and left unprepared, unless it is large. With workers images are prepared in the
    backbone's dtype, about ``ahead`` of them in advance. The contents do not depend on ``workers``. ``canvas``, ``tile_grids``: see
    ``prepare_image``.
    """
    processor = backbone.processor.image_processor
    prepare = functools.partial(
        _prepare_as, image_processor=processor, dtype=backbone.model.dtype, canvas=canvas, tile_grids=tuple(tile_grids)
    )
    loader: DataLoader[Any] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=functools.partial(_open, prepare=prepare, most=0 if workers else LARGE),
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(ahead / workers)) if workers else None,
        pin_memory=workers > 0 and backbone.model.device.type == "cuda",
        generator=torch.Generator(),  # a separate one: the loader draws a seed
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(f"workers={workers}: a process that reads images died ({flat(error, 200)}); use fewer, or workers=0") from error


def _open(image: Callable[[], Image.Image], prepare: Callable[[Image.Image], PreparedImage], most: int) -> OpenedImage:
    """``most``: pixels of an image that is not prepared."""
    try:
        opened_image = image()
        opened_image.load()  # raises here for a truncated file
        return prepare(opened_image) if opened_image.width * opened_image.height > most else opened_image
    except OSError as error:
        return UnreadableImage(reason(error))


def _prepare_as(
    image: Image.Image, image_processor: Any, dtype: torch.dtype, canvas: bool, tile_grids: Collection[TileGrid | None]
) -> PreparedImage:
    prepared = prepare_image(image, image_processor, canvas, tile_grids)
    return prepared._replace(by_grid={tile_grid: views.to(dtype) for tile_grid, views in prepared.by_grid.items()})
