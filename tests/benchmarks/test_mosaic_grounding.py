"""mosaic_grounding: one right answer, balanced, fixed for ever, and scores by hand."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from blink_exp.benchmarks.mosaic_grounding import MosaicGrounding, grounding_scene
from blink_exp.scenes.scenes import load_tiles

SCENES = 24


def test_there_are_more_than_a_thousand_questions_on_three_sizes():
    samples = MosaicGrounding().samples()
    assert len(samples) == len({s.id for s in samples}) == 1200
    assert Counter(s.category.partition(" ")[2] for s in samples) == {"2x2": 400, "3x3": 400, "4x4": 400}


def test_questions_and_pixels_are_stable_for_ever():
    """If this fails, raise VERSION; do not touch the digest."""
    digest = hashlib.sha256()
    for sample in MosaicGrounding().samples():
        digest.update(f"{sample.id}|{sample.question}|{sample.answer}\n".encode())
    for sample in MosaicGrounding(SCENES).samples()[::4]:
        digest.update(sample.image().tobytes())
    assert digest.hexdigest()[:16] == "7bb9a93f52aa7d88"


def test_an_object_is_the_only_one_of_its_name_and_answers_follow_from_its_cell():
    for i in range(SCENES):
        scene, (row, column, color, shape) = grounding_scene(i)
        (k,) = row.objects
        tile, (r, c) = scene.tiles[k], scene.cell(k)
        assert sum((t.color, t.shape) == (tile.color, tile.shape) for t in scene.tiles) == 1
        assert row.text == f"is the {tile.color} {tile.shape} top or bottom?" and column.text.endswith("left or right?")
        assert row.answer == ("top" if 2 * r < scene.n - 1 else "bottom") and 2 * r != scene.n - 1
        assert column.answer == ("left" if 2 * c < scene.n - 1 else "right") and 2 * c != scene.n - 1
        (cell,) = color.objects
        assert (color.answer, shape.answer) == (scene.tiles[cell].color, scene.tiles[cell].shape) and shape.objects == (cell,)
        assert color.text == f"what color is at {scene.place(cell)}?"


def test_answers_are_balanced_and_made_of_test_images():
    samples = MosaicGrounding(SCENES).samples()
    for kind, sides in (("row", ("top", "bottom")), ("column", ("left", "right"))):
        for n in (2, 3, 4):
            assert Counter(s.answer for s in samples if s.category == f"{kind} {n}x{n}") == dict.fromkeys(sides, SCENES // 6)
    allowed = {t.pixels.tobytes() for t in load_tiles("test")}
    assert all(t.pixels.tobytes() in allowed for i in range(SCENES) for t in grounding_scene(i)[0].tiles)


def test_parts_and_blank_are_the_same_questions():
    every = MosaicGrounding(6).samples()
    find, read = (MosaicGrounding(6, questions=q).samples() for q in ("find", "read"))
    assert {*find} | {*read} == {*every} and not {*find} & {*read} and MosaicGrounding(3).samples() == every[:12]
    blank = MosaicGrounding(6, blank=True).samples()
    assert blank == every and len(blank[0].image().getcolors()) == 1 and blank[0].image().size == every[0].image().size


def test_scores_by_hand():
    benchmark = MosaicGrounding(SCENES)
    rows = [
        {"id": s.id, "image_id": s.image_id, "category": s.category, "correct": s.answer in ("top", "left")} for s in benchmark.samples()
    ]
    scores = benchmark.score(rows)
    assert (scores["find"].value, scores["read"].value, scores["accuracy"].value) == (50, 0, 25)
    assert scores["located"].value == pytest.approx(25) and scores["located"].samples == SCENES
    assert scores["row"].samples == SCENES and scores["3x3"].value == 25
    only = [r for r in rows if r["category"].startswith("row")]
    assert set(benchmark.score(only)) == {"accuracy", "find", "row", "2x2", "3x3", "4x4"}
