"""Blink's figures of scores (Figs. 4 and 7): claims by hand on made-up runs, and what their pictures hold."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from support.figure_studies import ONE, TWO, pairs, stored, tips

from blink_exp.errors import UserError
from blink_exp.figures import blink_radar, blink_ranges
from blink_exp.figures.base import Study
from blink_exp.figures.verdicts import Gains, contrast, gains


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def run_of(total: int, images: int = 8) -> Gains:
    """A run whose total is about ``total``, with some spread from image to image."""
    return {"color": {(str(k), ""): total + (k % 2) * 0.5 for k in range(images)}}


def curves(single: dict[int, int], start: dict[int, int], end: dict[int, int]):
    return [{x: run_of(v) for x, v in curve.items()} for curve in (start, end, single)]


BASE = {"color": {(str(k), ""): 100.0 for k in range(8)}}


def test_figure_7_judges_each_sentence_by_its_own_numbers():
    start, end, single = curves(
        {4: 90, 6: 80, 7: 110, 26: 120, 27: 0}, {4: 100, 9: 102, 10: 110, 18: 112}, {12: 110, 13: 112, 14: 100, 18: 102}
    )
    claims = blink_ranges.claims(start, end, single, BASE, (12, 18))
    assert [c.holds for c in claims] == [True, True, True, True]
    assert claims[0].numbers["difference"] == pytest.approx(115 - 85)  # layer 27 is in neither group
    assert claims[1].numbers["mean change, starts from 10 on"] == pytest.approx(11.25)
    assert claims[2].numbers["difference"] == pytest.approx(-10)
    assert claims[3].numbers == {
        "change": pytest.approx(2.25),
        "standard error": pytest.approx(0.0945, abs=1e-3),
        "best change of all ranges": pytest.approx(12.25),
        "ranges above it": 4.0,
    }


def test_figure_7_says_what_does_not_hold_and_what_cannot_be_told():
    start, end, single = curves({4: 90, 7: 80}, {4: 110, 12: 100}, {13: 100, 14: 110, 18: 90})
    assert [c.holds for c in blink_ranges.claims(start, end, single, BASE, (12, 18))] == [False, False, None, False]
    nothing = blink_ranges.claims({}, {}, {}, BASE, (12, 18))
    assert [c.holds for c in nothing] == [None] * 4


def test_figure_7_draws_two_panels_with_the_single_layers_in_each(tmp_path):
    rows = [stored(tmp_path, "Vanilla", ONE)]
    rows += [stored(tmp_path, f"s{x}", TWO, series="start", x=x) for x in (11, 12)]
    rows += [stored(tmp_path, f"e{x}", ONE, series="end", x=x) for x in (18, 19)]
    rows += [stored(tmp_path, f"l{x}", TWO, series="single", x=x) for x in (11, 12, 19)]
    rows += [{"point": "broken", "status": "failed", "error": "e", "series": "end", "x": 20}]
    drawing = blink_ranges.layer_ranges(Study("f", SimpleNamespace(), rows), "Vanilla", "start", "end", "single", [12, 18])
    (figure,) = drawing.pictures.values()
    change = contrast(*([gains(pairs(r), "total")] for r in (TWO, ONE)))
    assert len(figure.axes) == 2
    assert drawing.data["series"]["start"][0] == {"x": 11, "change": pytest.approx(change.value), "stderr": pytest.approx(change.stderr)}
    assert drawing.data["series"]["end"][1]["change"] == 0
    assert drawing.claims[3].numbers["change"] is not None  # the default came as a list from YAML
    assert len(tips(figure)) == 2 + 2 + 2 + 1  # single layers only where the panel's x goes
    assert f"range 11 to 18: {change.value:+.2f} ± {change.stderr:.2f}#0" in tips(figure)
    assert "1 points failed" in drawing.caption
    assert drawing.measured_on == "b, mosaic_mme, 10 questions"
    with pytest.raises(UserError, match="its point Vanilla, which was not measured"):
        blink_ranges.layer_ranges(Study("f", SimpleNamespace(), rows[1:]), "Vanilla", "start", "end", "single")


def test_area_by_hand():
    assert blink_radar.area(np.ones(4)) == pytest.approx(2)  # a square of diagonal 2
    assert blink_radar.area(np.array([[2.0, 1, 1, 1], [0, 1, 0, 1]])).tolist() == pytest.approx([3, 0])
    assert blink_radar.area(np.array([3.0, 4.0])) == 7


def test_figure_4_holds_only_if_every_copy_encloses_more():
    base = {s: {(str(k), ""): 100.0 + k % 3 for k in range(30)} for s in "abc"}
    larger = {s: {k: v + 10 for k, v in images.items()} for s, images in base.items()}
    smaller = {s: {k: v - 10 for k, v in images.items()} for s, images in base.items()}
    noisy = {s: {k: v + (60 if int(k[0]) % 2 else -60) for k, v in images.items()} for s, images in base.items()}
    holds = [
        blink_radar.claim("p", [base, *copies], ["Vanilla", *"xyz"[: len(copies)]])
        for copies in ([larger], [larger, smaller], [larger, noisy])
    ]
    assert [c.holds for c in holds] == [True, False, None]
    assert holds[0].numbers["x: change"] == pytest.approx((111 / 101) ** 2 - 1)
    one = {s: dict(list(images.items())[:1]) for s, images in larger.items()}
    alone = blink_radar.claim("p", [base, base | {"a": one["a"]}], ["Vanilla", "x"])
    assert alone.holds is None and alone.numbers["x: standard error"] is None and "61 images" in alone.how


def test_the_error_of_an_area_counts_images_and_not_questions():
    def runs(questions):
        scores = {(str(k), q): 50.0 + k for k in range(20) for q in questions}
        return [{"a": scores, "b": scores}, {s: {key: v + int(key[0]) % 4 for key, v in scores.items()} for s in "ab"}]

    single, double = (blink_radar.claim("p", runs(q), ["Vanilla", "x"]).numbers for q in ("q", "qr"))
    assert single == pytest.approx(double) and single["x: standard error"] > 0


def test_figure_4_has_a_radar_where_subtasks_enclose_something_and_dots_elsewhere(tmp_path):
    right = {s: [(1, 1), (1, 0)] for s in ("existence", "count", "position", "comparison", "arithmetic")}
    rows = [stored(tmp_path, "Copy @14", right), stored(tmp_path, "Vanilla", right)]
    drawing = blink_radar.copied(Study("f", SimpleNamespace(), rows), "Vanilla")
    (figure,) = drawing.pictures.values()
    assert [axis.name for axis in figure.axes] == ["polar", "rectilinear"]
    assert drawing.data["subtasks"] == {"perception": ["existence", "count", "position"], "cognition": ["comparison", "arithmetic"]}
    assert list(drawing.data["scores"]["perception"]) == ["Vanilla", "Copy @14"]  # the baseline first
    assert drawing.data["scores"]["cognition"]["Vanilla"] == [125.0, 125.0]
    assert len(tips(figure)) == 2 * 5 and "Copy @14, count: 125.00" in " ".join(tips(figure))
    assert [c.holds for c in drawing.claims] == [None, None]  # equal runs
    assert "Cognition has too few subtasks" in drawing.caption
    assert blink_radar.groups(["color", "other"]) == {"categories": ["color", "other"]}
    records = [{"id": str(k), "image_id": "i", "category": "ab"[k % 2], "correct": k == 0} for k in range(4)]
    assert blink_radar.by_subtask(records, "accuracy") == {
        "a": {("i", "0"): 100.0, ("i", "2"): 0.0},
        "b": {("i", "1"): 0.0, ("i", "3"): 0.0},
    }
