"""HERO's figures: their numbers by hand, claims that hold and that do not, and pictures with the right panels."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from blink_exp.backbone.views import Views
from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_saliency import MosaicSaliency, patches
from blink_exp.errors import UserError
from blink_exp.figures import hero_alpha, hero_attention, hero_kept, hero_layers, hero_measures, hero_tiles
from blink_exp.figures.base import Study, written
from blink_exp.figures.hero_measures import Mean, all_of, block, mean, named
from blink_exp.methods.base import Method
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none
from blink_exp.sequence import Retain

CONF = Path(__file__).resolve().parent.parent / "conf"
FIGURES = [f"hero_fig{n}" for n in (1, 2, 4, 5, 6, 8, 9)]


@dataclasses.dataclass(frozen=True)
class Opened(Study):
    """A study whose model, method and benchmark are given."""

    three: tuple = ()

    def opened(self):
        return self.three


def study(name, three=(), rows=()):
    settings = {"limit": None, "retention_ratio": 0.2, "benchmark": {"_target_": "blink_exp.benchmarks.mmstar.MMStar"}}
    return Opened(name, OmegaConf.create(settings), list(rows), three)


def point(folder, records, **row):
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    return {"status": "done", "folder": str(folder), "backbone": "scale@1", "point": "p"} | row


# what is measured


def test_a_mean_counts_beyond_two_standard_errors():
    sure = mean([1.0, 2.0, 3.0])  # 2 ± 1 / sqrt(3)
    assert (sure.value, sure.n, sure.above) == (2, 3, True)
    assert sure.stderr == pytest.approx(1 / math.sqrt(3))
    assert mean([-1.0, -2.0, -3.0]).above is False
    assert mean([1.0, -0.9, 0.4]).above is None
    assert mean([0.0, 0.0]).above is None and mean([5.0]).above is None and mean([float("nan")]) == Mean(None, None, 0)
    assert Mean(1.0, 3.0, 2).below(Mean(2.0, 4.0, 5)) == Mean(1.0, 5.0, 7)
    assert (all_of(True, True), all_of(True, None), all_of(None, False), all_of()) == (True, None, False, None)


def test_layers_keep_their_relative_depth():
    assert block(1, 12, 24) == list(range(1, 13)) and block(22, 24, 24) == [22, 23, 24]
    assert block(13, 24, 12) == list(range(7, 13)) and block(22, 24, 2) == [2]
    assert named([1, 2, 3, 11, 12]) == "layers 1-3, 11-12" and named([4]) == "layer 4"


def test_masks_cover_tokens_of_tiles_and_thumbnail(monkeypatch):
    """10 x 20 pixels on 1 x 2 tiles of 2 x 2 tokens: the mask is the right quarter, the right column of the second tile."""
    monkeypatch.setattr(hero_measures, "on_view", lambda backbone, mask: torch.eye(4).bool())
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 15:] = True
    found = hero_measures.token_cover(None, Views(side=2, rows=1, columns=2, size=(10, 20)), mask)
    assert found.tolist() == [[0.5, 0, 0, 0.5], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_boxes_stand_in_for_masks():
    sample = Sample("a", "a", lambda: None, "q", "yes", "k", ((0.5, 0, 1, 0.5),))
    mask = hero_measures.asked(sample, (8, 4))
    assert mask.shape == (4, 8) and mask[:2, 4:].all() and mask.sum() == 8
    assert hero_measures.asked(dataclasses.replace(sample, regions=()), (8, 4)) is None
    other = dataclasses.replace(sample, regions=((0, 0, 0.5, 0.5),))
    assert hero_measures.objects([sample, other], (8, 4)).sum() == 16


# Fig. 2


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


# Fig. 4


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
    assert "13 of 144" in drawing.caption and "2 images" in drawing.measured_on
    written(drawing, tmp_path / "out")
    assert "layer 2: IoU 0.300" in (tmp_path / "out" / "f.svg").read_text()
    failed = {"status": "failed", "error": "no data", "point": "p"}
    with pytest.raises(UserError, match="not measured: no data; use benchmark=mosaic_saliency"):
        hero_layers.objects(study("f", (scale, none(scale), MosaicSaliency()), [failed]))


# Figs. 8 and 9


def test_entropy_peak_and_iou_of_a_layer():
    """Ten patches, of which the foreground covers 0 and 1. Even, on one patch of the object, on both, on one beside it."""
    flat, one, both, away = torch.full((10,), 0.1), torch.eye(10)[0], torch.eye(10)[:2].sum(0), torch.eye(10)[9]
    covered = torch.tensor([1.0, 1.0] + [0.0] * 8)
    found = hero_attention.measures(torch.stack([flat, one, both * 3, away]), covered)
    assert found["entropy"] == pytest.approx([1, 0, math.log(2) / math.log(10), 0], abs=1e-9)
    assert found["peak"] == pytest.approx([0.1, 1, 0.5, 1])
    assert found["iou"] == pytest.approx([1, 1, 1, 1 / 3])  # ties go to the lower index: even attention picks 0 and 1, the last 9 and 0
    assert np.isnan(hero_attention.measures(flat[None], None)["iou"]).all()


def image_with(entropy, peak, iou, kind="clear", shift=0.0):
    def stages(values):
        initial, focused, middle, later, end = values
        return np.asarray([initial] * 3 + [focused] * 7 + [middle] * 4 + [later] * 8 + [end] * 2) + shift

    sample = Sample("a", "a", lambda: None, "", None, kind)
    return hero_attention.Seen(sample, kind, 0.1, {"entropy": stages(entropy), "peak": stages(peak), "iou": stages(iou)})


def test_the_stages_hold_where_they_are_and_nowhere_else():
    told = [image_with((0.9, 0.5, 0.8, 0.3, 0.4), (0.1, 0.3, 0.2, 0.8, 0.6), (0.2, 0.7, 0.3, 0.1, 0.1), shift=s) for s in (0, 0.01)]
    assert [claim.holds for claim in hero_attention.stages(told, "clear")] == [True] * 5
    settled = hero_attention.stages(told, "clear")[1]
    assert settled.numbers["iou, layers 4-10 less layers 1-3"] == pytest.approx(0.5)
    assert settled.numbers["iou, layers 4-10 less layers 1-3, 11-24"] == pytest.approx(0.7 - (3 * 0.2 + 4 * 0.3 + 10 * 0.1) / 17)
    other = [image_with((0.4, 0.5, 0.3, 0.3, 0.4), (0.9, 0.8, 0.7, 0.1, 0.6), (0.8, 0.7, 0.3, 0.9, 0.1), shift=s) for s in (0, 0.01)]
    assert [claim.holds for claim in hero_attention.stages(other, "clear")] == [False] * 5


def test_the_best_layer_comes_later_or_does_not():
    def peaked(layer, kind):
        sample = Sample("a", "a", lambda: None, "", None, kind)
        return hero_attention.Seen(sample, kind, 0.1, {"iou": np.eye(24)[layer - 1]})

    clear, cluttered = [peaked(n, "clear") for n in (4, 4, 5)], [peaked(n, "cluttered") for n in (9, 9, 9, 10)]
    claim = hero_attention.best_layers(clear, cluttered)
    assert claim.holds is True and claim.numbers["best layer by mean IoU, clear"] == 4
    assert claim.numbers["best layer by mean IoU, cluttered"] == 9
    assert claim.numbers["later by"] == pytest.approx(9.25 - 13 / 3)
    assert hero_attention.best_layers(cluttered, clear).holds is False
    assert hero_attention.best_layers([], cluttered).holds is None


def test_kinds_without_words_are_thirds_by_area(monkeypatch):
    def sample(k):
        def mask():
            out = np.zeros((4, 4), dtype=bool)
            out[:k] = True
            return out

        return Sample(str(k), str(k), lambda: Image.new("RGB", (4, 4)), "", None, "saliency", mask=mask)

    monkeypatch.setattr(hero_attention, "looks", lambda backbone, samples: ((s, s.image(), torch.rand(2, 1, 4)) for s in samples))
    monkeypatch.setattr(hero_attention, "on_view", lambda backbone, mask: torch.from_numpy(mask))
    found = hero_attention.seen(SimpleNamespace(grid=(2, 2)), [sample(k) for k in (1, 4, 2)])
    assert [one.kind for one in found] == ["cluttered", "clear", None]
    assert [one.share for one in found] == [0.25, 1, 0.5]


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


# Fig. 2 drawn, with another encoder


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
    encoded = [a for _, _, a in hero_measures.looks(scale_next, three[2].samples())]
    alike = np.mean([hero_layers.similarity(a) for a in encoded], axis=0)
    assert np.asarray(drawing.data["similarity"]["CLIP of scale-llava-next"]) == pytest.approx(alike, abs=1e-5)
    with pytest.raises(UserError, match="gives no CLIP"):
        hero_layers.other_clip(str(tmp_path))


# Fig. 5


def answers(right):
    """{question: (category, right)} as records."""
    return [{"id": k, "category": c, "correct": hit} for k, (c, hit) in right.items()]


def test_accuracies_by_category_and_their_peak():
    """Two questions of "a", four of "b"."""
    low = answers({"1": ("a", 1), "2": ("a", 0), "3": ("b", 0), "4": ("b", 0), "5": ("b", 0), "6": ("b", 1), "7": ("b", 1)})
    high = answers({"1": ("a", 0), "2": ("a", 0), "3": ("b", 1), "4": ("b", 1), "5": ("b", 1), "6": ("b", 1), "8": ("b", 1)})
    plain = hero_alpha.Scored({0.5: high, 0.0: low}, balanced=False)
    assert plain.x == [0.0, 0.5] and plain.categories == ["a", "b"]
    assert [m.value for m in plain.line("a")] == [50, 0] and [m.value for m in plain.line("b")] == [25, 100]
    assert [m.value for m in plain.line("average")] == pytest.approx([100 / 3, 200 / 3])  # of the six that both answered
    balanced = hero_alpha.Scored({0.5: high, 0.0: low}, balanced=True)
    assert [m.value for m in balanced.line("average")] == pytest.approx([37.5, 50])
    assert (plain.peak("a"), plain.peak("b")) == (0.0, 0.5)
    assert plain.lead("b", [0.5]).value == 75 and plain.lead("a", [0.5]).value == -50
    assert plain.lead("a", [0.7]).value is None


def curve(values, questions=400):
    """Records at each alpha, of which the first so many per cent are right."""
    return {x: answers({f"{k:03}": ("a", k < v * questions / 100) for k in range(questions)}) for x, v in values.items()}


def test_whether_the_average_peaks_at_one_half():
    def claim(values):
        return hero_alpha.claims(hero_alpha.Scored(curve(values), balanced=False))[0]

    assert claim({0.0: 40, 0.5: 60, 1.0: 50}).holds is True
    lower = claim({0.0: 40, 0.5: 50, 1.0: 60})
    assert lower.holds is False and lower.numbers["peak"] == 1.0 and lower.numbers["lead"] == pytest.approx(-10)
    even = claim({0.0: 50, 0.5: 50, 1.0: 50})
    assert even.holds is None and even.numbers["peak"] is None
    assert claim({0.0: 50, 0.5: 50.25, 1.0: 50}).holds is None  # one question of 400


def test_mmstar_s_categories_are_held_against_the_paper_s_peaks():
    def rows(peak_of):
        grid = [round(0.1 * k, 1) for k in range(11)]
        made = {}
        for x in grid:
            right = {}
            for c, (at, _) in hero_alpha.PEAKS.items():
                share = 0.8 if x == peak_of(at) else 0.4
                right |= {f"{c}/{k:03}": (c, k < 200 * share) for k in range(200)}
            made[x] = answers(right)
        return hero_alpha.claims(hero_alpha.Scored(made, balanced=True))[1]

    assert rows(lambda at: at).holds is True
    near = rows(lambda at: 0.8 if at == 0.7 else at)
    assert near.holds is True and near.numbers["peak, instance reasoning"] == 0.8
    assert rows(lambda at: 0.4 if at == 0.5 else at).holds is False
    own = hero_alpha.claims(hero_alpha.Scored({0.5: answers({"1": ("a", 1), "2": ("b", 0)})}, balanced=False))[1]
    assert own.holds is None and "MMStar" in own.how


def test_figure_5_has_a_line_a_category_and_the_average_in_black(tmp_path):
    right = {"1": ("a_b", 1), "2": ("b", 0), "3": ("b", 1)}
    rows = [point(tmp_path / str(x), answers(right), x=x, series="HERO", scores={"average": 0}) for x in (0.0, 0.5)]
    drawing = hero_alpha.categories(study("f", rows=[*rows, {"status": "failed", "error": "e", "x": 1.0}]))
    (axis,) = drawing.pictures["f"].axes
    handles, labels = axis.get_legend_handles_labels()
    assert labels == ["a b", "b", "average"] and handles[2].get_color() == "black"
    assert drawing.data["accuracy"] == {"a_b": [100, 100], "b": [50, 50], "average": [75, 75]}
    assert "1 points were not measured" in drawing.caption and drawing.measured_on == "scale on mmstar, 3 questions"
    with pytest.raises(UserError, match="no measured point: e;"):
        hero_alpha.categories(study("f", rows=[{"status": "failed", "error": "e"}]))


# Fig. 6


def test_what_stays_is_mapped_onto_the_image():
    """A 1 x 2 grid of tiles of 2 x 2 tokens, all shown: the right tile's lower left token stays, and the thumbnail's first, half."""
    views = Views(side=2, rows=1, columns=2, size=(10, 20))
    share = torch.zeros(3, 4)
    share[2, 2], share[0, 0] = 1, 0.5
    tiles, thumbnail = hero_kept.as_maps(share, views)
    assert tiles.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert thumbnail.tolist() == [[0.5, 0], [0, 0]]
    assert hero_kept.as_maps(torch.zeros(1, 4), Views(side=2))[0] is None
    weight = torch.zeros(3, 4)
    weight[2, 2], weight[0, 0], weight[1, 1] = 0.25, 0.5, 0.25
    assert hero_kept.recall(share, weight) == pytest.approx(0.5)


def test_how_long_tokens_are_there_under_a_policy_by_hand():
    """Four tokens and a newline in a model of four layers: behind layer 0 two stay and one merged token joins, behind layer 2 the
    merged one goes."""
    from blink_exp.methods.fastv import FastVPolicy

    visual = SimpleNamespace(source=torch.tensor([0, 1, 2, 3, -1]), views=Views(side=2), features=None)
    steps = [(0, Retain((1, 3), ((0, 2),))), (2, Retain((1,)))]
    taken = [SimpleNamespace(decision=d, scan=SimpleNamespace(layer=layer)) for layer, d in steps]
    backbone = SimpleNamespace(depth=4, model=None, visual=lambda *_: [visual], generate=lambda *_: None)

    class Attached:
        def __enter__(self):
            return SimpleNamespace(records=taken)

        def __exit__(self, *_):
            pass

    method = SimpleNamespace(pruner=None, policy=FastVPolicy(), attach=lambda model: Attached())
    share, _ = hero_kept.presence(backbone, method, "k", None, "q")
    assert share.tolist() == [[0.25, 0.75, 0.25, 1.0]]


def test_kept_areas_against_all_tokens_by_hand():
    def found(region, everything):
        return {"HERO": {hero_kept.REGION: region, hero_kept.SALIENT: [0.9, 0.8], hero_kept.ALL: everything}}

    region, salient = hero_kept.claims(found([0.6, 0.5], [0.2, 0.2]), "HERO")
    assert region.holds is True and region.numbers["HERO, difference"] == pytest.approx(0.35)
    assert salient.numbers["HERO, all annotated objects"] == pytest.approx(0.85)
    assert hero_kept.claims(found([0.1, 0.12], [0.2, 0.2]), "HERO")[0].holds is False
    assert hero_kept.claims({"HERO": {area: [] for area in found([], [])["HERO"]}}, "HERO")[0].holds is None


def test_examples_are_of_different_images_and_kinds_right_answers_first():
    def sample(k, image, category, regions=1):
        return Sample(k, image, lambda: None, "q", "yes", category, ((0, 0, 1, 1),) * regions)

    samples = [sample("a", "1", "x", 2), sample("b", "1", "x"), sample("c", "2", "x"), sample("d", "3", "y"), sample("e", "3", "z")]
    records = [{"id": k, "correct": k != "b"} for k in "abcde"]
    assert [s.id for s in hero_kept.chosen(samples, records, 3)] == ["c", "d", "b"]  # no third kind on another image
    assert [s.id for s in hero_kept.chosen(samples, [], 2)] == ["b", "d"]


def test_figure_6_shows_each_image_its_own_tokens(scale_next):
    """Images of different grids: nothing kept of one may be drawn on the other."""
    benchmark = MosaicHR(images=3)
    hero = Method(name="hero", pruner=Hero(0.2, frozenset({8}), frozenset({22})))
    drawing = hero_kept.examples(study("f", (scale_next, hero, benchmark)), count=2, asked=8)
    assert set(drawing.pictures) == {"f_1", "f_2"}
    assert [axis.get_title() for axis in drawing.pictures["f_1"].axes] == ["image", "HERO (20 %): tiles", "thumbnail"]
    drawn = {s.id: s for s in benchmark.samples() if s.id in drawing.data["examples"]}
    for k, name in enumerate(drawing.data["examples"]):
        encoding = scale_next.encodings({name: drawn[name].image()}, hero.pruner.needs)[name]
        stays = torch.zeros(encoding.views.count, encoding.views.tokens)
        for view, index in enumerate(hero.pruner.select(encoding, drawn[name].question).indices):
            stays[view, index] = 1
        for axis, values in zip(drawing.pictures[f"f_{k + 1}"].axes[1:], hero_kept.as_maps(stays, encoding.views), strict=True):
            dark = np.asarray(axis.images[1].get_array())[..., 3]
            assert np.array_equal(dark == 0, values.numpy() == 1)
    kept = drawing.data["kept"]
    assert set(kept) == {"HERO (20 %)", "random tokens"}
    assert kept["random tokens"][hero_kept.ALL] == pytest.approx([0.2] * len(kept["random tokens"][hero_kept.ALL]), abs=0.02)
    with pytest.raises(UserError, match="method=none drops none"):
        hero_kept.examples(study("f", (scale_next, none(scale_next), benchmark)))


def test_on_a_table_s_page_each_method_is_drawn_at_the_last_of_its_points(tmp_path, monkeypatch):
    rows = [
        point(tmp_path / label, [{"id": label}], point=label, method=name, scores={})
        for name, label in (("none", "all"), ("hero", "HERO 40"), ("hero", "HERO 20"), ("random", "random"))
    ]
    opened = []

    def prepared(row):
        opened.append(row["point"])
        pruner = None if row["method"] == "none" else Hero(0.2)
        return "backbone", Method(name=row["method"], pruner=pruner), "benchmark"

    monkeypatch.setattr(hero_kept, "_prepared", prepared)
    backbone, benchmark, methods, records = hero_kept.shown(study("f", rows=rows))
    assert (backbone, benchmark, records) == ("backbone", "benchmark", [{"id": "HERO 20"}])
    assert [one.label for one in methods] == ["HERO 20", "random"] and "HERO 40" not in opened


def test_several_methods_stand_side_by_side():
    sample = Sample("a", "a", lambda: None, "what costs $5 or $6?", "yes", "x", ((0, 0, 0.5, 1),))
    tiles, thumbnail = torch.ones(4, 8), torch.zeros(2, 2)
    figure = hero_kept.kept(Image.new("RGB", (40, 20)), sample, [(f"m{k}", tiles, thumbnail) for k in range(4)])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "m0", "m1", "m2", *[""] * 4, "", "m3", *[""] * 6]  # three a line, the thumbnail below the tiles
    figure.draw_without_rendering()  # dollars are no formula


# Fig. 1


def test_scores_of_tiles_by_hand():
    assert hero_tiles.normalised(torch.tensor([0.2, 0.4, 0.3])).tolist() == pytest.approx([0, 1, 0.5])
    assert hero_tiles.normalised(torch.tensor([0.2, 0.2])).tolist() == [1, 1]
    assert hero_tiles.outstanding(torch.tensor([1.0, 3.0, 1.0]), True) == 1
    half = torch.tensor([1.0, 2.0, 1.0])
    assert hero_tiles.outstanding(half, True) is None and hero_tiles.outstanding(half, False) == 1
    assert hero_tiles.outstanding(torch.zeros(3), False) is None and hero_tiles.outstanding(torch.tensor([2.0, 2.0]), False) is None
    boxes = hero_tiles.tile_boxes(Views(side=2, rows=1, columns=2, size=(10, 20)))
    assert boxes == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]


def questions(hits):
    """Questions about two tiles, one an image: whether CLSsim and CLIPscore rank tile 1, which holds everything, first."""
    rows = []
    for k, (cls, clip) in enumerate(hits):
        sample = Sample(str(k), str(k), lambda: None, "q", "yes", "x")
        scores = {hero_tiles.CLS: torch.tensor([0.5, float(cls)]), hero_tiles.CLIP: torch.tensor([0.5, float(clip)])}
        rows.append(hero_tiles.Ranked(sample, scores, 1, 1))
    return rows


def test_which_score_favours_a_tile():
    rows = questions([(0, 1)] * 9 + [(1, 1)])
    claim = hero_tiles.preferred(rows, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile")
    assert claim.holds is True
    assert (claim.numbers["first by CLIPscore"], claim.numbers["first by CLSsim"], claim.numbers["chance"]) == (1, 0.1, 0.5)
    assert hero_tiles.preferred(rows, "main", hero_tiles.CLS, hero_tiles.CLIP, "it", "the tile").holds is False
    even = questions([(1, 1)] * 10)
    assert hero_tiles.preferred(even, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile").holds is None  # no better than the other
    bare = [dataclasses.replace(row, region=None) for row in rows]
    assert hero_tiles.preferred(bare, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile").holds is None


def test_figure_1_shows_the_scores_that_hero_s_shares_are_made_of(scale_next, scale):
    benchmark = MosaicHR(images=2)
    drawing = hero_tiles.scores(study("f", (scale_next, none(scale_next), benchmark)))
    sample = next(s for s in benchmark.samples() if s.id == drawing.data["sample"])
    encoding = scale_next.encodings({"x": sample.image()}, Hero(0.2).needs)["x"]
    for name, alpha in (("CLSsim", 1.0), ("CLIPscore", 0.0)):
        shares = Hero(0.2, alpha=alpha).shares(encoding, sample.question)
        assert torch.tensor(drawing.data["scores"][name]).softmax(0).tolist() == pytest.approx(shares, abs=1e-5)
    panels = drawing.pictures["f"].axes
    assert [axis.get_title() for axis in panels] == ["CLSsim", "CLIPscore"]
    assert [len(axis.texts) for axis in panels] == [encoding.views.tiles] * 2
    with pytest.raises(UserError, match="has one view; use model=scale_llava_next"):
        hero_tiles.scores(study("f", (scale, none(scale), benchmark)))


# the benchmark of masks


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


# configs


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_composes_and_its_maker_takes_a_study(name):
    text = (CONF / "figure" / f"{name}.yaml").read_text()
    figure = yaml.safe_load(text)
    assert text.startswith("# ") and (figure["name"], figure["source"]) == (name, name.replace("_", "-").replace("fig", "fig-"))
    swept = [[w.format(x=x) for w in s["overrides"]] for s in figure.get("sweeps", []) for x in s["x"]]
    points = [*(p["overrides"] for p in figure.get("points", [])), *(swept[:1] + swept[-1:])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("sweep", overrides=[*figure["overrides"], f"benchmark={figure['there']}"])
        for words in points or [[]]:
            cfg = compose("sweep", overrides=[*figure["overrides"], f"benchmark={figure['here']}", *words])
            assert cfg.model.name == "scale-llava-next"
        if swept:
            assert cfg.hero_alpha.alpha == 1.0 and len(swept) == 11
    with pytest.raises(TypeError, match="study"):  # every other argument is the config's
        instantiate(figure["draw"])()
