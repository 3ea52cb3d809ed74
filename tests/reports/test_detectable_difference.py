"""The smallest detectable difference of two runs: by hand, and by drawing runs that differ so much."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from support.paired_runs import Pairs, noisy, run, subtasks

from blink_exp.benchmarks.base import ExactMatch
from blink_exp.reports import statistics
from blink_exp.reports.statistics import bootstrap, compare, mcnemar


@pytest.mark.parametrize(
    ("n", "discordant", "smallest"),
    [
        (1000, 100, 2.79831),  # root = (1.959964 * 31.6228 + 0.841621 * 31.5732) / 1000.708 = 0.0884894; times sqrt(0.1)
        (4000, 400, 1.40038),  # four times the questions: about half
        (1000, 3, 0.783037),  # root^2: fewer than eight differ, which could not tell anything
        (1000, 0, 0.783037),
        (8, 0, 72.2157),  # root = (1.959964 * 2.828427 + 0.841621 * 2.206097) / 8.708327 = 0.849798: six of eight
        (5, 5, None),  # all five one way: p = 2 / 2^5
    ],
)
def test_the_smallest_detectable_difference_by_hand(n, discordant, smallest):
    assert statistics.detectable(n, discordant) == (None if smallest is None else pytest.approx(smallest, rel=1e-4))


@pytest.mark.slow
def test_a_difference_of_that_size_is_found_four_times_in_five():
    """Runs are drawn that truly differ so much: the exact test finds it a little less often than the normal approximation says."""
    n, discordant = 1344, 200
    d, psi = statistics.detectable(n, discordant) / 100, discordant / n
    draws = np.random.default_rng(0).multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=3000)
    pvalue = functools.cache(lambda gained, lost: mcnemar([True] * gained + [False] * lost, [False] * gained + [True] * lost)["p"])
    assert 0.75 < np.mean([pvalue(int(gained), int(lost)) < 0.05 for gained, lost, _ in draws]) < 0.81


def test_what_is_detectable_is_there_for_every_test_and_grows_where_questions_of_an_image_fall_together():
    ours, theirs = run(noisy(1, 480), subtasks), run(noisy(2, 480), subtasks)
    alone = compare(ExactMatch(), ours, theirs, ["accuracy"])["accuracy"]["detectable"]
    differ = sum(ours[k]["correct"] != theirs[k]["correct"] for k in ours)
    assert alone == statistics.detectable(480, differ)
    drawn = bootstrap(ExactMatch(), list(ours.values()), list(theirs.values()), ["accuracy"])["accuracy"]
    assert drawn["detectable"] == pytest.approx(alone, rel=0.1)
    theirs = run([True] * 320 + [False] * 80, per_image=10)
    ours = run([False] * 80 + [True] * 260 + [False] * 60, per_image=10)
    difference = compare(ExactMatch(), ours, theirs, ["accuracy"])["accuracy"]
    assert difference["detectable"] > 2 * statistics.detectable(400, 100)  # ten images differ, not 100 questions
    again = compare(ExactMatch(), ours, ours, ["accuracy"])["accuracy"]
    assert again["detectable"] == statistics.detectable(400, 0)
    pairs = compare(Pairs(), run(noisy(1), subtasks, 2), run(noisy(2), subtasks, 2), ["total"])["total"]
    assert (pairs["high"] - pairs["low"]) * 0.5 < pairs["detectable"] < pairs["high"] - pairs["low"]  # 2.8 errors, of an interval of 3.9
