"""mosaic_detail: what is asked has one answer, is balanced, lies where it is annotated, and is scored as MME scores."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from blink_exp.benchmarks.base import spread
from blink_exp.benchmarks.mosaic_detail import GRIDS, MosaicDetail
from blink_exp.scenes.detail import detail_scene
from blink_exp.scenes.scenes import COLORS, SHAPES, SMALL, load_tiles, small_tiles

SCENES = 96  # four blocks of 24


def records(benchmark, right):
    return [{"id": s.id, "image_id": s.image_id, "category": s.category, "correct": right(s)} for s in benchmark.samples()]


@pytest.mark.slow
def test_there_are_enough_questions_for_a_standard_error_of_1_4_points_at_any_accuracy():
    samples = MosaicDetail().samples()
    asked = [s for s in samples if s.category.endswith(GRIDS)]
    assert len({s.image_id for s in samples}) >= 600 and len(asked) >= 1200
    assert 50 / len(asked) ** 0.5 <= 1.4
    pairs = Counter((s.image_id, s.category) for s in samples if s not in asked)
    assert set(pairs.values()) == {2} and len(pairs) == len(asked)


@pytest.mark.slow
def test_every_scene_is_stable_for_ever():
    """If this fails, raise VERSION of scenes/detail.py; do not touch the digest."""
    digest = hashlib.sha256()
    for sample in MosaicDetail(questions="open").samples()[::2]:
        digest.update(sample.image().tobytes())
    assert digest.hexdigest()[:16] == "551d586b38543a23"


def test_each_object_that_is_asked_about_is_the_only_one_of_its_name():
    for i in range(SCENES):
        scene, first, second = detail_scene("test", i)
        shapes, colors = Counter(t.shape for t in scene.tiles), Counter(t.color for t in scene.tiles)
        assert shapes[scene.tiles[first].shape] == colors[scene.tiles[second].color] == 1
        assert scene.n == 8 or all(t.mask.mean() < SMALL for t in scene.tiles)
        assert len({t.image_id for t in scene.tiles}) == scene.n**2  # no picture twice
    together = [len({*detail_scene("test", i)[1:]}) == 1 for i in range(600)]
    assert np.mean(together) == pytest.approx(1 / 3, abs=0.06)  # or the one shape that is left would be known


@pytest.mark.slow
@pytest.mark.parametrize(("split", "other"), [("test", "train"), ("train", "test")])
def test_scenes_of_a_split_are_made_of_its_images_only(split, other):
    allowed, forbidden = ({t.pixels.tobytes() for t in load_tiles(name)} for name in (split, other))
    for i in range(SCENES):
        pictures = {t.pixels.tobytes() for t in detail_scene(split, i).scene.tiles}
        assert pictures <= allowed and not pictures & forbidden


def test_sizes_and_answers_are_balanced_and_stay_so_in_every_nth_scene():
    samples = MosaicDetail(SCENES).samples()
    for size in GRIDS:
        assert Counter(s.answer for s in samples if s.category == f"color {size}") == dict.fromkeys(COLORS, 3)
        assert Counter(s.answer for s in samples if s.category == f"shape {size}") == dict.fromkeys(SHAPES, 8)
    assert Counter(s.answer for s in samples if s.category in ("color", "shape")) == {"yes": 2 * SCENES, "no": 2 * SCENES}
    every = MosaicDetail(questions="open").samples()
    for limit in (84, 168, 336):  # every 16th, 8th and 4th scene: a pattern of four would show one size only
        counts = Counter(s.category for s in spread(every, limit))
        assert set(counts) == {f"{kind} {size}" for kind in ("color", "shape") for size in GRIDS}


def test_a_smaller_benchmark_is_the_start_of_a_larger_one_and_a_part_of_the_questions_a_part_of_it():
    many = MosaicDetail(12).samples()
    assert MosaicDetail(5).samples() == many[: 5 * 6]
    parts = [MosaicDetail(12, questions=questions).samples() for questions in ("open", "pairs")]
    assert [len(part) for part in parts] == [24, 48]
    assert {*parts[0], *parts[1]} == {*many} and not {*parts[0]} & {*parts[1]}


def test_a_pair_asks_what_the_open_question_asks():
    by_id = {s.id: s for s in MosaicDetail(24).samples()}
    for i in range(24):
        name = f"mosaic_detail/v1/{i:04d}"
        for kind in ("color", "shape"):
            asked, yes, no = (by_id[f"{name}/{kind}{end}"] for end in ("", "/yes", "/no"))
            claims = [s.question.rstrip("?").split()[-1] for s in (yes, no)]
            assert claims[0] == asked.answer != claims[1] and (yes.answer, no.answer) == ("yes", "no")
            assert yes.question.split()[:3] == no.question.split()[:3] and yes.question.split()[2] in asked.question
            assert asked.regions == yes.regions == no.regions


@pytest.mark.slow
def test_masks_lie_on_the_one_object_of_the_region():
    for sample in MosaicDetail(12, questions="open").samples():
        (box,) = sample.regions
        image, mask = sample.image(), sample.mask()
        assert mask.shape == (image.height, image.width)
        left, top, right, bottom = (round(edge * image.width) for edge in box)
        assert (right - left, bottom - top) == (64, 64)
        inside = mask[top:bottom, left:right]
        assert 0 < inside.sum() == mask.sum()
        tile = next(t for t in load_tiles("test") if t.pixels.tobytes() == np.asarray(image)[top:bottom, left:right].tobytes())
        assert sample.answer in (tile.color, tile.shape) and (inside == tile.mask).all()


# scores


def test_scores_by_hand():
    benchmark = MosaicDetail(SCENES)
    scores = benchmark.score(records(benchmark, lambda s: s.answer in ("yes", "circle")))
    assert scores["accuracy"].value == pytest.approx(100 / 6) and scores["accuracy"].samples == 2 * SCENES
    assert scores["5x5"].value == pytest.approx(100 / 6) and scores["5x5"].samples == SCENES // 2
    assert (scores["color 8x8"].value, scores["shape 8x8"].value) == (0, pytest.approx(100 / 3))
    assert (scores["color"].value, scores["shape"].value, scores["perception"].value) == (50, 50, 100)  # no pair right
    first = {"mosaic_detail/v1/0000", "mosaic_detail/v1/0001"}
    scores = benchmark.score(records(benchmark, lambda s: s.category == "color" and (s.answer == "yes" or s.image_id in first)))
    assert scores["color"].value == pytest.approx(50 + 50 * 2 / SCENES + 100 * 2 / SCENES)
    assert scores["perception"].value == scores["color"].value


def test_answers_are_graded_by_exact_match_and_pairs_by_mme_s_rule():
    asked, yes = MosaicDetail(1).samples()[:2]
    assert benchmark_marks(asked, asked.answer.upper() + ".", f"{asked.answer} yes") == [True, False]
    assert benchmark_marks(yes, "Yes, it is", "the answer is yes") == [True, False]


def benchmark_marks(sample, *predictions):
    return [MosaicDetail(1).correct(sample, prediction) for prediction in predictions]


def test_scores_exist_for_the_questions_that_were_asked_only():
    for questions, expected in (("open", "accuracy"), ("pairs", "perception")):
        benchmark = MosaicDetail(8, questions=questions)
        scores = benchmark.score(records(benchmark, lambda s: True))
        assert benchmark.headline == expected and {"accuracy", "perception"} & {*scores} == {expected}
    half = MosaicDetail(8, questions="pairs")
    lacking = half.score(records(half, lambda s: True)[1:])
    assert (lacking["incomplete_images"].value, lacking["color"].samples, lacking["shape"].samples) == (1, 14, 16)


def test_a_blank_image_keeps_all_but_the_pixels():
    seen, blank = MosaicDetail(4).samples(), MosaicDetail(4, blank=True).samples()
    assert seen == blank
    for one, other in zip(seen, blank, strict=True):
        assert one.image().size == other.image().size and len(other.image().getcolors()) == 1


def test_small_objects_are_there_in_every_color_and_shape():
    for split in ("train", "test"):
        assert {(t.color, t.shape) for t in small_tiles(split)} == {(c, s) for c in COLORS for s in SHAPES}
