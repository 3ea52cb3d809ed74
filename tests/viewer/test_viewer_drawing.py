"""What the page draws, pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from support.viewing import pixels, wide_photo

from blink_exp.core.saliency import PatchGrid
from blink_exp.core.views import ViewGeometry
from blink_exp.viewer import drawing


def test_maps_by_hand():
    nan = float("nan")
    heat = pixels(drawing.heat(torch.tensor([[0.0, 0.2], [0.1, nan]])))
    assert heat[0, 0].tolist() == [*drawing.HEAT, 0] and heat[0, 1].tolist() == [*drawing.HEAT, 235]
    assert heat[1, 0].tolist() == [*drawing.HEAT, 118] and heat[1, 1].tolist() == list(drawing.GONE)
    assert pixels(drawing.heat(torch.zeros(2, 3)))[..., 3].tolist() == [[0] * 3] * 2
    assert pixels(drawing.fade(torch.tensor([[1.0, 0.0]])))[..., 3].tolist() == [[0, 217]]


def test_the_base_view_is_what_the_tower_sees(scale, scale_next, tmp_path):
    """LLaVA-1.5 crops the sides of a wide picture, LLaVA-NeXT squeezes it."""
    image = Image.open(wide_photo(tmp_path))
    cropped, squeezed = (pixels(drawing.base_view(b, image)).astype(int) for b in (scale, scale_next))
    assert cropped.shape == squeezed.shape == (96, 96, 3)
    assert np.abs(cropped[48, [2, 48]] - [[128] * 3, [255, 0, 0]]).max() <= 2
    assert np.abs(squeezed[48, [2, 48]] - [[0, 0, 255], [255, 0, 0]]).max() <= 2


def test_large_pictures_are_made_smaller():
    assert pixels(drawing.picture(Image.new("L", (3000, 1000)))).shape == (240, 720, 3)


def test_a_piece_shows_its_patch():
    """CSS: position p % puts that point of the enlarged picture on that point of the box."""
    assert drawing.Piece.of(PatchGrid(2, 12, 12), 3) == drawing.Piece("200%", "100% 100%")
    assert drawing.Piece.of(PatchGrid(3, 12, 12), 5) == drawing.Piece("300%", "100% 50%")
    assert drawing.Piece.of(PatchGrid(1, 12, 12), 0) == drawing.Piece("100%", "0% 0%")


def test_tiles_are_drawn_over_the_part_of_the_grid_that_shows_the_image():
    """640 x 360 on 2 x 2 tiles of 12 x 12: 24 columns, and 14 of 24 rows, 5 cut off above."""
    svg = drawing.tiles(ViewGeometry(12, 2, 2, (360, 640), newline=True))
    assert 'viewBox="0 0 24 14"' in svg and "M12 0V14" in svg and "M0 7H24" in svg
