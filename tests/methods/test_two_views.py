"""Which region two_views and crop show, by hand."""

from __future__ import annotations

import pytest

from blink_exp.core.second_view import Placement, Subject
from blink_exp.errors import UserError
from blink_exp.methods.two_views import REGIONS, GridRegion

LEFT, RIGHT_BELOW, EVERYWHERE = (0.1, 0.1, 0.4, 0.3), (0.6, 0.55, 0.9, 0.95), (0.3, 0.3, 0.6, 0.8)


def shown(region: str, *boxes, p: int = 2, sample: str = "a", seed: int = 0) -> int:
    return GridRegion(region, p, seed=seed).choose(Subject(sample, (64, 64), boxes))


def test_the_most_salient_region_is_the_first_of_the_largest():
    chooser = GridRegion("most_salient", 2, 12)
    assert chooser.choose(Subject("a", (64, 64), scores=(0.1, 0.3, 0.2, 0.3))) == 1
    assert chooser.layer == 12 and not chooser.annotated


def test_the_annotated_region_shows_most_of_what_is_annotated():
    assert shown("annotated", LEFT) == 0 and shown("annotated", RIGHT_BELOW) == 3
    assert shown("annotated", RIGHT_BELOW, p=3) == 8
    assert shown("annotated", EVERYWHERE) == 2  # 0.2 x 0.3 of it, against 0.2 x 0.2, 0.1 x 0.2 and 0.1 x 0.3
    assert shown("annotated", LEFT, RIGHT_BELOW) == 3  # 0.3 x 0.4 against 0.3 x 0.2
    assert shown("annotated", LEFT, LEFT, RIGHT_BELOW, (0.6, 0.1, 0.7, 0.2)) == 0  # areas are summed; equal ones: the first


def test_a_wrong_region_shows_none_of_it_and_is_drawn_from_the_others():
    names = [f"s{n}" for n in range(400)]
    drawn = [shown("wrong", LEFT, sample=name) for name in names]
    assert {*drawn} == {1, 2, 3} and all(100 <= drawn.count(k) <= 170 for k in (1, 2, 3))
    assert {shown("wrong", LEFT, RIGHT_BELOW, sample=name) for name in names} == {1, 2}
    assert {shown("wrong", (0, 0, 0.5, 0.5), sample=name) for name in names} == {1, 2, 3}  # others touch it only
    assert {shown("wrong", EVERYWHERE, sample=name) for name in names[:30]} == {1}  # all show some: the one that shows least


def test_a_random_region_is_drawn_from_all_by_seed_and_sample():
    names = [f"s{n}" for n in range(400)]
    drawn = [shown("random", LEFT, sample=name) for name in names]
    assert all(70 <= drawn.count(k) <= 130 for k in range(4))
    assert drawn == [shown("random", sample=name) for name in names]  # the annotation has no say
    assert drawn != [shown("random", sample=name, seed=1) for name in names]
    assert {shown("random", p=3, sample=name) for name in names} == set(range(9))


@pytest.mark.parametrize("region", ["annotated", "wrong"])
def test_a_question_about_nothing_that_is_there_draws_from_all(region):
    assert {shown(region, sample=f"s{n}") for n in range(60)} == {0, 1, 2, 3}
    assert {shown(region, (1.2, 0, 1.4, 1), sample=f"s{n}") for n in range(60)} == {0, 1, 2, 3}  # cropped away


def test_other_regions_read_no_attention_and_unknown_ones_are_refused():
    assert [GridRegion(region).layer for region in REGIONS] == [12, None, None, None]
    with pytest.raises(UserError, match=r"method.region=annotatd is not known; did you mean annotated"):
        GridRegion("annotatd")


def test_where_a_canvas_lies_on_its_image():
    cropped, padded, whole = (Placement((100, 60), canvas) for canvas in ((60, 60), (100, 100), (100, 60)))
    assert cropped.on_canvas((0.2, 0, 0.8, 1)) == pytest.approx((0, 0, 1, 1))
    assert cropped.on_image((0, 0, 30, 30)) == pytest.approx((0.2, 0, 0.5, 0.5))
    assert padded.on_canvas((0, 0, 1, 1)) == pytest.approx((0, 0.2, 1, 0.8))
    assert padded.on_image((0, 0, 50, 50)) == pytest.approx((0, 0, 0.5, 0.5))  # 20 of its 50 rows are padding
    assert whole.on_canvas((0.2, 0.1, 0.5, 1)) == pytest.approx((0.2, 0.1, 0.5, 1)) and whole.on_image((0, 0, 50, 60)) == (0, 0, 0.5, 1)
    reduced = Placement((1000, 600), (100, 100))  # padded after it was made smaller
    assert reduced.on_canvas((0, 0, 1, 1)) == pytest.approx((0, 0.2, 1, 0.8))
    square = Placement((50, 50), (50, 50))
    assert square.on_canvas((0.1, 0.2, 0.3, 0.4)) == pytest.approx((0.1, 0.2, 0.3, 0.4))
