"""HERO's figures of CLIP's layers (Figs. 2, 4, 8 and 9), and the benchmark of masks that they are measured on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.figure_studies import point, study

from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.mosaic_saliency import MosaicSaliency, patches
from blink_exp.errors import UserError
from blink_exp.figures import hero_attention, hero_layers, hero_measures
from blink_exp.figures.base import write_drawing
from blink_exp.figures.hero_measures import block, layer_names
from blink_exp.methods.none import none


def test_layers_keep_their_relative_depth():
    assert block(1, 12, 24) == list(range(1, 13)) and block(22, 24, 24) == [22, 23, 24]
    assert block(13, 24, 12) == list(range(7, 13)) and block(22, 24, 2) == [2]
    assert layer_names([1, 2, 3, 11, 12]) == "layers 1-3, 11-12" and layer_names([4]) == "layer 4"


def test_similarity_is_numpy_s_and_heads_matter():
    attention = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    a = attention.numpy().astype(float)
    maps = a.mean(1)
    cosine = [[float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in maps] for x in maps]
    assert hero_layers.similarity(attention) == pytest.approx(np.asarray(cosine))
    by_head = [[np.mean([p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(x, y, strict=True)]) for y in a] for x in a]
    assert hero_layers.similarity(attention, heads_first=False) == pytest.approx(np.asarray(by_head))


def matrix(within, across, last, noise=0.0):
    """24 x 24: ``within`` blocks, ``across`` them, ``last`` between layers 22-24 and 13-21."""
    m = np.full((24, 24), across)
    m[:12, :12] = m[12:, 12:] = within
    m[21:, 12:21] = m[12:21, 21:] = last
    np.fill_diagonal(m, 1)
    return m + noise * (1 - np.eye(24))


def test_two_blocks_and_their_end_are_found_where_they_are():
    blocks, end = hero_layers.blocks([matrix(0.9, 0.2, 0.7), matrix(0.9, 0.2, 0.7, 0.01)], "CLIP")
    assert blocks.holds is True and end.holds is True
    assert blocks.numbers["inside layers 1-12"] == pytest.approx(0.905)
    assert blocks.numbers["between them"] == pytest.approx(0.205)
    # 66 pairs of layers 13-24: 36 + 3 of them at 0.9, 27 at 0.7
    assert blocks.numbers["inside layers 13-24"] == pytest.approx((39 * 0.9 + 27 * 0.7) / 66 + 0.005)
    assert end.numbers["inside less across"] == pytest.approx(0.2)


def test_a_single_block_is_no_two_and_an_even_end_does_not_diverge():
    blocks, end = hero_layers.blocks([matrix(0.3, 0.6, 0.5), matrix(0.3, 0.6, 0.5, 0.01)], "CLIP")
    assert blocks.holds is False and end.holds is False
    assert hero_layers.blocks([matrix(0.9, 0.2, 0.7)], "CLIP")[0].holds is None  # one image has no standard error


@pytest.mark.slow
def test_heat_maps_of_two_encoders(scale_next, tmp_path):
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=12, num_attention_heads=2, image_size=24, patch_size=8
    )
    torch.manual_seed(0)
    CLIPVisionModel(config).save_pretrained(tmp_path / "vit")
    CLIPImageProcessorPil(**size).save_pretrained(tmp_path / "vit")
    three = (scale_next, none(scale_next), MosaicSaliency(images=1))
    drawing = hero_layers.heat(study("f", three), second=str(tmp_path / "vit"))
    assert [len(m) for m in drawing.data["similarity"].values()] == [24, 12]
    assert [c.said.split(":")[0] for c in drawing.claims] == ["CLIP of scale-llava-next"] * 2 + ["vit"] * 2
    assert "layers 1-6 and inside layers 7-12" in drawing.claims[2].said
    assert "empty" not in drawing.caption and "left empty" in hero_layers.heat(study("f", three)).caption
    encoded = [a for _, _, a in hero_measures.cls_attention_maps(scale_next, three[2].samples())]
    alike = np.mean([hero_layers.similarity(a) for a in encoded], axis=0)
    assert np.asarray(drawing.data["similarity"]["CLIP of scale-llava-next"]) == pytest.approx(alike, abs=1e-5)
    with pytest.raises(UserError, match="gives no CLIP"):
        hero_layers.other_clip(str(tmp_path))


def test_object_layers_by_hand():
    def record(inner, outer):
        return {"iou": {str(k): inner if 6 <= k <= 10 else outer for k in range(1, 13)}}

    claim = hero_layers.object_layers([record(0.5, 0.2), record(0.6, 0.4), {"iou": None}], 24)
    assert claim.holds is True and claim.numbers["difference"] == pytest.approx(0.25) and claim.numbers["best layer"] == 6
    assert hero_layers.object_layers([record(0.1, 0.2), record(0.1, 0.3)], 24).holds is False
    assert hero_layers.object_layers([{"iou": None}], 24).holds is None
    assert hero_layers.chance_iou(0.5, 0.5) == pytest.approx(0.25 / 0.75)


def test_figure_4_draws_the_points_of_a_run(tmp_path, scale):
    records = [{"iou": {"1": 0.1, "2": 0.3}, "object": 0.25}, {"iou": {"1": 0.3, "2": 0.3}, "object": 0.25}, {"iou": None, "object": 0}]
    row = point(tmp_path / "run", records, scores={"iou_layer_1": 20})
    drawing = hero_layers.objects(study("f", (scale, none(scale), MosaicSaliency(images=1)), [row]))
    assert drawing.data["iou"] == pytest.approx([0.2, 0.3])
    assert drawing.data["random"] == pytest.approx(hero_layers.chance_iou(0.25, 13 / 144))
    assert "13 of 144" in drawing.caption and drawing.measured_on == f"{scale.identity}, mosaic_saliency, 2 images"
    write_drawing(drawing, tmp_path / "out")
    assert "layer 2: IoU 0.300" in (tmp_path / "out" / "f.svg").read_text(encoding="utf-8")
    failed = {"status": "failed", "error": "no data", "point": "p"}
    with pytest.raises(UserError, match="not measured: no data; use benchmark=mosaic_saliency"):
        hero_layers.objects(study("f", (scale, none(scale), MosaicSaliency()), [failed]))


def test_entropy_peak_and_iou_of_a_layer():
    """Ten patches, of which the foreground covers 0 and 1. Even, on one patch of the object, on both, on one beside it."""
    flat, one, both, away = torch.full((10,), 0.1), torch.eye(10)[0], torch.eye(10)[:2].sum(0), torch.eye(10)[9]
    covered = torch.tensor([1.0, 1.0] + [0.0] * 8)
    measures = hero_attention.measures(torch.stack([flat, one, both * 3, away]), covered)
    assert measures["entropy"] == pytest.approx([1, 0, math.log(2) / math.log(10), 0], abs=1e-9)
    assert measures["peak"] == pytest.approx([0.1, 1, 0.5, 1])
    assert measures["iou"] == pytest.approx([1, 1, 1, 1 / 3])  # ties go to the lower index: even attention picks 0 and 1, the last 9 and 0
    assert np.isnan(hero_attention.measures(flat[None], None)["iou"]).all()


def image_with(entropy, peak, iou, shift):
    def stages(values):
        initial, focused, middle, later, end = values
        return np.asarray([initial] * 3 + [focused] * 7 + [middle] * 4 + [later] * 8 + [end] * 2) + shift

    sample = Sample("a", "a", lambda: None, "", None, "clear")
    return hero_attention.ImageMeasures(sample, "clear", 0.1, {"entropy": stages(entropy), "peak": stages(peak), "iou": stages(iou)})


def test_the_stages_hold_where_they_are_and_nowhere_else():
    images = [image_with((0.9, 0.5, 0.8, 0.3, 0.4), (0.1, 0.3, 0.2, 0.8, 0.6), (0.2, 0.7, 0.3, 0.1, 0.1), shift=s) for s in (0, 0.01)]
    assert [claim.holds for claim in hero_attention.stages(images, "clear")] == [True] * 5
    settled = hero_attention.stages(images, "clear")[1]
    assert settled.numbers["iou, layers 4-10 less layers 1-3"] == pytest.approx(0.5)
    assert settled.numbers["iou, layers 4-10 less layers 1-3, 11-24"] == pytest.approx(0.7 - (3 * 0.2 + 4 * 0.3 + 10 * 0.1) / 17)
    other = [image_with((0.4, 0.5, 0.3, 0.3, 0.4), (0.9, 0.8, 0.7, 0.1, 0.6), (0.8, 0.7, 0.3, 0.9, 0.1), shift=s) for s in (0, 0.01)]
    assert [claim.holds for claim in hero_attention.stages(other, "clear")] == [False] * 5


def test_the_best_layer_differs_from_image_to_image_or_does_not():
    def peaked(layer, kind):
        sample = Sample("a", "a", lambda: None, "", None, kind)
        return hero_attention.ImageMeasures(sample, kind, 0.1, {"iou": np.eye(24)[layer - 1]})

    clear, cluttered = [peaked(n, "clear") for n in (4, 4, 5)], [peaked(n, "cluttered") for n in (9, 9, 9, 10)]
    claim = hero_attention.best_layers(clear, cluttered)
    assert claim.holds is None  # 4 of 7 have another than layer 9
    assert claim.numbers["best layer by mean IoU, clear"] == 4 and claim.numbers["best layer by mean IoU, cluttered"] == 9
    assert claim.numbers["commonest best layer"] == 9
    assert claim.numbers["share of images with another"] == pytest.approx(4 / 7)
    assert claim.numbers["later if cluttered, by"] == pytest.approx(9.25 - 13 / 3)
    every = [peaked(n, "clear") for n in range(1, 25)]
    assert hero_attention.best_layers(every, cluttered).holds is True
    assert hero_attention.best_layers(clear[:2] * 5, clear).holds is False  # though 5 is later than 4
    assert hero_attention.best_layers([], []).holds is None


def test_kinds_without_words_are_thirds_by_area(monkeypatch):
    def sample(k):
        def mask():
            out = np.zeros((4, 4), dtype=bool)
            out[:k] = True
            return out

        return Sample(str(k), str(k), lambda: Image.new("RGB", (4, 4)), "", None, "saliency", mask=mask)

    monkeypatch.setattr(
        hero_attention, "cls_attention_maps", lambda backbone, samples: ((s, s.image(), torch.rand(2, 1, 4)) for s in samples)
    )
    monkeypatch.setattr(hero_attention, "on_view", lambda backbone, mask: torch.from_numpy(mask))
    measures = hero_attention.measure_images(SimpleNamespace(grid=(2, 2)), [sample(k) for k in (1, 4, 2)])
    assert [one.kind for one in measures] == ["cluttered", "clear", None]
    assert [one.share for one in measures] == [0.25, 1, 0.5]


def test_maps_have_a_panel_a_layer_and_curves_both_kinds(scale_next):
    drawing = hero_attention.by_layer(study("f", (scale_next, none(scale_next), MosaicSaliency(images=2))), "cluttered")
    assert set(drawing.pictures) == {"f", "f_layers"}
    titles = [axis.get_title() for axis in drawing.pictures["f"].axes]
    assert titles[:25] == ["image", *(f"layer {n}" for n in range(1, 25))]
    assert [len(axis.get_legend_handles_labels()[1]) for axis in drawing.pictures["f_layers"].axes] == [2, 2, 2]
    assert drawing.data["image"] == "mosaic_saliency/v1/cluttered/0000" and drawing.data["images"] == {"clear": 2, "cluttered": 2}
    assert len(drawing.claims) == 6
    assert drawing.pictures["f"].axes[24].images[0].get_gid().startswith("tip:layer 24: entropy")
    with pytest.raises(UserError, match="kind=dim is no kind"):
        hero_attention.by_layer(study("f"), "dim")


def test_the_image_keeps_its_colours_beside_the_maps(scale_next, monkeypatch):
    """A dark, flat picture is dark and flat: stretched from its darkest to its brightest value it would be white or black."""
    image = Image.new("RGB", (40, 20), (60, 50, 40))
    monkeypatch.setattr(hero_attention, "cls_attention_maps", lambda *_: [(None, image, torch.rand(24, 1, scale_next.grid[0] ** 2))])
    seen = hero_attention.ImageMeasures(None, None, None, {"iou": np.full(24, np.nan)})
    shown = np.asarray(hero_attention.maps(scale_next, seen).axes[0].images[0].get_array())
    assert shown.shape == (96, 96, 3) and np.abs(shown.astype(int) - [60, 50, 40]).max() <= 1


def test_mosaic_saliency_is_frozen_and_masks_what_is_no_background():
    samples = MosaicSaliency(images=3).samples()
    assert [s.id for s in samples][::3] == ["mosaic_saliency/v1/clear/0000", "mosaic_saliency/v1/cluttered/0000"]
    assert [s.image().size for s in samples] == [(64, 64)] * 3 + [(192, 192), (256, 256), (192, 192)]
    shares = [round(float(s.mask().mean()), 6) for s in samples]
    for sample, share in zip(samples, shares, strict=True):
        pixels, mask = np.asarray(sample.image()).astype(int), sample.mask()
        cell = pixels[:64, :64][~mask[:64, :64]]
        assert (cell.max(0) - cell.min(0)).max() <= 41  # one flat colour but for an edge of 20 grey levels
        assert 0 < share < 0.6
    assert max(shares[3:]) < 0.06
    assert [s.id for s in MosaicSaliency(images=5).samples()][:3] == [s.id for s in samples][:3]


def test_the_same_share_of_another_grid_is_compared(scale):
    assert (patches(50, 576, 576), patches(50, 576, 144), patches(1, 576, 144)) == (50, 13, 1)
    benchmark = MosaicSaliency(images=1, layers=[1, 2])
    records, skipped = benchmark.probe(scale, None, lambda n: None)
    same, _ = Duts.probe(MosaicSaliency(images=1, layers=[1, 2], top=13), scale, None, lambda n: None)
    assert (records, skipped) == (same, []) and benchmark.top == 50
    with pytest.raises(UserError, match="benchmark.top=576 does not choose among benchmark.of=576"):
        MosaicSaliency(top=576)
