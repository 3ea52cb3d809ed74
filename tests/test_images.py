"""Opening an image: the same pixels whoever opens it, bounded memory, no path out of the data's folder, reasons that never change."""

from __future__ import annotations

import io
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.refusals import refusal

from blink_exp import images
from blink_exp.backbone.canvas import square_canvas
from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.figures import shared
from blink_exp.images import ImageOptions, grey_bytes, open_image, to_rgb
from blink_exp.training import canvases

ORIENTATION = 0x0112
DROP, WHITE = ImageOptions(alpha="drop"), ImageOptions(alpha="white")


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def first(image: Image.Image, options: ImageOptions = WHITE) -> list[int]:
    return np.asarray(to_rgb(image, options))[0, 0].tolist()


def row(source: bytes, options: ImageOptions = WHITE) -> list[int]:
    """The red of the first row."""
    return np.asarray(open_image(source, options))[0, :, 0].tolist()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# ---- depth

SIXTEEN = np.array([[0, 257, 32768, 65535]], np.uint16)


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


# ---- colours and transparency


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


def transparent(mode: str) -> bytes:
    """One pixel that shows and one that does not, black below."""
    if mode == "RGBA":
        return encoded(Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)))
    if mode == "LA":
        return encoded(Image.fromarray(np.array([[[10, 255], [0, 0]]], np.uint8)))
    if mode == "P":
        image = Image.fromarray(np.array([[1, 0]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 10, 20, 30])
        return encoded(image, transparency=0)
    if mode == "P, a share an entry":
        image = Image.fromarray(np.array([[1, 0]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 10, 20, 30])
        return encoded(image, transparency=b"\x00\xff")
    if mode == "GIF":
        image = Image.fromarray(np.array([[1, 0]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 10, 20, 30])
        return encoded(image, "GIF", transparency=0)
    if mode == "RGB":
        return encoded(Image.fromarray(np.array([[[10, 20, 30], [0, 0, 0]]], np.uint8)), transparency=(0, 0, 0))
    return encoded(Image.fromarray(np.array([[10 << 8, 0]], np.uint16)), transparency=0)  # 16-bit grey


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P, a share an entry", "GIF", "RGB", "I;16"])
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
        assert np.asarray(open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **settings)))[0, 0].tolist() == [
            255,
            0,
            0,
        ]


# ---- orientation


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


# ---- size


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


# ---- what is no image


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


def test_a_file_whose_bytes_cannot_be_had_is_named(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setattr("builtins.open", lambda *_: Failing())
    with pytest.raises(OSError, match=r"^x.png cannot be read \(Input/output error\)$"):
        open_image("x.png", root=tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match=r"^x.png cannot be read \(Permission denied\)$"):
        open_image("x.png", root=tmp_path)


def test_whatever_a_decoder_raises_is_an_unreadable_image(monkeypatch):
    for error in (KeyError(1), MemoryError(), RuntimeError("at <PIL.Image object at 0x7f0012345678>"), AssertionError(), SyntaxError("x")):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(OSError, match="^the image: ") as said:
            open_image(encoded(Image.new("L", (2, 2))))
        assert "0x" not in str(said.value) and len(str(said.value)) > len("the image: ")


# ---- paths


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


@pytest.mark.parametrize(
    "name", ["http://example.org/a.png", "https://x/a.png", "file:///etc/a.png", "s3://b/a.png", "data:image/png;base64,AAAA"]
)
@pytest.mark.parametrize("outside", [False, True])
def test_urls_are_refused_by_name(name, outside, tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(OSError, match=f"^{re.escape(name)} is a URL, and nothing is downloaded"):
            open_image(name, ImageOptions(outside=outside), root)


# ---- who opens images


def picture_folder(root, name: str, file: bytes):
    """One image in the layout of each reader. Only names differ, as formats are told by the bytes."""
    for folder in ("images", "DUTS-TE-Image", "DUTS-TE-Mask", "plain"):
        (root / folder).mkdir(parents=True)
    (root / "images" / "0.png").write_bytes(file)
    (root / "questions.json").write_text('[["what is it?", "red", 0]]', encoding="utf-8")
    (root / "DUTS-TE-Image" / "0.jpg").write_bytes(file)
    (root / "plain" / name).write_bytes(file)


def lying() -> bytes:
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:8, :8] = 255
    return encoded(Image.fromarray(stored), "JPEG", exif=oriented(3))


@pytest.mark.parametrize(
    "file", [lying(), encoded(Image.new("RGBA", (32, 32))), encoded(Image.fromarray(np.full((32, 32), 999, np.uint16)))]
)
def test_one_picture_everywhere(file, tmp_path):
    from support.viewing import config

    from blink_exp.viewer import drawing
    from blink_exp.viewer.subject import load_subject

    picture_folder(tmp_path, "0.png", file)
    wanted = open_image(file).tobytes()
    assert EasyVQA(str(tmp_path)).samples()[0].image().tobytes() == wanted
    assert Duts(str(tmp_path)).samples()[0].image().tobytes() == wanted
    assert canvases.Files(tmp_path, ["plain/0.png"], pad=False)(0).tobytes() == wanted
    about = load_subject(config("method=none", image=str(tmp_path / "plain" / "0.png"), question="what?"))
    assert about.image.tobytes() == wanted
    assert drawing.picture(about.image) == drawing.png(about.image)


def test_a_sample_of_easyvqa_cannot_name_a_file_elsewhere(tmp_path):
    picture_folder(tmp_path / "set", "0.png", encoded(Image.new("RGB", (2, 2))))
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (tmp_path / "set" / "questions.json").write_text('[["?", "red", "../../secret"], ["?", "red", 0]]', encoding="utf-8")
    refused, there = EasyVQA(str(tmp_path / "set")).samples()
    with pytest.raises(OSError, match="leads out of the data's folder"):
        refused.image()
    assert there.image().size == (2, 2)
    asked = EasyVQA(str(tmp_path / "set"), image_loading={"outside": True}).samples()[0]
    assert asked.image().size == (2, 2)


def test_masks_are_read_by_the_same_function(tmp_path):
    picture_folder(tmp_path, "0.png", encoded(Image.new("RGB", (4, 4))))
    values = np.zeros((4, 4), np.uint16)
    values[:2] = 65535
    (tmp_path / "DUTS-TE-Mask" / "0.png").write_bytes(encoded(Image.fromarray(values)))
    mask = Duts(str(tmp_path)).samples()[0].mask()
    assert mask.tolist() == (values > 0).tolist()


def test_large_images_are_not_held_by_the_batch(scale):
    from blink_exp.backbone.pictures import LARGE, PreparedImage, open_images

    small, large = Image.new("RGB", (64, 64)), Image.new("RGB", (4096, LARGE // 4096 + 1))
    found = list(open_images([lambda: small, lambda: large], scale))
    assert found[0] is small and isinstance(found[1], PreparedImage)
    assert torch.equal(found[1].views[0], scale.transform(large).to(found[1].views.dtype))


def test_a_figure_of_a_long_image_is_bounded(scale_next, monkeypatch):
    monkeypatch.setattr(shared, "CANVAS_SIDE", 50)
    assert shared.square(scale_next, Image.new("RGB", (400, 1))).size == (50, 50)


# ---- options


def test_the_llava_protocol_drops_transparency_unless_told_otherwise():
    assert ImageOptions.of(None).alpha == ImageOptions.of({"alpha": None}, "lmms_eval").alpha == "white"
    assert ImageOptions.of({"alpha": None}, "llava").alpha == "drop"
    assert ImageOptions.of({"alpha": "white"}, "llava").alpha == "white"
    assert ImageOptions.of({"exif": True}, exif=False).exif is False


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"alpha": "whit"}, "image_loading.alpha must be one of white, drop, or null, got whit; did you mean white"),
        ({"alpha": 3}, "image_loading.alpha must be one of white, drop, or null, got 3"),
        ({"exif": "maybe"}, "image_loading.exif must be true or false, got maybe"),
        ({"outside": 1}, "image_loading.outside must be true or false, got 1"),
        ({"max_pixels": 0}, "image_loading.max_pixels must be a whole number in [1, 178956970], got 0"),
        ({"max_pixels": 1e9}, "image_loading.max_pixels must be a whole number in [1, 178956970], got 1000000000"),
        ({"max_pixels": 10**9}, "image_loading.max_pixels must be a whole number in [1, 178956970], got 1000000000"),
        ({"max_pixels": None}, "image_loading.max_pixels must be a whole number in [1, 178956970], got null"),
        ({"max_pixel": 5}, "image_loading.max_pixel is not a setting; did you mean max_pixels"),
    ],
)
def test_options_that_cannot_be_are_refused(settings, wanted):
    assert refusal(lambda: ImageOptions.of(settings)).startswith(wanted)


