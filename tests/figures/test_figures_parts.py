"""Figures and matching ask about the images that evaluate.py would: one part of the benchmark, one shard of it, so many of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image
from support.figure_studies import settings_of, study

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.benchmarks.parts import in_validation
from blink_exp.core.method import Method
from blink_exp.evaluation import evaluator
from blink_exp.figures import hero_attention, hero_kept, hero_layers, hero_tiles
from blink_exp.methods.controls import RandomTokens
from blink_exp.studies import matching

IMAGES = [f"image {k}" for k in range(40)]
TEST = [name for name in IMAGES if not in_validation(name)]
ASKED = {  # what is asked for, by hand
    "part": ({"part": "test"}, TEST),
    "shard": ({"part": "test", "shard": "2/3"}, TEST[1::3]),
    "limit": ({"part": "test", "limit": 4}, [TEST[k * len(TEST) // 2] for k in range(2)]),  # two images with two questions each
}
MAKERS = [
    (hero_layers, "similarities", lambda s: hero_layers.heat(s)),
    (hero_attention, "measure_images", lambda s: hero_attention.by_layer(s)),
    (hero_tiles, "rank_tiles", lambda s: hero_tiles.scores(s)),
    (hero_kept, "select_examples", lambda s: hero_kept.examples(s)),
    (hero_kept, "recalls", lambda s: hero_kept.examples(s, count=0)),
]
BACKBONE = SimpleNamespace(name="b", identity="b@1", tiled=True)


class Flat(ExactMatch):
    """Two questions on each of forty images, no two of which are the same."""

    name = "flat"

    def __init__(self):
        self.prompted = []

    def samples(self):
        return [Sample(f"{name}/{q}", name, self.image(k), "q", "a", "c") for k, name in enumerate(IMAGES) for q in "ab"]

    def image(self, k):
        return lambda: Image.new("RGB", (8, 8), (k, 0, 0))

    def prompt(self, sample):
        self.prompted.append(sample.image_id)
        return sample.question


class Stop(Exception):
    pass


def test_the_benchmark_of_these_tests_has_both_parts():
    assert 20 < len(TEST) < 36


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize(("module", "inner", "draw"), MAKERS, ids=[inner for _, inner, _ in MAKERS])
def test_a_figure_asks_about_its_part_alone(module, inner, draw, what, monkeypatch):
    settings, wanted = ASKED[what]
    taken = []

    def taking(*given):
        taken.extend(s for one in given if isinstance(one, list) for s in one if isinstance(s, Sample))
        raise Stop

    monkeypatch.setattr(module, inner, taking)
    with pytest.raises(Stop):
        draw(study("f", (BACKBONE, Method(name="hero", pruner=RandomTokens(0.2)), Flat()), **settings))
    assert list(dict.fromkeys(s.image_id for s in taken)) == wanted


@pytest.mark.parametrize("what", ASKED)
def test_matching_looks_at_one_question_on_each_image_of_its_part(what, monkeypatch):
    settings, wanted = ASKED[what]
    benchmark = Flat()
    monkeypatch.setattr(evaluator, "prepare", lambda cfg: (BACKBONE, None, benchmark))
    monkeypatch.setattr(matching, "prompt_of", lambda backbone, asking, sample: asking.prompt(sample))
    matching.share_by(settings_of(**settings), "method.ratio")
    assert benchmark.prompted == wanted
