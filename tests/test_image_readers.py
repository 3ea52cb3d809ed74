"""Everybody who opens images: the same pixels, and the options of the settings."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoded_images import DROP, SIXTEEN, encoded, oriented
from support.refusals import refusal

from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.figures import shared
from blink_exp.images import ImageOptions, open_image, to_rgb
from blink_exp.training import canvases


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
    images = list(open_images([lambda: small, lambda: large], scale))
    assert images[0] is small and isinstance(images[1], PreparedImage)
    assert torch.equal(images[1].views[0], scale.transform(large).to(images[1].views.dtype))


def test_a_figure_of_a_long_image_is_bounded(scale_next, monkeypatch):
    monkeypatch.setattr(shared, "CANVAS_SIDE", 50)
    assert shared.square(scale_next, Image.new("RGB", (400, 1))).size == (50, 50)


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

    def changed(settings, **options):
        """The settings with others under image_loading, and where the benchmark refers to it."""
        loading = replace(settings.image_loading, **options)
        refers = "image_loading" in settings.benchmark
        return replace(
            settings, image_loading=loading, benchmark=settings.benchmark | ({"image_loading": asdict(loading)} if refers else {})
        )

    changes = ({"exif": False}, {"alpha": "drop"}, {"max_pixels": 1000}, {"outside": True})
    for benchmark, other in (("easyvqa", True), ("duts", True), ("pope", True), ("mosaic_mme", False)):  # whose images are drawn
        settings = settings_of(f"benchmark={benchmark}")
        before = config_hash(settings, {})
        hashes = {config_hash(changed(settings, **change), {}) for change in changes}
        assert (len(hashes), before in hashes) == ((4, False) if other else (1, True))


@pytest.mark.slow
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
        opened = image_of(Request("q", "?", lambda image=image: [image]))
        assert opened.tobytes() == to_rgb(image).tobytes()
    assert image_of(Request("q", "?", lambda: [Image.new("RGBA", (1, 1))]), DROP).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(UserError, match=r"the image of q cannot be read \(900 x 1 pixels are too thin"):
        image_of(Request("q", "?", lambda: [Image.new("L", (900, 1))]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(720, 16), (16, 720), (400, 1)])
def test_a_thin_image_on_tiles_has_a_page(size, tmp_path):
    """From 36 to 1 the backbone's own rule leaves nothing of the tiles."""
    from support.viewing import config

    from blink_exp.viewer import run as viewer

    Image.effect_noise(size, 90).save(tmp_path / "thin.png")
    cfg = config("method=hero", "model=scale_llava_next", image=str(tmp_path / "thin.png"), question="what?", compare=[])
    page = viewer.view(cfg, tmp_path).read_text(encoding="utf-8")
    assert "attention on the base view" in page and "attention on the tiles" not in page
