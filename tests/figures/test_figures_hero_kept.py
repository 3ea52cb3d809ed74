"""HERO's figure of the tokens that stay (Fig. 6): how long each is there, what of the image they cover, and several methods at once."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.figure_studies import point, study

from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.core.method import Method
from blink_exp.core.sequence import Retain
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError
from blink_exp.figures import hero_kept
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none


def test_what_stays_is_mapped_onto_the_image():
    """A 1 x 2 grid of tiles of 2 x 2 tokens, all shown: the right tile's lower left token stays, and the thumbnail's first, half."""
    views = ViewGeometry(side=2, rows=1, columns=2, size=(10, 20))
    share = torch.zeros(3, 4)
    share[2, 2], share[0, 0] = 1, 0.5
    tiles, thumbnail = hero_kept.as_maps(share, views)
    assert tiles.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert thumbnail.tolist() == [[0.5, 0], [0, 0]]
    assert hero_kept.as_maps(torch.zeros(1, 4), ViewGeometry(side=2))[0] is None
    weight = torch.zeros(3, 4)
    weight[2, 2], weight[0, 0], weight[1, 1] = 0.25, 0.5, 0.25
    assert hero_kept.recall(share, weight) == pytest.approx(0.5)


def test_how_long_tokens_are_there_under_a_policy_by_hand(monkeypatch):
    """Four tokens and a newline in a model of four layers: behind layer 0 two stay and one merged token joins, behind layer 2 the
    merged one goes."""
    from blink_exp.methods.fastv import FastVPolicy

    visual = SimpleNamespace(source=torch.tensor([0, 1, 2, 3, -1]), views=ViewGeometry(side=2), features=None)
    steps = [(0, Retain((1, 3), ((0, 2),))), (2, Retain((1,)))]
    taken = [SimpleNamespace(decision=d, scan=SimpleNamespace(layer=layer)) for layer, d in steps]
    backbone = SimpleNamespace(depth=4, model=None, visual=lambda *_: [visual], generate=lambda *_: None)

    monkeypatch.setattr(
        hero_kept, "attach", lambda model, method: contextlib.nullcontext(SimpleNamespace(records=taken, see=lambda visual: None))
    )
    method = Method(FastVPolicy())
    share, _ = hero_kept.presence(backbone, method, "k", None, "q")
    assert share.tolist() == [[0.25, 0.75, 0.25, 1.0]]


def test_kept_areas_against_all_tokens_by_hand():
    def shares(region, everything):
        return {"HERO": {hero_kept.REGION: region, hero_kept.SALIENT: [0.9, 0.8], hero_kept.ALL: everything}}

    region, salient = hero_kept.claims(shares([0.6, 0.5], [0.2, 0.2]), "HERO")
    assert region.holds is True and region.numbers["HERO, difference"] == pytest.approx(0.35)
    assert salient.numbers["HERO, all annotated objects"] == pytest.approx(0.85)
    assert hero_kept.claims(shares([0.1, 0.12], [0.2, 0.2]), "HERO")[0].holds is False
    assert hero_kept.claims({"HERO": {area: [] for area in shares([], [])["HERO"]}}, "HERO")[0].holds is None


def test_examples_are_of_different_images_and_kinds_right_answers_first():
    def sample(k, image, category, regions=1):
        return Sample(k, image, lambda: None, "q", "yes", category, ((0, 0, 1, 1),) * regions)

    samples = [sample("a", "1", "x", 2), sample("b", "1", "x"), sample("c", "2", "x"), sample("d", "3", "y"), sample("e", "3", "z")]
    records = [{"id": k, "correct": k != "b"} for k in "abcde"]
    assert [s.id for s in hero_kept.select_examples(samples, records, 3)] == ["c", "d", "b"]  # no third kind on another image
    assert [s.id for s in hero_kept.select_examples(samples, [], 2)] == ["b", "d"]


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
    shares = drawing.data["kept"]
    assert set(shares) == {"HERO (20 %)", "random tokens"}
    assert shares["random tokens"][hero_kept.ALL] == pytest.approx([0.2] * len(shares["random tokens"][hero_kept.ALL]), abs=0.02)
    with pytest.raises(UserError, match="method=none drops none"):
        hero_kept.examples(study("f", (scale_next, none(scale_next), benchmark)))


def test_figure_6_passes_over_an_image_that_does_not_open(scale_next, monkeypatch):
    benchmark = MosaicHR(images=3)
    samples = benchmark.samples()
    first = samples[0].image_id

    def broken():
        raise OSError("cut off")

    samples = [replace(s, image=broken) if s.image_id == first else s for s in samples]
    monkeypatch.setattr(benchmark, "samples", lambda: samples)
    hero = Method(name="hero", pruner=Hero(0.2, frozenset({8}), frozenset({22})))
    drawing = hero_kept.examples(study("f", (scale_next, hero, benchmark)), count=3, asked=3)
    assert set(drawing.pictures) == {"f_1", "f_2"} and len(drawing.data["examples"]) == 2


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
    backbone, benchmark, methods, records = hero_kept.methods_to_draw(study("f", rows=rows))
    assert (backbone, benchmark, records) == ("backbone", "benchmark", [{"id": "HERO 20"}])
    assert [one.label for one in methods] == ["HERO 20", "random"] and "HERO 40" not in opened


def test_the_caption_says_that_right_answers_are_drawn_first(monkeypatch):
    benchmark = MosaicHR(images=1)
    monkeypatch.setattr(
        hero_kept, "recalls", lambda *_: {"HERO 20": {area: [] for area in (hero_kept.REGION, hero_kept.SALIENT, hero_kept.ALL)}}
    )

    def caption(records):
        methods = [
            hero_kept.LabelledMethod("HERO 20", Method(name="hero", pruner=Hero(0.2))),
            hero_kept.LabelledMethod("random", Method(name="random")),
        ]
        monkeypatch.setattr(hero_kept, "methods_to_draw", lambda study: (SimpleNamespace(identity="b@1"), benchmark, methods, records))
        return hero_kept.examples(study("f"), count=0).caption

    assert "those that HERO 20 answered right; the claims count right and wrong alike." in caption([{"id": "a", "correct": True}])
    assert caption([]).endswith("Drawn first: questions about one region.")


def test_several_methods_stand_side_by_side():
    sample = Sample("a", "a", lambda: None, "what costs $5 or $6?", "yes", "x", ((0, 0, 0.5, 1),))
    tiles, thumbnail = torch.ones(4, 8), torch.zeros(2, 2)
    figure = hero_kept.draw_panels(Image.new("RGB", (40, 20)), sample, [(f"m{k}", tiles, thumbnail) for k in range(4)])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "m0", "m1", "m2", *[""] * 4, "", "m3", *[""] * 6]  # three a line, the thumbnail below the tiles
    figure.draw_without_rendering()  # dollars are no formula
