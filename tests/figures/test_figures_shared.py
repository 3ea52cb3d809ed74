"""What the pictures of both papers share: their look, which must not leak, what they say, and the image as the model sees it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from blink_exp.figures.base import STYLE
from blink_exp.figures.shared import base_view, measured_on, square, styled, tip


def test_the_look_holds_inside_each_time_and_leaves_with_it():
    @styled()
    def size():
        return plt.rcParams["axes.titlesize"]

    before = plt.rcParams["axes.titlesize"]
    assert size() == size() == STYLE["axes.titlesize"] != before
    assert plt.rcParams["axes.titlesize"] == before


def test_words_of_both_papers():
    assert (tip("a"), tip("a", 0)) == ("tip:a", "tip:a#0")  # 0 is a number too
    assert measured_on("m@1", "mme", 3) == "m@1, mme, 3 questions"
    assert measured_on("m@1", "duts", 2, "images") == "m@1, duts, 2 images"


def test_an_image_is_shown_as_the_base_view_sees_it(scale, scale_next):
    """Blue sides, grey middle, twice as wide as high: LLaVA-1.5 cuts the sides off, LLaVA-NeXT squeezes them in."""
    image = Image.new("RGB", (192, 96), (0, 0, 255))
    image.paste((128, 128, 128), (48, 0, 144, 96))
    cut, squeezed = (np.asarray(square(b, image)).astype(int) for b in (scale, scale_next))
    assert cut.shape == (96, 96, 3) and squeezed.shape == (192, 192, 3)  # nothing is cut: its own pixels, stretched
    assert np.abs(cut[48, 2] - 128).max() <= 2 and squeezed[96, 2].tolist() == [0, 0, 255]
    assert np.asarray(base_view(scale_next, image)).shape == (96, 96, 3)
    small = Image.new("RGB", (8, 8))
    assert square(scale, small) is small
