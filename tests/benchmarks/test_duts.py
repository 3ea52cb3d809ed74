"""CLS attention against masks: geometry by hand, IoU by hand, and what cannot be read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.hub_choices import duts
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from blink_exp.benchmarks import duts as module
from blink_exp.benchmarks.base import Count, Probes, Score
from blink_exp.benchmarks.duts import Duts, cover, iou, on_view
from blink_exp.errors import UserError

SIZE = {"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PROCESSORS = {
    "crop": CLIPImageProcessorPil(**SIZE),
    "pad": LlavaImageProcessorPil(**SIZE, do_pad=True),
    "thumbnail": LlavaNextImageProcessorPil(**SIZE, image_grid_pinpoints=[[96, 192], [192, 96]]),
}


def eye(kind):
    """What of a backbone prepares pixels."""
    processor = SimpleNamespace(image_processor=PROCESSORS[kind])
    return SimpleNamespace(processor=processor, tiled=kind == "thumbnail")


def box(shape, top, bottom, left, right):
    out = np.zeros(shape, dtype=bool)
    out[top:bottom, left:right] = True
    return out


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("crop", (0, 96, 48, 96)),  # columns 48 to 144 of 192 are left; the object begins at 96
        ("pad", (24, 72, 48, 96)),  # 48 rows above and below, then halved; what is padded is background
        ("thumbnail", (0, 96, 48, 96)),  # squashed
    ],
)
def test_a_mask_goes_where_its_image_goes(kind, seen):
    """The right half of a 192 x 96 image."""
    view = on_view(eye(kind), box((96, 192), 0, 96, 96, 192))
    assert view.dtype == torch.bool
    assert np.array_equal(view.numpy(), box((96, 96), *seen))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_mask_agrees_with_the_pixels_of_its_image(kind):
    """A white ring on black, of odd size: the processed image is white where the processed mask is, up to resampling at the rim."""
    y, x = np.mgrid[:130, :217]
    radius = np.hypot(y - 55, x - 120)
    mask = (radius > 15) & (radius < 45)
    picture = Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")
    pixels = PROCESSORS[kind](images=picture, return_tensors="pt").pixel_values[0]
    white = (pixels[0] if kind == "thumbnail" else pixels)[0] > 0.2  # padding is grey, 0, and overshoots a little beside black
    view = on_view(eye(kind), mask)
    assert (white == view).float().mean() > 0.985
    assert 0.05 < view.float().mean() < 0.5


def test_cover_and_iou_by_hand():
    """4 x 4 pixels, 2 x 2 patches. The object has patch 0 whole, half of 1, none of 2, a quarter of 3: 1.75 patches."""
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    cells = cover(mask, 2)
    assert cells.tolist() == [1, 0.5, 0, 0.25]
    assert iou(cells, torch.tensor([0, 1])) == pytest.approx(1.5 / (2 + 0.25))
    assert iou(cells, torch.tensor([2])) == 0
    right = torch.tensor([[0, 0, 1, 1]] * 4).bool()  # patches 1 and 3, pixel by pixel
    assert iou(cells, torch.tensor([1, 3])) == pytest.approx(float((mask & right).sum() / (mask | right).sum()))


def looking(monkeypatch, where):
    """CLIP's attention by hand: ``where[layer]`` is the (12, 12) attention of two heads, of which the second one is flat."""

    def encode(model, pixels, views, needs):
        def attention(layers):
            (layer,) = layers
            heads = torch.stack([where[layer].flatten(), torch.full((144,), 0.5)])
            return heads.mean(0)[None]

        assert needs.attention == frozenset(where)
        return [SimpleNamespace(cls_attention=attention) for _ in pixels]

    monkeypatch.setattr(module, "encode", encode)


def test_iou_of_hand_made_attention(scale, tmp_path, monkeypatch):
    """The object is the left 5 of 12 columns: 60 patches. Layer 1 looks at 50 of them, layer 2 at none, layer 3 at 24 (and 26 others)."""
    column = torch.arange(12).expand(12, 12).float()
    row = column.T
    rows = torch.where(row < 4, 1.0, 0.0) * (12 - column) + row / 100  # the first four rows: 20 of the object's; then upwards from below
    looking(monkeypatch, {1: 12 - column + row / 100, 2: column, 3: rows})
    folder = duts(tmp_path, {"left": box((96, 96), 0, 96, 0, 40)})
    (record,), skipped = Duts(str(folder), layers=[1, 2, 3]).probe(scale, None, lambda n: None)
    assert skipped == []
    assert record["iou"]["1"] == pytest.approx(50 / 60)
    assert record["iou"]["2"] == 0
    chosen = set(rows.flatten().argsort(descending=True, stable=True)[:50].tolist())
    hit = sum(index % 12 < 5 for index in chosen)
    assert record["iou"]["3"] == pytest.approx(hit / (50 + 60 - hit))
    assert record["object"] == pytest.approx(60 / 144)
    assert record["patch_iou"] == pytest.approx(record["iou"])  # the object's rim is a patch's rim


