"""Benchmarks: MME's arithmetic, answers that are true of the pixels, ids that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from blink_exp.benchmarks.base import Score, mean, normalized, spread
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_detail import MosaicDetail
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import COGNITION, PERCEPTION, MosaicMME
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.scenes import questions
from blink_exp.scenes.scenes import COLORS, Scene, load_tiles, random_scene

RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}


def records(benchmark, right):
    return [{"id": s.id, "image_id": s.image_id, "category": s.category, "correct": right(i, s)} for i, s in enumerate(benchmark.samples())]


def test_attributes_read_off_the_answers_are_those_of_the_pixels():
    for split in ("train", "test"):
        for tile in load_tiles(split)[:300]:
            color = np.median(tile.pixels[tile.mask], axis=0)
            nearest = min(COLORS, key=lambda c: np.abs(color - RGB[c]).sum())
            assert nearest == tile.color, tile.image_id
            ys, xs = np.nonzero(tile.mask)
            fill = tile.mask.sum() / ((np.ptp(ys) + 1) * (np.ptp(xs) + 1))  # of its bounding box: 1, pi / 4 or 1 / 2
            if min(np.ptp(ys), np.ptp(xs)) > 12 and ys.min() > 1 and ys.max() < 62 and xs.min() > 1 and xs.max() < 62:
                assert {"rectangle": fill > 0.97, "circle": 0.7 < fill < 0.9, "triangle": fill < 0.65}[tile.shape], tile.image_id


def test_splits_share_no_pixels():
    assert not {t.pixels.tobytes() for t in load_tiles("train")} & {t.pixels.tobytes() for t in load_tiles("test")}


def scene_of(*names: str) -> Scene:
    """A 2 x 2 scene of real tiles, "red circle" and so on, in raster order."""
    tiles = []
    for name in names:
        color, shape = name.split()
        tiles.append(next(t for t in load_tiles("test") if (t.color, t.shape) == (color, shape)))
    return Scene(tuple(tiles))


def test_questions_on_a_scene_by_hand():
    scene = scene_of("red circle", "blue circle", "red triangle", "teal rectangle")
    rng = np.random.default_rng(0)
    drawn = {}
    for _ in range(300):
        for name, kind in questions.KINDS.items():
            for wanted in ("yes", "no"):
                q = kind(rng, scene, wanted)
                if q is not None:
                    drawn[q.text] = q.answer
                    assert name in questions.OPEN or q.answer == wanted
    for text, answer in {
        "what color is the triangle?": "red",
        "what is the teal shape?": "rectangle",
        "what shape is at the bottom left?": "triangle",
        "what color is at the top right?": "blue",
        "how many circles are there?": "2",
        "is there a teal shape?": "yes",
        "is there a yellow shape?": "no",
        "is there a blue triangle?": "no",
        "is the triangle at the bottom left?": "yes",
        "is the triangle at the top left?": "no",
        "is the triangle red?": "yes",
        "is the teal shape a circle?": "no",
        "are there 2 circles?": "yes",
        "are there 1 circles?": "no",
        "are there more circles than triangles?": "yes",
        "are there more rectangles than circles?": "no",
        "is the number of circles plus triangles 3?": "yes",
        "is the number of circles plus rectangles 4?": "no",
    }.items():
        assert drawn.get(text) == answer, text
    assert "what color is the circle?" not in drawn  # two circles: the question would have no one answer
    assert "are there more triangles than rectangles?" not in drawn  # a tie


def test_masks_and_boxes_lie_where_the_objects_are():
    scene = random_scene(np.random.default_rng(3), "test", 3)
    for i, mask in enumerate(scene.masks()):
        left, top, right, bottom = (v * 192 for v in scene.box(i))
        ys, xs = np.nonzero(mask)
        assert left <= xs.min()
        assert xs.max() < right
        assert top <= ys.min()
        assert ys.max() < bottom
    assert scene.box(5) == pytest.approx((2 / 3, 1 / 3, 1, 2 / 3))
    assert scene.place(5) == "row 2 column 3"


def test_mme_scores_by_hand():
    everything = MosaicMME(images=2)
    # All yes: half of the answers right, no image with both. 50 + 0 a subtask.
    scores = everything.score(records(everything, lambda i, s: s.answer == "yes"))
    assert scores["perception"].value == 50 * len(PERCEPTION)
    assert scores["cognition"].value == 50 * len(COGNITION)
    # First image of each subtask right, second half right: accuracy 75, accuracy-plus 50.
    scores = everything.score(records(everything, lambda i, s: s.image_id.endswith("0000") or s.answer == "no"))
    assert scores["count"].value == 125
    assert scores["total"].value == 125 * 8
    assert scores["total"].samples == 32
    everything_right = everything.score(records(everything, lambda i, s: True))
    assert everything_right["total"].value == 200 * 8


def test_exact_match_ignores_case_and_punctuation_only():
    assert normalized(" Red. ") == "red"
    assert normalized("dark red") != "red"


def test_sample_ids_are_stable_for_ever():
    """If this fails, scenes or questions have changed under their ids: raise VERSION of the benchmark, do not touch the digest."""
    for benchmark, count, digest in (
        (MosaicMME(), 640, "773f3e4512bcd7aa"),
        (MosaicOpen(), 411, "828450425edf49cc"),
        (MosaicHR(), 469, "9c872c5c08eff292"),
        (EasyVQA(), 9673, "80353e836b6aafe5"),
        (MosaicDetail(), 4032, "aab2d5ac2d1fe9f9"),
    ):
        samples = benchmark.samples()
        assert len({s.id for s in samples}) == len(samples) == count
        text = repr([(s.id, s.image_id, s.question, s.answer, s.category, s.regions) for s in samples])
        pixels = b"".join(s.image().tobytes() for s in samples[:: max(1, count // 20)])
        assert hashlib.sha256(text.encode() + pixels).hexdigest()[:16] == digest, benchmark.name


def test_a_smaller_benchmark_is_the_start_of_a_larger_one():
    few, many = MosaicMME(images=2).samples(), MosaicMME(images=4).samples()
    assert set(few) <= set(many)


def test_yes_and_no_are_equally_frequent_and_every_pair_is_whole():
    samples = MosaicMME().samples()
    assert sum(s.answer == "yes" for s in samples) * 2 == len(samples)
    for limit in (1, 16, 100, 639):
        subset = spread(samples, limit)
        assert len({s.image_id for s in subset}) * 2 == len(subset)
        assert abs(len(subset) - limit) <= 1 or limit == 1
    assert {s.category for s in spread(samples, 16)} == {*PERCEPTION, *COGNITION}


def test_open_questions_are_about_one_annotated_object():
    assert all(len(s.regions) == 1 for s in MosaicOpen().samples())


def test_masks_of_high_resolution_scenes_lie_in_their_regions_and_on_small_objects():
    samples = MosaicHR(images=8).samples()
    assert {s.category for s in samples} == {"small_object", "count", "position", "attribute", "relation"}
    for sample in samples:
        image, mask = sample.image(), sample.mask()
        assert mask.shape == (image.height, image.width)
        inside = np.zeros_like(mask)
        for left, top, right, bottom in sample.regions:
            rows, columns = (
                slice(round(top * image.height), round(bottom * image.height)),
                slice(round(left * image.width), round(right * image.width)),
            )
            inside[rows, columns] = True
            assert 0 < mask[rows, columns].mean() < 0.06
        assert not mask[~inside].any()


def test_mean_gives_the_binomial_error():
    assert mean([True, True, False, False]) == Score(50.0, 4, 25.0)


def test_other_sizes_of_mosaic_open_are_other_scenes_with_other_ids_and_kinds_only_choose():
    default, large = MosaicOpen(4), MosaicOpen(4, sizes=[3, 4], kinds=["color", "shape"])
    ids = [s.id for s in default.samples()]
    assert ids[0] == "mosaic_open/v1/0000/color" and all(i.startswith("mosaic_open/v1-3-4/") for i in (s.id for s in large.samples()))
    assert {s.category for s in large.samples()} <= {"color 3x3", "shape 3x3", "color 4x4", "shape 4x4"}
    some = MosaicOpen(4, kinds=["shape", "shape_at"])
    assert [s.id for s in some.samples()] == [i for i in ids if "shape" in i]
    assert {s.id: s.answer for s in some.samples()}.items() <= {s.id: s.answer for s in default.samples()}.items()
