"""HERO's figures of tiles and of alpha (Figs. 1 and 5), what is measured of masks, and all their YAML."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from support.figure_studies import CONF, point, study

from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError
from blink_exp.figures import hero_alpha, hero_measures, hero_tiles
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none

FIGURES = [f"hero_fig{n}" for n in (1, 2, 4, 5, 6, 8, 9)]


def test_masks_cover_tokens_of_tiles_and_thumbnail(monkeypatch):
    """10 x 20 pixels on 1 x 2 tiles of 2 x 2 tokens: the mask is the right quarter, the right column of the second tile."""
    monkeypatch.setattr(hero_measures, "on_view", lambda backbone, mask: torch.eye(4).bool())
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 15:] = True
    cover = hero_measures.token_cover(None, ViewGeometry(side=2, rows=1, columns=2, size=(10, 20)), mask)
    assert cover.tolist() == [[0.5, 0, 0, 0.5], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_boxes_stand_in_for_masks():
    sample = Sample("a", "a", lambda: None, "q", "yes", "k", ((0.5, 0, 1, 0.5),))
    mask = hero_measures.annotation_mask(sample, (8, 4))
    assert mask.shape == (4, 8) and mask[:2, 4:].all() and mask.sum() == 8
    assert hero_measures.annotation_mask(dataclasses.replace(sample, regions=()), (8, 4)) is None
    other = dataclasses.replace(sample, regions=((0, 0, 0.5, 0.5),))
    assert hero_measures.objects([sample, other], (8, 4)).sum() == 16


def test_scores_of_tiles_by_hand():
    assert hero_tiles.normalised(torch.tensor([0.2, 0.4, 0.3])).tolist() == pytest.approx([0, 1, 0.5])
    assert hero_tiles.normalised(torch.tensor([0.2, 0.2])).tolist() == [1, 1]
    assert hero_tiles.outstanding(torch.tensor([1.0, 3.0, 1.0]), True) == 1
    half = torch.tensor([1.0, 2.0, 1.0])
    assert hero_tiles.outstanding(half, True) is None and hero_tiles.outstanding(half, False) == 1
    assert hero_tiles.outstanding(torch.zeros(3), False) is None and hero_tiles.outstanding(torch.tensor([2.0, 2.0]), False) is None
    boxes = hero_tiles.tile_boxes(ViewGeometry(side=2, rows=1, columns=2, size=(10, 20)))
    assert boxes == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]


def questions(hits):
    """Questions about two tiles, one an image: whether CLSsim and CLIPscore rank tile 1, which holds everything, first."""
    rows = []
    for k, (cls, clip) in enumerate(hits):
        sample = Sample(str(k), str(k), lambda: None, "q", "yes", "x")
        scores = {hero_tiles.CLS: torch.tensor([0.5, float(cls)]), hero_tiles.CLIP: torch.tensor([0.5, float(clip)])}
        rows.append(hero_tiles.RankedTiles(sample, scores, 1, 1))
    return rows


def test_which_score_favours_a_tile():
    rows = questions([(0, 1)] * 9 + [(1, 1)])
    claim = hero_tiles.preference_claim(rows, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile")
    assert claim.holds is True
    assert (claim.numbers["first by CLIPscore"], claim.numbers["first by CLSsim"], claim.numbers["chance"]) == (1, 0.1, 0.5)
    assert hero_tiles.preference_claim(rows, "main", hero_tiles.CLS, hero_tiles.CLIP, "it", "the tile").holds is False
    even = questions([(1, 1)] * 10)
    # no better than the other
    assert hero_tiles.preference_claim(even, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile").holds is None
    bare = [dataclasses.replace(row, region=None) for row in rows]
    assert hero_tiles.preference_claim(bare, "region", hero_tiles.CLIP, hero_tiles.CLS, "it", "the tile").holds is None


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


def answers(right, images=None):
    """{question: (category, right)} as records; an image a question, or the one of ``images``."""
    return [{"id": k, "image_id": (images or {}).get(k, k), "category": c, "correct": hit} for k, (c, hit) in right.items()]


def test_accuracies_by_category_and_their_peak():
    """Two questions of "a", four of "b"."""
    low = answers({"1": ("a", 1), "2": ("a", 0), "3": ("b", 0), "4": ("b", 0), "5": ("b", 0), "6": ("b", 1), "7": ("b", 1)})
    high = answers({"1": ("a", 0), "2": ("a", 0), "3": ("b", 1), "4": ("b", 1), "5": ("b", 1), "6": ("b", 1), "8": ("b", 1)})
    plain = hero_alpha.AlphaScores({0.5: high, 0.0: low}, balanced=False)
    assert plain.x == [0.0, 0.5] and plain.categories == ["a", "b"]
    assert [m.value for m in plain.line("a")] == [50, 0] and [m.value for m in plain.line("b")] == [25, 100]
    assert [m.value for m in plain.line("average")] == pytest.approx([100 / 3, 200 / 3])  # of the six that both answered
    balanced = hero_alpha.AlphaScores({0.5: high, 0.0: low}, balanced=True)
    assert [m.value for m in balanced.line("average")] == pytest.approx([37.5, 50])
    assert (plain.peak("a"), plain.peak("b")) == (0.0, 0.5)
    assert plain.lead("b", [0.5]) == 75 and plain.lead("a", [0.5]) == -50
    assert plain.lead("a", [0.7]) is None


def test_errors_of_accuracy_are_over_images():
    """Deviations from .75: -.75 + .25 on one image, .25 + .25 on the other: sqrt(2 * (.25 + .25)) / 4 = .25. Then 0 and 1 on the same two
    images in each of two categories: the average of what moves together is as uncertain as either."""
    rows = answers({"1": ("a", 0), "2": ("a", 1), "3": ("a", 1), "4": ("a", 1)}, {"1": "x", "2": "x", "3": "y", "4": "y"})
    (plain,) = hero_alpha.AlphaScores({0.5: rows}, balanced=False).line("average")
    assert (plain.value, plain.n) == (75, 4) and plain.stderr == pytest.approx(25)
    rows = answers({"1": ("a", 0), "2": ("a", 1), "3": ("b", 0), "4": ("b", 1)}, {"1": "x", "2": "y", "3": "x", "4": "y"})
    both = hero_alpha.AlphaScores({0.5: rows}, balanced=True)
    assert [both.line(name)[0].stderr for name in ("a", "b", "average")] == pytest.approx([50, 50, 50])
    apart = hero_alpha.AlphaScores({0.5: [r | {"image_id": r["id"]} for r in rows]}, balanced=True).line("average")[0]
    assert apart.stderr == pytest.approx(50 / 2**0.5)
    lonely = hero_alpha.AlphaScores({0.5: [*rows, *answers({"5": ("c", 1)})]}, balanced=True)
    assert lonely.line("c")[0].stderr is None and lonely.line("average")[0].stderr is None


def curve(values, questions=400):
    """Records at each alpha, of which the first so many per cent are right."""
    return {x: answers({f"{k:03}": ("a", k < v * questions / 100) for k in range(questions)}) for x, v in values.items()}


def test_whether_the_average_peaks_at_one_half():
    def claim(values):
        return hero_alpha.claims(hero_alpha.AlphaScores(curve(values), balanced=False))[0]

    assert claim({0.0: 40, 0.5: 60, 1.0: 50}).holds is True
    lower = claim({0.0: 40, 0.5: 50, 1.0: 60})
    assert lower.holds is False and lower.numbers["peak"] == 1.0 and lower.numbers["lead"] == pytest.approx(-10)
    even = claim({0.0: 50, 0.5: 50, 1.0: 50})
    assert even.holds is None and even.numbers["peak"] is None
    assert claim({0.0: 50, 0.5: 50.25, 1.0: 50}).holds is None  # one question of 400
    assert claim({0.0: 40, 0.5: 60, 1.0: 59.75}).holds is None  # above one of the two only
    # five questions of 400, 2.25 standard errors: enough for one comparison, not for the luckiest of two
    assert claim({0.5: 50, 1.0: 51.25}).holds is False
    picked = claim({0.0: 50, 0.5: 50, 1.0: 51.25})
    assert picked.holds is None and picked.numbers == {"peak": 1.0, "lead": pytest.approx(-1.25)} and "Holm" in picked.how
    assert claim({0.5: 50}).holds is None and claim({0.0: 50, 1.0: 60}).holds is None


def test_a_peak_may_be_at_any_of_several_alphas():
    places = {"average": [0.6, 0.7]}
    assert hero_alpha.peaks(hero_alpha.AlphaScores(curve({0.1: 40, 0.6: 30, 0.7: 60}), False), places) == {"average": True}
    # above one of both
    assert hero_alpha.peaks(hero_alpha.AlphaScores(curve({0.1: 50, 0.6: 30, 0.7: 50}), False), places) == {"average": None}
    assert hero_alpha.peaks(hero_alpha.AlphaScores(curve({0.1: 60, 0.6: 30, 0.7: 50}), False), places) == {"average": False}


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
        return hero_alpha.claims(hero_alpha.AlphaScores(made, balanced=True))[1]

    assert rows(lambda at: at).holds is True
    near = rows(lambda at: 0.8 if at == 0.7 else at)
    assert near.holds is True and near.numbers["peak, instance reasoning"] == 0.8
    elsewhere = rows(lambda at: 0.4 if at == 0.5 else at)
    assert elsewhere.holds is False
    assert [elsewhere.numbers[f"holds (1) or not (0), {c}"] for c in ("math", "instance reasoning")] == [0, 1]
    assert elsewhere.numbers["lead, math"] == pytest.approx(-40)
    claim = hero_alpha.claims(hero_alpha.AlphaScores({0.5: answers({"1": ("a", 1), "2": ("b", 0)})}, balanced=False))[1]
    assert claim.holds is None and "MMStar" in claim.how


def test_figure_5_has_a_line_a_category_and_the_average_in_black(tmp_path):
    right = {"1": ("a_b", 1), "2": ("b", 0), "3": ("b", 1)}
    rows = [point(tmp_path / str(x), answers(right), x=x, series="HERO", scores={"average": 0}) for x in (0.0, 0.5)]
    drawing = hero_alpha.categories(study("f", rows=[*rows, {"status": "failed", "error": "e", "x": 1.0}]))
    (axis,) = drawing.pictures["f"].axes
    handles, labels = axis.get_legend_handles_labels()
    assert labels == ["a b", "b", "average"] and handles[2].get_color() == "black"
    assert drawing.data["accuracy"] == {"a_b": [100, 100], "b": [50, 50], "average": [75, 75]}
    assert "1 points were not measured" in drawing.caption and drawing.measured_on == "scale@1, mmstar, 3 questions"
    with pytest.raises(UserError, match="no measured point: e;"):
        hero_alpha.categories(study("f", rows=[{"status": "failed", "error": "e"}]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_composes_and_its_maker_takes_a_study(name):
    text = (CONF / "figure" / f"{name}.yaml").read_text(encoding="utf-8")
    figure = yaml.safe_load(text)
    assert text.startswith("# ") and (figure["name"], figure["source"]) == (name, name.replace("_", "-").replace("fig", "fig-"))
    swept = [[w.format(x=x) for w in s["overrides"]] for s in figure.get("sweeps", []) for x in s["x"]]
    points = [*(p["overrides"] for p in figure.get("points", [])), *(swept[:1] + swept[-1:])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("sweep", overrides=[*figure["overrides"], f"benchmark={figure['benchmarks']['published']}"])
        for words in points or [[]]:
            cfg = compose("sweep", overrides=[*figure["overrides"], f"benchmark={figure['benchmarks']['scale']}", *words])
            assert cfg.model.name == "scale-llava-next"
        if swept:
            assert cfg.hero_alpha.alpha == 1.0 and len(swept) == 11
    with pytest.raises(TypeError, match="study"):  # every other argument is the config's
        instantiate(figure["draw"])()
