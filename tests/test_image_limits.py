"""Opening an image: bounded memory, no path out of the data's folder, reasons that never change."""

from __future__ import annotations

import io
import os
import re

import pytest
from PIL import Image
from support.encoded_images import encoded

from blink_exp import images
from blink_exp.backbone.canvas import square_canvas
from blink_exp.images import ImageOptions, open_image


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    file = encoded(Image.new("1", (9000, 9000)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(OSError, match=r"^the image: 9000 x 9000 pixels are more than image_loading.max_pixels=50000000$"):
        open_image(file)
    with pytest.raises(OSError, match="more than 178956970 pixels, and image_loading.max_pixels=50000000"):
        open_image(encoded(Image.new("1", (14000, 14000))))


@pytest.mark.parametrize(
    ("most", "wanted"), [(4096, (64, 64)), (4095, (32, 32)), (1024, (32, 32)), (300, (16, 16)), (64, (8, 8)), (63, None)]
)
def test_a_large_jpeg_is_decoded_smaller(most, wanted):
    file = encoded(Image.new("RGB", (64, 64), "red"), "JPEG")
    if wanted is None:
        with pytest.raises(OSError, match="more than image_loading.max_pixels=63"):
            open_image(file, ImageOptions(max_pixels=most))
    else:
        assert open_image(file, ImageOptions(max_pixels=most)).size == wanted
    with pytest.raises(OSError, match="more than"):
        open_image(encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True), ImageOptions(max_pixels=4095))


@pytest.mark.parametrize("size", [(100_000, 1), (1, 401), (40_100, 100)])
def test_thin_images_that_preprocessing_would_blow_up_are_refused(size):
    with pytest.raises(OSError, match="too thin: no side may be more than 400 times the other"):
        open_image(encoded(Image.new("1", size)))
    assert open_image(encoded(Image.new("1", (400, 1)))).size == (400, 1)


def test_a_square_around_a_long_image_is_bounded(monkeypatch):
    monkeypatch.setattr(images.shrink_to_side, "__defaults__", (64,))
    assert square_canvas(Image.new("RGB", (640, 8), "red"), pad=True).size == (64, 64)
    assert square_canvas(Image.new("RGB", (60, 8)), pad=True).size == (60, 60)


@pytest.mark.slow
def test_padding_by_the_processor_is_bounded(monkeypatch):
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    from blink_exp.backbone.pictures import prepare_image

    seen = []
    pad = LlavaImageProcessorPil.pad_to_square
    monkeypatch.setattr(
        LlavaImageProcessorPil, "pad_to_square", lambda self, image, **more: seen.append(image.shape) or pad(self, image, **more)
    )
    processor = LlavaImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_pad=True)
    assert prepare_image(Image.new("RGB", (20_000, 100)), processor).views.shape == (1, 3, 24, 24)
    prepare_image(Image.new("RGB", (8192, 100)), processor)
    assert seen == [(3, 41, 8192), (3, 100, 8192)]


def bomb(folder):
    (folder / "x.png").write_bytes(encoded(Image.new("1", (14000, 14000))))


def eps(folder):
    (folder / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


KINDS = {
    "missing": (lambda folder: None, "is missing"),
    "folder": (lambda folder: (folder / "x.png").mkdir(), "is a folder"),
    "fifo": (lambda folder: os.mkfifo(folder / "x.png"), "is no ordinary file"),
    "empty": (lambda folder: (folder / "x.png").touch(), "is empty"),
    "text": (lambda folder: (folder / "x.png").write_text("no image", encoding="utf-8"), "is no image of a format"),
    "cut off": (lambda folder: (folder / "x.png").write_bytes(encoded(Image.effect_noise((64, 64), 9))[:200]), "truncated"),
    "eps": (eps, "starts another program"),
    "bomb": (bomb, "more than 178956970 pixels"),
    "link out": (lambda folder: (folder / "x.png").symlink_to("/dev/zero"), "leads out of the data's folder"),
    "broken link": (lambda folder: (folder / "x.png").symlink_to(folder / "y.png"), "is missing"),
    "loop": (lambda folder: (folder / "x.png").symlink_to(folder / "x.png"), "cannot be read"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_says_so_in_the_same_words_every_time(kind, tmp_path):
    make, wanted = KINDS[kind]
    make(tmp_path)
    reasons = set()
    for _ in range(2):
        with pytest.raises(OSError) as error:
            open_image("x.png", root=tmp_path)
        reasons.add(str(error.value))
    (reason,) = reasons
    assert wanted in reason and reason.startswith("x.png") and len(reason) <= 200 and "\n" not in reason
    assert not re.search(r"0x[0-9a-f]{6}|BytesIO|BufferedReader", reason) and str(tmp_path) not in reason


def test_a_device_is_not_read_for_ever():
    with pytest.raises(OSError, match="^/dev/zero is no ordinary file, not an image$"):
        open_image("/dev/zero")


class Failing(io.BytesIO):
    def read(self, *_):
        raise OSError(5, "Input/output error")


def refuse(*_):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(("opened", "why"), [(lambda *_: Failing(), "Input/output error"), (refuse, "Permission denied")])
def test_a_file_that_cannot_be_read_is_named(opened, why, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(OSError, match=rf"^x.png cannot be read \({why}\)$"):
        open_image("x.png", root=tmp_path)


def test_whatever_a_decoder_raises_is_an_unreadable_image(monkeypatch):
    for error in (KeyError(1), MemoryError(), RuntimeError("at <PIL.Image object at 0x7f0012345678>"), AssertionError(), SyntaxError("x")):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(OSError, match="^the image: ") as caught:
            open_image(encoded(Image.new("L", (2, 2))))
        assert "0x" not in str(caught.value) and len(str(caught.value)) > len("the image: ")


def test_no_path_leads_out_of_the_folder_unless_that_is_asked_for(tmp_path):
    root, away = tmp_path / "set", tmp_path / "setting"  # one name begins like the other
    (root / "images").mkdir(parents=True)
    away.mkdir()
    for folder in (root / "images", away):
        Image.new("RGB", (2, 2)).save(folder / "a.png")
    (root / "link.png").symlink_to(away / "a.png")
    (root / "folder").symlink_to(away)
    (root / "own.png").symlink_to("images/a.png")
    leading = ["../setting/a.png", str(away / "a.png"), "link.png", "folder/a.png", "images/../../setting/a.png"]
    for name in leading:
        with pytest.raises(OSError, match="leads out of the data's folder; image_loading.outside=true opens it all the same"):
            open_image(name, root=root)
        assert open_image(name, ImageOptions(outside=True), root).size == (2, 2)
    for name in ("images/a.png", "own.png", "images/../images/a.png", str(root / "images/a.png"), root / "images" / "a.png"):
        assert open_image(name, root=root).size == (2, 2)
    with pytest.raises(OSError, match=r"leads out|is missing"):
        open_image("../nowhere.png", root=root)