def test_options_are_typed_as_the_settings_are():
    assert ImageOptions.of({"exif": "false", "max_pixels": "7"}) == ImageOptions(exif=False, max_pixels=7)
    assert "alpha=null" in refusal(lambda: ImageOptions(alpha=None))


def settings_of(*words: str):
    from blink_exp.settings.compose import composed

    return composed("evaluate", words)


def test_a_point_is_another_one_where_images_are_opened_otherwise():
    from blink_exp.evaluation.identity import config_hash

    changes = ("exif=false", "alpha=drop", "max_pixels=1000", "outside=true")
    for benchmark, other in (("easyvqa", True), ("duts", True), ("pope", True), ("mosaic_mme", False)):  # whose images are drawn
        before = config_hash(settings_of(f"benchmark={benchmark}"), {})
        hashes = {config_hash(settings_of(f"benchmark={benchmark}", f"image_loading.{change}"), {}) for change in changes}
        assert (len(hashes), before in hashes) == ((4, False) if other else (1, True))


def test_the_settings_reach_a_benchmark_and_its_own_exif_wins():
    from blink_exp.settings.build import build

    def options(*words: str) -> ImageOptions:
        return build(settings_of(*words).benchmark).image_loading

    assert options("benchmark=pope") == ImageOptions(alpha="drop")
    assert options("benchmark=pope", "benchmark.protocol=lmms_eval") == ImageOptions()
    assert options("benchmark=pope", "benchmark.exif=false", "image_loading.alpha=white") == ImageOptions(exif=False)
    assert options("benchmark=vizwiz", "image_loading=llava") == ImageOptions(exif=False, alpha="drop")
    for name in ("easyvqa", "gqa", "mmbench", "mmvet", "captions", "duts"):
        words = ["benchmark.path=x/y"] if name == "captions" else []
        assert options(f"benchmark={name}", *words, "image_loading.max_pixels=7").max_pixels == 7


