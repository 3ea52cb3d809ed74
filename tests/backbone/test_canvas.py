"""Regions of a canvas cover it."""

from __future__ import annotations

import pytest
from PIL import Image

from blink_exp.backbone.canvas import base_canvas, region_box, square_canvas


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(64, 64), (65, 65), (7, 13), (101, 50)])
def test_regions_cover_every_pixel_once_also_of_odd_sides(p, size):
    covered = [[0] * size[0] for _ in range(size[1])]
    for k in range(p * p):
        left, top, right, bottom = region_box(k, p, *size)
        assert abs((right - left) - size[0] / p) < 1 and abs((bottom - top) - size[1] / p) < 1
        for y in range(top, bottom):
            for x in range(left, right):
                covered[y][x] += 1
    assert {n for row in covered for n in row} == {1}


def test_a_region_of_a_canvas_narrower_than_the_grid_has_a_pixel():
    assert all(box[2] > box[0] and box[3] > box[1] and box[2] <= 1 and box[3] <= 1 for box in (region_box(k, 2, 1, 1) for k in range(4)))


def test_the_canvas_is_what_the_base_view_is_made_of(scale, scale_next):
    image = Image.new("RGB", (90, 60), "red")
    assert base_canvas(image, scale.processor.image_processor).size == (60, 60)
    assert base_canvas(image, scale_next.processor.image_processor) is image
    assert square_canvas(image, pad=True).size == (90, 90)
