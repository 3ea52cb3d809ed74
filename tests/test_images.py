"""Opening an image: the same pixels whatever its mode, depth, transparency and orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.encoded_images import DROP, SIXTEEN, WHITE, encoded, oriented

from blink_exp.images import ImageOptions, open_image, to_rgb
from blink_exp.pixels import grey_bytes


def first(image: Image.Image, options: ImageOptions = WHITE) -> list[int]:
    return np.asarray(to_rgb(image, options))[0, 0].tolist()


def row(source: bytes, options: ImageOptions = WHITE) -> list[int]:
    """The red of the first row."""
    return np.asarray(open_image(source, options))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", ">u2"), ("TIFF", np.int32), ("PPM", np.int32)]
)
def test_sixteen_bits_keep_their_high_byte(kind, dtype):
    """By hand: 257 = 0x0101, 32768 = 0x8000. Pillow's own conversion makes white of all but the first."""
    assert row(encoded(Image.fromarray(SIXTEEN.astype(dtype)), kind)) == [0, 1, 128, 255]
    assert np.asarray(to_rgb(Image.fromarray(SIXTEEN.astype(dtype))))[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),  # shares of white
        ([0.0, 100.0, 255.0], [0, 100, 255]),  # bytes
        ([-1.0, 0.0, 1.0], [0, 128, 255]),  # anything else from its smallest to its largest
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("inf"), -3e38, 3e38], [0, 0, 255]),
        ([1000.0, 1000.0, 1000.0], [0, 0, 0]),
    ],
)
def test_floats_by_the_first_rule_that_fits(values, wanted):
    assert row(encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")) == wanted


def test_integers_by_the_first_rule_that_fits():
    for values, wanted in (
        ([0, 1, 200], [0, 1, 200]),
        ([0, 1, 65535], [0, 0, 255]),
        ([-5, 0, 5], [0, 128, 255]),
        ([0, 1 << 30, 1 << 31], [0, 128, 255]),
    ):
        assert grey_bytes(np.array([values]))[0].tolist() == wanted


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 7, [7, 7, 7]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("YCbCr", (128, 128, 128), [128, 128, 128]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("LAB", (255, 128, 128), [255, 255, 255]),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3]),
        ("LA", (9, 255), [9, 9, 9]),
        ("La", (9, 255), [9, 9, 9]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("RGBa", (1, 2, 3, 255), [1, 2, 3]),
    ],
)
def test_every_mode_has_its_own_colours(mode, colour, wanted):
    image = Image.new(mode, (3, 2), colour)
    for options in (DROP, WHITE):
        assert np.abs(np.array(first(image, options)) - wanted).max() <= 2  # LAB is rounded


PALETTES = {"P": ("PNG", 0), "P, a share an entry": ("PNG", b"\x00\xff"), "GIF": ("GIF", 0)}


def transparent(mode: str) -> bytes:
    """One pixel that shows and one that does not, black below."""
    if mode == "RGBA":
        return encoded(Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)))
    if mode == "LA":
        return encoded(Image.fromarray(np.array([[[10, 255], [0, 0]]], np.uint8)))
    if mode in PALETTES:
        image = Image.fromarray(np.array([[1, 0]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 10, 20, 30])
        kind, transparency = PALETTES[mode]
        return encoded(image, kind, transparency=transparency)
    if mode == "RGB":
        return encoded(Image.fromarray(np.array([[[10, 20, 30], [0, 0, 0]]], np.uint8)), transparency=(0, 0, 0))
    return encoded(Image.fromarray(np.array([[10 << 8, 0]], np.uint16)), transparency=0)  # 16-bit grey


@pytest.mark.parametrize("mode", ["RGBA", "LA", *PALETTES, "RGB", "I;16"])
def test_transparency_shows_white_or_what_lies_beneath(mode):
    assert row(transparent(mode)) == [10, 255]
    assert row(transparent(mode), DROP) == [10, 0]


def test_half_transparent_red_is_pink():
    assert first(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), WHITE) == [255, 127, 127]
    assert first(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), DROP) == [255, 0, 0]


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        settings = {"lossless": True} if kind == "WEBP" else {}
        opened = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings))
        assert opened.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_or_as_it_lies(kind, orientation):
    """The stored pixels are white at the left of the first row; where that shows, by EXIF's definition of the eight."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255
    file = encoded(Image.fromarray(stored), kind, exif=oriented(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    upright, lying = np.asarray(open_image(file)), np.asarray(open_image(file, ImageOptions(exif=False)))
    assert upright.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3)) and lying.shape == (16, 32, 3)
    assert upright[corner].min() > 200 and lying[0, 0].min() > 200
    assert upright[..., 0].mean() == pytest.approx(lying[..., 0].mean(), abs=1)


def test_what_is_open_already_is_turned_once():
    stored = Image.new("RGB", (4, 2))
    file = io.BytesIO(encoded(stored, "JPEG", exif=oriented(6)))
    once = to_rgb(Image.open(file))
    assert once.size == to_rgb(once).size == (2, 4)
    assert not once.info


def test_broken_metadata_is_no_broken_image():
    file = encoded(Image.new("RGB", (4, 2)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffrubbish")
    assert open_image(file).size == (4, 2)