def test_scores_average_images_and_layers_and_count_empty_masks():
    def row(iou, patch):
        return {"iou": iou, "patch_iou": patch}

    records = [row({"2": 0.5, "10": 0.1}, {"2": 0.3, "10": 0.3}), row({"2": 0.3, "10": 0.3}, None), row(None, None)]
    scores = Duts("x", layers=[2, 10]).score(json.loads(json.dumps(records)))
    assert list(scores) == [
        *("iou", "iou_layer_2", "iou_layer_10", "patch_iou", "patch_iou_layer_2", "patch_iou_layer_10", "empty_masks"),
    ]
    assert scores["iou_layer_2"].value == pytest.approx(40) and scores["iou_layer_2"].samples == 2
    assert scores["iou_layer_10"].value == pytest.approx(20)
    assert scores["iou"].value == pytest.approx(30)
    assert scores["patch_iou_layer_10"] == Score(pytest.approx(30), 1, 0)
    assert scores["empty_masks"] == Count(1, 3)


def folder_of_four(path):
    masks = {
        "a": box((64, 96), 10, 50, 20, 60),
        "b": box((96, 64), 0, 10, 0, 64),
        "c": box((48, 48), 0, 0, 0, 0),
        "d": box((48, 60), 1, 9, 1, 9),
    }
    return duts(path, masks)


def test_real_attention_by_batches_and_limits(scale, tmp_path):
    """ "b": the object is outside the crop. "c": no object at all."""
    folder = folder_of_four(tmp_path)
    moved = []
    whole, skipped = Duts(str(folder), layers=range(1, 13), batch=3).probe(scale, None, moved.append)
    single, _ = Duts(str(folder), layers=range(1, 13), batch=1).probe(scale, None, moved.append)
    assert isinstance(Duts(str(folder)), Probes)
    assert (moved, skipped) == ([3, 1, 1, 1, 1, 1], [])
    assert [r["id"] for r in whole] == [f"duts/TE/{name}" for name in "abcd"]
    assert [r["iou"] is None for r in whole] == [False, True, True, False]
    for one, other in zip(whole, single, strict=True):
        assert (one["iou"] is None) == (other["iou"] is None)
        assert one["iou"] is None or one["iou"] == pytest.approx(other["iou"], abs=0.05)  # a tie in float noise moves one patch of fifty
    assert set(whole[0]["iou"]) == {str(n) for n in range(1, 13)}
    assert len({round(v, 6) for v in whole[0]["iou"].values()}) > 3  # layers look elsewhere
    few, _ = Duts(str(folder)).probe(scale, 2, lambda n: None)
    assert [r["id"][-1] for r in few] == ["a", "c"]
    assert "layers" in whole[0] and json.dumps(whole)


def test_tiled_backbones_are_asked_about_the_base_view(scale_next, tmp_path):
    records, _ = Duts(str(duts(tmp_path, {"b": box((96, 64), 0, 10, 0, 64)})), layers=[1, 2]).probe(scale_next, None, lambda n: None)
    assert records[0]["iou"] is not None  # the thumbnail is squashed: nothing is cropped
    assert records[0]["object"] == pytest.approx(10 / 96, abs=0.01)


def test_what_cannot_be_read_is_reported(scale, tmp_path):
    folder = folder_of_four(tmp_path)
    (folder / "DUTS-TE-Image" / "a.jpg").write_bytes(b"broken")
    (folder / "DUTS-TE-Mask" / "b.png").unlink()
    Image.new("L", (5, 5)).save(folder / "DUTS-TE-Mask" / "c.png")
    records, skipped = Duts(str(folder), layers=[1]).probe(scale, None, lambda n: None)
    assert [r["id"][-1] for r in records] == ["d"]
    assert [s["id"][-1] for s in skipped] == ["a", "b", "c"]
    assert "the mask has 5 x 5 pixels, the image 48 x 48" in skipped[2]["why"]


def test_what_a_user_can_get_wrong_is_one_line(scale, tmp_path):
    folder = str(folder_of_four(tmp_path / "data"))
    wrong = {
        "give benchmark.path=<its folder>": lambda: Duts().samples(),
        "DUTS-TE-Image holds no": lambda: Duts(str(tmp_path)).samples(),
        "use TE or TR": lambda: Duts(folder, split="test"),
        "benchmark.top=144 does not choose among 144 patches": lambda: Duts(folder, top=144).probe(scale, None, lambda n: None),
        "benchmark.layers holds layer 25": lambda: Duts(folder, layers=[25]).probe(scale, None, lambda n: None),
    }
    for message, do in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            do()
        assert "\n" not in str(error.value)