def test_a_harness_s_images_are_opened_alike():
    from blink_exp.errors import UserError
    from blink_exp.integrations.requests import Request, image_of

    for image in (Image.fromarray(SIXTEEN), Image.new("RGBA", (4, 1)), Image.new("F", (4, 1), 0.5)):
        found = image_of(Request("q", "?", lambda image=image: [image]))
        assert found.tobytes() == to_rgb(image).tobytes()
    assert image_of(Request("q", "?", lambda: [Image.new("RGBA", (1, 1))]), DROP).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(UserError, match=r"the image of q cannot be read \(900 x 1 pixels are too thin"):
        image_of(Request("q", "?", lambda: [Image.new("L", (900, 1))]))


@pytest.mark.parametrize("size", [(720, 16), (16, 720), (400, 1)])
def test_a_thin_image_on_tiles_has_a_page(size, tmp_path):
    """From 36 to 1 the backbone's own rule leaves nothing of the tiles."""
    from support.viewing import config

    from blink_exp.viewer import run as viewer

    Image.effect_noise(size, 90).save(tmp_path / "thin.png")
    cfg = config("method=hero", "model=scale_llava_next", image=str(tmp_path / "thin.png"), question="what?", compare=[])
    page = viewer.view(cfg, tmp_path).read_text(encoding="utf-8")
    assert "attention on the base view" in page and "attention on the tiles" not in page
