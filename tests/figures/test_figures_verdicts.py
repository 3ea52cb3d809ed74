"""How claims of both papers' figures are judged: means and errors worked out by hand, paired changes, verdicts."""

from __future__ import annotations

import math

import pytest
from support.figure_studies import ONE, TWO, pairs

from blink_exp.benchmarks.mme import score_pairs
from blink_exp.errors import UserError
from blink_exp.figures.verdicts import Mean, combined_verdict, contrast, gains, headline, holm, mean, verdict


def test_a_verdict_needs_two_standard_errors():
    assert (verdict(2.1, 1.0), verdict(-2.1, 1.0)) == (True, False)
    assert verdict(2.0, 1.0) is verdict(-1.0, 1.0) is verdict(0.0, 0.0) is verdict(1.0, None) is None
    assert verdict(0.1, 0.0) is True
    assert combined_verdict([True, True]) is True
    assert combined_verdict([True, None]) is combined_verdict([]) is None
    assert combined_verdict([None, False]) is False
    assert (Mean(0.75, 0.1, 4).less(0.5), Mean(None, None, 0).less(0.5)) == (Mean(0.25, 0.1, 4), Mean(None, None, 0))


def test_a_mean_counts_beyond_two_standard_errors():
    sure = mean([1.0, 2.0, 3.0])  # 2 ± 1 / sqrt(3)
    assert (sure.value, sure.n, sure.above) == (2, 3, True)
    assert sure.stderr == pytest.approx(1 / math.sqrt(3))
    assert mean([-1.0, -2.0, -3.0]).above is False
    assert mean([1.0, -0.9, 0.4]).above is None
    assert mean([0.0, 0.0]).above is None and mean([5.0]).above is None and mean([float("nan")]) == Mean(None, None, 0)
    assert (Mean(0.5, 0.125, 3).formatted(2), Mean(0.5, None, 1).formatted(3)) == ("0.50 ± 0.12", "0.500")
    assert Mean(1.0, 3.0, 2).below(Mean(2.0, 4.0, 5)) == Mean(1.0, 5.0, 7)


def test_questions_on_one_image_are_not_independent():
    """Deviations from .75: -.75 + .25 on one image, .25 + .25 on the other: sqrt(2 * (.25 + .25)) / 4 = .25."""
    assert mean([0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"]) == Mean(0.75, 0.25, 4)
    assert mean([0.0, 1.0], ["a", "a"]) == Mean(0.5, None, 2)
    assert mean([], []) == Mean(None, None, 0)
    assert mean([0.0, None, 1.0, 1.0, 1.0], ["a", "c", "a", "b", "b"]) == Mean(0.75, 0.25, 4)  # what is missing makes no cluster


def test_gains_add_up_to_mme_s_total_and_their_error_is_that_of_the_paired_change():
    before, after = (score_pairs(pairs(r), ("color", "count"), ()) for r in (ONE, TWO))
    change = contrast(*([gains(pairs(r), "total")] for r in (TWO, ONE)))
    assert change.n == 5 and change.value == pytest.approx(after["total"].value - before["total"].value)
    # colour: changes 0, 150, 200, variance 10833.3 / 3; count: -150, 150, variance 45000 / 2
    assert change.stderr == pytest.approx((10833.333 / 3 + 45000 / 2) ** 0.5, rel=1e-5)
    assert change.stderr != pytest.approx((before["total"].stderr ** 2 + after["total"].stderr ** 2) ** 0.5)


def test_an_image_with_one_answer_missing_counts_in_neither_run():
    half, whole = gains(pairs(TWO)[1:], "total"), gains(pairs(ONE), "total")
    assert ("color/0", "") in whole["color"] and ("color/0", "") not in half["color"]
    for first, second, sign in ((whole, half, 1), (half, whole, -1)):
        assert contrast([first], [second]).value == pytest.approx(sign * ((50 - 200 + 0 - 200) / 2 + 0))


def test_a_benchmark_without_pairs_counts_right_answers():
    records = [{"id": str(k), "image_id": "ab"[k // 2], "correct": hit} for k, hit in enumerate((1, 0.5, 0, None))]
    assert gains(records, "accuracy") == {"": {("a", "0"): 100.0, ("a", "1"): 50.0, ("b", "2"): 0.0}}
    assert headline([{"scores": {"accuracy": 1}}], "x") == "accuracy"
    with pytest.raises(UserError, match="needs a benchmark with a total"):
        headline([{"scores": {"f1": 1}}], "x")


def answered(*right, per_image):
    records = [{"id": str(k), "image_id": str(k // per_image), "correct": hit} for k, hit in enumerate(right)]
    return [gains(records, "accuracy")]


def test_a_change_of_accuracy_has_its_error_over_images():
    """Changes 0, 100, 100, 100 on two images, as in the test of clusters above; the images are of unequal size in the second."""
    assert contrast(answered(0, 1, 1, 1, per_image=2), answered(0, 0, 0, 0, per_image=2)) == Mean(75, 25, 2)
    uneven = contrast(answered(0, 0, 1, per_image=2), answered(0, 0, 0, per_image=2))
    assert uneven.value == pytest.approx(100 / 3)  # that of the accuracies, whatever an image holds
    alone = contrast(answered(1, 1, 1, 1, per_image=4), answered(0, 0, 0, 0, per_image=4))
    assert (alone.value, alone.stderr, alone.above) == (100, None, None)


def test_a_subtask_with_one_image_in_common_cannot_be_told():
    one, two = {**ONE, "count": [(0, 0)]}, {**TWO, "count": [(1, 1)]}
    change = contrast(*([gains(pairs(r), "total")] for r in (two, one)))
    assert change.value == pytest.approx(350 / 3 + 200) and change.n == 4
    assert change.stderr is None and change.above is None
    assert contrast([{"color": {("a", ""): 1.0}}], [{"color": {("b", ""): 1.0}}]) == Mean(None, None, 0)


def test_several_differences_at_once_need_more_than_two_standard_errors():
    """Of two, the clearer needs the normal distribution's 1 - .0455 / 4, which is 2.278 standard errors, and the other 2."""

    def verdicts(*sizes):
        return holm([Mean(size, 1.0, 9) for size in sizes])

    assert verdicts(2.1) == [True] and verdicts(-1.9) == [None]
    assert verdicts(-2.1, 2.3) == [False, True] and verdicts(2.1, 2.27) == [None, None]
    assert verdicts(1.9, 5.0) == [None, True]
    assert holm([Mean(2.1, 1.0, 9), Mean(1.0, None, 1)]) == [None, None]  # what cannot be told was tried all the same
    assert holm([Mean(0.1, 0.0, 9), Mean(0.0, 0.0, 9)]) == [True, None]
    assert holm([]) == []
