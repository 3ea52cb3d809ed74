"""Every reader of rows or folders with images: no field opens a connection or a file elsewhere, and bombs are skipped."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from PIL import Image
from support.encoded_images import encoded
from support.hub import build
from support.hub_choices import MAKERS

from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.images import ImageOptions, open_image
from blink_exp.methods.none import none
from blink_exp.training import llava_665k
from blink_exp.training.canvases import Files, folder_images
from blink_exp.viewer.subject import open_picture

URLS = (
    *(
        "http://127.0.0.1:9/a.png",
        "HTTPS://host/a.png",
        "ftp://host/a.png",
        "s3://bucket/a.png",
        "file:///etc/hostname",
        "file:/etc/hostname",
    ),
    *("data:image/png;base64,iVBORw0KGgo=", "hf://datasets/a/b.png", "javascript:alert(1)", "zip://a.png::http://host/x.zip"),
)
OUTSIDE = ("../secret.png", "a/../../secret.png", "/etc/hostname", "link.png", "folder/secret.png", "//host/share/a.png")
BOMB = encoded(Image.new("1", (14_000, 14_000)))
REFUSED = "is a URL, and nothing is downloaded|leads out of the data's folder|is missing"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder, with a secret image beside it, and links to that."""
    root = tmp_path / "set"
    root.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    return root


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_of_a_published_benchmark_names_no_image_elsewhere(name, folder, monkeypatch):
    benchmark = build(name, MAKERS[name](folder))
    image = benchmark.samples()[0].image
    if name == "gqa":  # whose images are in a table of their own
        roots = []
        monkeypatch.setattr("blink_exp.benchmarks.gqa.open_image", lambda *args: roots.append(args[2]) or open_image(*args))
        assert image() and roots == [folder]
    else:
        assert image.func == benchmark.image  # which opens every row's
    for field in (*URLS, *OUTSIDE):
        for cell in (field, {"bytes": None, "path": field}):
            with pytest.raises(OSError, match="is a URL, and nothing is downloaded" if field in URLS else "leads out of the data's folder"):
                benchmark.image([{benchmark.image_column: cell}], 0)


@pytest.mark.parametrize("field", [*URLS, *OUTSIDE])
def test_a_row_of_a_json_file_names_no_image_elsewhere(field, folder):
    (folder / "questions.json").write_text(json.dumps([["?", "red", f"../{field}".removesuffix(".png")]]), encoding="utf-8")
    (folder / "images").mkdir()
    (sample,) = EasyVQA(str(folder)).samples()
    with pytest.raises(OSError, match=REFUSED):
        sample.image()


def test_images_of_folders_lie_in_them(folder):
    for kind in ("Image", "Mask"):
        (folder / f"DUTS-TE-{kind}").mkdir()
    (folder / "DUTS-TE-Image" / "a.jpg").symlink_to(folder.parent / "secret.png")
    (folder / "DUTS-TE-Mask" / "a.png").symlink_to(folder.parent / "secret.png")
    (sample,) = Duts(str(folder)).samples()
    for opened in (sample.image, sample.mask):
        with pytest.raises(OSError, match="leads out of the data's folder"):
            opened()
    for name in ("b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    good, broken = folder_images(str(folder))
    assert [path.name for path in good] == ["b.png", "c.png"] and folder / "link.png" in broken


@pytest.mark.parametrize("field", [*URLS, *OUTSIDE])
def test_instruction_data_names_no_image_elsewhere(field, folder):
    rows = [{"image": field}, {"image": "b.png"}]
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    listing = llava_665k.find(folder / "rows.json", folder)
    assert listing.names == ["b.png"] and (listing.refused or listing.missing)
    files = Files(folder, [field], False)
    with pytest.raises(UserError, match="cannot be read"):
        files(0)


def test_bombs_thin_images_and_fields_elsewhere_are_skipped_and_counted(scale, folder):
    rows = [[f"what {i}?", "red", str(i)] for i in range(4)] + [["what?", "red", "../../secret"], ["what?", "red", "http://127.0.0.1:9/a"]]
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "images").mkdir()
    for name, data in {"0": encoded(Image.new("RGB", (8, 8))), "1": BOMB, "2": encoded(Image.new("1", (9000, 2))), "3": b"x"}.items():
        (folder / "images" / f"{name}.png").write_bytes(data)
    records, skipped = evaluate(scale, none(), EasyVQA(str(folder)))
    assert [record["id"] for record in records] == ["easyvqa/test/00000"]
    assert [row["id"].rpartition("/")[2] for row in skipped] == [f"{i:05d}" for i in range(1, 6)]
    for row, why in zip(
        skipped, ("more than 178956970 pixels", "too thin", "no image of a format", "leads out", "is missing"), strict=True
    ):
        assert why in row["why"]


def test_the_setting_opens_files_elsewhere_and_no_url(folder):
    outside = ImageOptions(outside=True)
    assert Files(folder, ["../secret.png"], False, outside)(0).size == (8, 8)
    (folder / "questions.json").write_text('[["?", "red", "../../secret"]]', encoding="utf-8")
    (folder / "images").mkdir()
    assert EasyVQA(str(folder), image_loading=outside).samples()[0].image().size == (8, 8)
    for field in URLS:
        for root in (None, folder):
            with pytest.raises(OSError, match=f"^{re.escape(field)} is a URL, and nothing is downloaded"):
                open_image(field, outside, root)


def test_a_picture_that_the_user_names_may_be_called_like_a_url(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data:x.png")
    assert open_picture(tmp_path / "data:x.png", ImageOptions()).getpixel((0, 0)) == (255, 0, 0)
    for url in ("http://127.0.0.1:9/a.png", Path("http://127.0.0.1:9/a.png"), " https://host/a.png", "data:image/png;base64,iVBORw0KGgo="):
        with pytest.raises(UserError, match="is a URL, and nothing is downloaded; give the file of a picture"):
            open_picture(url, ImageOptions())
    with pytest.raises(UserError, match="is not there; give the file of a picture"):
        open_picture("C:/x.png", ImageOptions())
