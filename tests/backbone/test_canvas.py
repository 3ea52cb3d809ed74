"""Regions tile the canvas, and the canvas is what the base view shows."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from blink_exp.backbone.canvas import ImageRegions, base_canvas, region_box
from blink_exp.backbone.pictures import prepare_image


@pytest.mark.parametrize(("width", "height", "p"), [(64, 64, 2), (65, 63, 2), (100, 100, 3), (37, 53, 4)])
def test_regions_cover_every_pixel_once(width, height, p):
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in (region_box(region, p, width, height) for region in range(p * p)):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


def test_boxes_by_hand():
    assert [region_box(r, 2, 10, 6) for r in range(4)] == [(0, 0, 5, 3), (5, 0, 10, 3), (0, 3, 5, 6), (5, 3, 10, 6)]
    assert region_box(8, 3, 2, 2) == (1, 1, 2, 2) and region_box(0, 3, 2, 2) == (0, 0, 1, 1)  # never empty


def test_the_canvas_is_cropped_padded_or_whole_as_the_view_is():
    image = Image.new("RGB", (90, 40))
    crops, pads = SimpleNamespace(do_center_crop=True), SimpleNamespace(do_pad=True, do_center_crop=True)
    tiles = SimpleNamespace(do_pad=True, image_grid_pinpoints=[[1, 2]])
    assert base_canvas(image, crops).size == (40, 40)
    assert base_canvas(image, pads).size == (90, 90)
    assert base_canvas(image, tiles).size == base_canvas(image, SimpleNamespace(do_center_crop=False)).size == (90, 40)


def test_all_regions_together_are_the_view(scale, scale_next):
    """Of an image whose regions are flat colours, a region's pixels are the view's there; also where the sides are not the tower's."""
    colours = np.random.default_rng(0).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    side = scale.model.config.vision_config.image_size
    image = Image.fromarray(np.kron(colours, np.ones((side, side, 1), np.uint8)))
    wide = Image.fromarray(np.kron(colours, np.ones((side, 2 * side, 1), np.uint8)))
    padded = Image.new("RGB", (4 * side, 2 * side))
    padded.paste(image, (side, 0))  # cropped away again
    for backbone, picture in ((scale, image), (scale, padded), (scale_next, wide)):
        regions, view = ImageRegions(backbone, "", picture), backbone.transform(picture)
        quarter = side // 4
        for region, (r, c) in enumerate(itertools.product(range(2), range(2))):
            pixels = regions.pixels(region, 2)
            assert pixels.shape == view.shape
            here = view[:, quarter + r * side // 2, quarter + c * side // 2]
            assert (pixels - here[:, None, None]).abs().max() < 0.02


def test_an_image_prepared_ahead_keeps_its_canvas_only_where_asked(scale):
    image = Image.new("RGB", (90, 40), (9, 8, 7))
    processor = scale.processor.image_processor
    assert scale.canvas(prepare_image(image, processor, canvas=True)).size == (40, 40)
    with pytest.raises(ValueError, match="canvas=True"):
        scale.canvas(prepare_image(image, processor))
