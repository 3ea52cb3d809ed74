"""Paired tests of two runs: p values worked out by hand, and two independent ways to the same bootstrap."""

from __future__ import annotations

import random

import numpy as np
import pytest
from support.paired_runs import Pairs, noisy, run, subtasks

from blink_exp.benchmarks.base import ExactMatch, Score, group_by, mean
from blink_exp.benchmarks.mosaic_detail import MosaicDetail
from blink_exp.evaluation.records import graded
from blink_exp.reports import resampling, statistics
from blink_exp.reports.resampling import resampled
from blink_exp.reports.statistics import BOTH, bootstrap, compare, mcnemar


class F1(ExactMatch):
    """A score that is no sum over images."""

    def score(self, records):
        right = sum(r["correct"] for r in records if r["answer"] == "yes")
        wrong = sum(not r["correct"] for r in records)
        return {"f1": Score(100 * 2 * right / (2 * right + wrong), len(records))}


# McNemar


def test_mcnemar_by_hand():
    """Eight gained and two lost of 50: 2 (1 + 10 + 45) / 2^10."""
    ours = [True] * 8 + [False] * 2 + [True] * 30 + [False] * 10
    theirs = [False] * 8 + [True] * 2 + [True] * 30 + [False] * 10
    difference = mcnemar(ours, theirs)
    assert (difference["delta"], difference["p"], difference["n"], difference["test"]) == (12.0, pytest.approx(112 / 1024), 50, "McNemar")
    back = mcnemar(theirs, ours)
    assert (back["delta"], back["p"]) == (-12.0, difference["p"])
    assert (back["low"], back["high"]) == (pytest.approx(-difference["high"]), pytest.approx(-difference["low"]))


def test_mcnemar_s_interval_by_hand():
    """Five gained, none lost, of 20: p = 2 / 2^5; Clopper and Pearson give a share from 0.025^(1/5) to 1 of those five."""
    difference = mcnemar([True] * 5 + [False] * 15, [False] * 20)
    assert difference["p"] == pytest.approx(2 / 32)
    assert difference["low"] == pytest.approx(100 * (2 * 0.025**0.2 - 1) * 5 / 20)
    assert difference["high"] == pytest.approx(25)


def test_mcnemar_s_interval_and_p_never_contradict_each_other():
    for gained in range(12):
        for lost in range(12):
            difference = mcnemar([True] * gained + [False] * (lost + 5), [False] * gained + [True] * lost + [False] * 5)
            assert (difference["p"] < 0.05) == (difference["low"] > 0 or difference["high"] < 0), (gained, lost)


# which test


def test_an_accuracy_over_a_part_of_the_questions_is_mcnemar_s_too():
    """mosaic_detail has open questions and pairs on one image: accuracy counts the first alone, as do the accuracies by scene size."""
    benchmark, generators = MosaicDetail(24), [random.Random(seed) for seed in (0, 1)]
    ours, theirs = (
        {s.id: graded(benchmark, s, generator.choice([s.answer, "other"])) for s in benchmark.samples()} for generator in generators
    )
    differences = compare(benchmark, ours, theirs, ["accuracy", "5x5", "shape 5x5", "perception"], resamples=200)
    assert {k: v["test"] for k, v in differences.items()} == {
        "accuracy": BOTH,
        "5x5": BOTH,
        "shape 5x5": "McNemar",
        "perception": "bootstrap",
    }
    assert [differences[k]["n"] for k in ("accuracy", "5x5", "shape 5x5")] == [48, 12, 6]
    for name, test in differences.items():
        first, second = (benchmark.score(list(records.values()))[name].value for records in (ours, theirs))
        assert test["delta"] == pytest.approx(first - second), name


def test_accuracy_in_all_and_by_category_is_mcnemar_s_and_pairs_are_the_bootstrap_s():
    ours, theirs = run(noisy(1), subtasks, 2), run(noisy(2), subtasks, 2)
    differences = compare(Pairs(), ours, theirs, ["accuracy", "total", "a"])
    assert {k: v["test"] for k, v in differences.items()} == {"accuracy": BOTH, "total": "bootstrap", "a": "bootstrap"}
    plain = compare(ExactMatch(), ours, theirs, ["accuracy", "b"])
    assert {k: (v["test"], v["n"]) for k, v in plain.items()} == {"accuracy": (BOTH, 48), "b": (BOTH, 32)}
    for scores, benchmark in ((differences, Pairs()), (plain, ExactMatch())):
        for name, test in scores.items():
            first, second = (benchmark.score(list(r.values()))[name].value for r in (ours, theirs))
            assert test["delta"] == pytest.approx(first - second), name


def test_one_question_an_image_is_mcnemar_s_alone_in_all_or_in_a_category():
    """Of a category with one question an image every question is apart, however many the other categories ask."""
    ours, theirs = ({k: r | {"category": "ab"[int(k[1:]) % 2]} for k, r in run(noisy(s), per_image=2).items()} for s in (10, 11))
    differences = compare(ExactMatch(), ours, theirs, ["accuracy", "a"])
    assert {k: v["test"] for k, v in differences.items()} == {"accuracy": BOTH, "a": "McNemar"}
    alone = [[r["correct"] for r in records.values() if r["category"] == "a"] for records in (ours, theirs)]
    assert differences["a"] == mcnemar(*alone) and differences["a"]["n"] == 24
    assert compare(ExactMatch(), run(noisy(10)), run(noisy(11)), ["accuracy"])["accuracy"] == mcnemar(noisy(10), noisy(11))


def test_questions_on_an_image_that_fall_together_are_no_evidence_of_their_own():
    """Eight of 40 images lose all ten questions and two gain theirs: McNemar takes 100 differences, an image is one of ten."""
    theirs = run([True] * 320 + [False] * 80, per_image=10)
    ours = run([False] * 80 + [True] * 260 + [False] * 60, per_image=10)
    alone = mcnemar([r["correct"] for r in ours.values()], [r["correct"] for r in theirs.values()])
    difference = compare(ExactMatch(), ours, theirs, ["accuracy"], resamples=20000)["accuracy"]
    assert (difference["delta"], difference["n"], alone["p"] < 1e-8) == (-15, 400, True)
    generator = np.random.default_rng(5)  # one draw: how many of 40 images are lost, how many gained
    lost, gained, _ = generator.multinomial(40, [0.2, 0.05, 0.75], size=100_000).T
    change = 100 * (gained - lost) / 40
    assert difference["p"] == pytest.approx(2 * (change >= 0).mean(), rel=0.2) and difference["p"] > 1000 * alone["p"]
    assert (difference["low"], difference["high"]) == pytest.approx(tuple(np.quantile(change, [0.025, 0.975])), abs=1e-9)


def test_the_larger_p_is_mcnemar_s_where_images_agree_more_than_their_questions():
    """Each of 20 images gains five questions and loses three, but for one that only loses: every draw is a gain, but of questions 95
    against 63."""
    ours = run(([True] * 5 + [False] * 3) * 19 + [True] * 2 + [False] * 6, per_image=8)
    theirs = run(([False] * 5 + [True] * 3) * 19 + [True] * 8, per_image=8)
    difference = compare(ExactMatch(), ours, theirs, ["accuracy"], resamples=4000)["accuracy"]
    draws = bootstrap(ExactMatch(), list(ours.values()), list(theirs.values()), ["accuracy"], resamples=4000)["accuracy"]
    assert draws["p"] < difference["p"] == mcnemar(*([r["correct"] for r in records.values()] for records in (ours, theirs)))["p"]
    assert (difference["low"], difference["high"]) == pytest.approx((draws["low"], draws["high"]))


@pytest.mark.parametrize("category", [subtasks, lambda image: "c"])
def test_shares_over_images_are_those_of_the_benchmark_s_own_rule(category):
    """Accuracy as whole images are drawn, with images that have one, two or three questions, in all and by category."""
    ours, theirs = run(noisy(12, 72, 0.6), category, 3), run(noisy(13, 72, 0.5), category, 3)
    for k in ("s001", "s002", "s010", "s031"):
        del ours[k], theirs[k]
    mixed = {k: "xy"[i % 2] for i, k in enumerate(ours)}  # categories within an image
    for change in ({}, mixed):
        one, other = ({k: r | {"category": change.get(k, r["category"])} for k, r in records.items()} for records in (ours, theirs))
        names = list(ExactMatch().score(list(one.values())))
        differences = compare(ExactMatch(), one, other, names, resamples=400, seed=3)
        draws = bootstrap(ExactMatch(), list(one.values()), list(other.values()), names, resamples=400, seed=3)
        for name in names:
            alone = mcnemar(*([r["correct"] for r in records.values() if name in ("accuracy", r["category"])] for records in (one, other)))
            assert differences[name]["p"] == max(alone["p"], draws[name]["p"]) and differences[name]["test"] == BOTH, name
            assert (differences[name]["low"], differences[name]["high"]) == pytest.approx((draws[name]["low"], draws[name]["high"])), name


@pytest.mark.parametrize(("images", "p"), [(1, 1.0), (2, 0.5), (4, 0.125)])
def test_a_handful_of_images_tells_no_more_than_as_many_coins(images, p):
    """Every question is gained, so every draw of images is a gain too; but four images go one way with probability 2 / 2^4."""
    difference = compare(ExactMatch(), run([True] * 10 * images, per_image=10), run([False] * 10 * images, per_image=10), ["accuracy"])[
        "accuracy"
    ]
    assert (difference["p"], difference["low"], difference["high"], difference["delta"]) == (p, None, None, 100)
    more = run([True] * 10 * images + [False] * 60, per_image=10)
    difference = compare(ExactMatch(), more, run([False] * (10 * images + 60), per_image=10), ["accuracy"])["accuracy"]
    assert difference["p"] >= p  # images that do not differ add nothing


def test_answers_that_are_right_in_part_are_no_counts():
    ours = run([0.3, 1.0, 0.6, 0.0, 1.0, 0.9])
    assert compare(ExactMatch(), ours, run([0.0, 1.0, 1.0, 0.0, 0.0, 0.9]), ["accuracy"])["accuracy"]["test"] == "bootstrap"


def test_a_question_that_stands_there_three_times_counts_once():
    """As POPE asks the same in three categories: McNemar would take each for an observation and halve p more than once."""
    ours, theirs = {}, {}
    for category in "xyz":
        for records, right in ((ours, True), (theirs, False)):
            for i in range(8):
                one = {"id": f"{category}{i}", "image_id": f"i{i}", "category": category, "question": "q", "answer": "yes"}
                records[one["id"]] = one | {"prediction": "", "correct": right if i < 3 else True}
    difference = compare(ExactMatch(), ours, theirs, ["accuracy"], resamples=4000)["accuracy"]
    assert difference["test"] == "bootstrap"
    assert difference["p"] == pytest.approx(2 * (5 / 8) ** 8, abs=0.015)  # three of eight images differ; of 24 questions nine would


def test_a_score_that_only_happens_to_equal_the_accuracy_is_no_accuracy():
    class AllRight(ExactMatch):
        def score(self, records):
            return {"all": Score(100.0 * all(r["correct"] for r in records), len(records))}

    differences = compare(AllRight(), run([True] * 9), run([False] * 9), ["all"], resamples=50)
    assert differences["all"]["test"] == "bootstrap"


def test_a_verdict_that_one_run_lacks_is_left_to_the_benchmark_s_rule():
    class Answered(ExactMatch):
        def score(self, records):
            return {"accuracy": mean(r["correct"] for r in records if r["correct"] is not None)}

    ours, theirs = run([True, True, None, False]), run([True, False, True, False])
    difference = compare(Answered(), ours, theirs, ["accuracy"], resamples=50)["accuracy"]
    assert difference["test"] == "bootstrap"
    assert difference["delta"] == pytest.approx(100 * (2 / 3 - 1 / 2))


# bootstrap


def test_the_bootstrap_s_p_by_hand():
    """Three of twenty images are gained: a draw has none of them, and so no gain, with probability (17/20)^20."""
    ours, theirs = run([True] * 3 + [False] * 17), run([False] * 20)
    difference = bootstrap(ExactMatch(), list(ours.values()), list(theirs.values()), ["accuracy"], resamples=20000)["accuracy"]
    assert difference["delta"] == pytest.approx(15)
    assert difference["p"] == pytest.approx(2 * 0.85**20, abs=0.006)
    # 2.5 % and 97.5 % of Binomial(20, 0.15): 0 and 6
    assert (difference["low"], difference["high"]) == (pytest.approx(0), pytest.approx(30))


@pytest.mark.parametrize("benchmark", [Pairs(), ExactMatch(), F1()])
def test_a_run_beside_itself_differs_by_nothing(benchmark):
    ours = run(noisy(3), subtasks, 2)
    names = list(benchmark.score(list(ours.values())))
    for name, difference in compare(benchmark, ours, dict(ours), names, resamples=100).items():
        assert (difference["delta"], difference["p"], difference["low"], difference["high"]) == (0, 1, 0, 0), name


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_records_and_another_seed_others():
    ours, theirs = run(noisy(4), subtasks, 2), run(noisy(5, share=0.5), subtasks, 2)
    shuffled = dict(random.Random(0).sample(sorted(ours.items()), len(ours)))
    first, again, other = (compare(Pairs(), o, theirs, ["total"], seed=seed) for o, seed in ((ours, 0), (shuffled, 0), (ours, 1)))
    assert first == again
    assert first["total"]["low"] != other["total"]["low"] or first["total"]["p"] != other["total"]["p"]
    assert first["total"]["low"] < first["total"]["delta"] < first["total"]["high"]


def test_the_short_way_is_the_long_way(monkeypatch):
    ours, theirs = run(noisy(6), subtasks, 2), run(noisy(7, share=0.5), subtasks, 2)
    short = compare(Pairs(), ours, theirs, ["perception", "cognition", "total"], resamples=300)
    ways = []
    monkeypatch.setattr(statistics, "_linear", lambda *_: ways.append(1))
    long = compare(Pairs(), ours, theirs, ["perception", "cognition", "total"], resamples=300)
    assert ways == [1]
    for name, difference in short.items():
        assert difference == pytest.approx(long[name]), name


def test_a_score_that_is_no_sum_goes_the_long_way():
    ours, theirs = (list(run(noisy(s), subtasks, 2).values()) for s in (8, 9))
    pairs = resampling.PairedImages.of(ours, theirs)
    weights = resampling.draws(pairs.strata, 100, np.random.default_rng(0))
    assert statistics._linear(F1(), pairs, ["f1"], weights) is None
    assert statistics._linear(Pairs(), pairs, ["total"], weights) is not None
    weight = weights[0]
    by_hand = [F1().score(resampled(list(group_by(records, "image_id").values()), weight))["f1"].value for records in (ours, theirs)]
    assert statistics._difference(F1(), pairs, ["f1"], weight)[0] == pytest.approx(by_hand[0] - by_hand[1])


def test_an_image_that_is_drawn_twice_counts_as_two():
    """With one id its two pairs would be four answers, which MME leaves out."""
    images = list(group_by(list(run([True, True, True, False], per_image=2, category=lambda i: "a").values()), "image_id").values())
    scores = Pairs().score(resampled(images, np.array([3, 1])))
    assert "incomplete_images" not in scores
    assert scores["a"].value == pytest.approx(100 * 7 / 8 + 100 * 3 / 4)


def test_every_category_keeps_its_count_of_images_unless_images_have_several():
    records = list(run(noisy(0), subtasks, 2).values())
    strata = resampling.PairedImages.of(records, records).strata
    weights = resampling.draws(strata, 50, np.random.default_rng(0))
    assert strata.tolist() == [0] * 8 + [1] * 16
    assert set(weights[:, :8].sum(1)) == {8} and set(weights[:, 8:].sum(1)) == {16}
    assert weights.min() == 0 and weights.max() > 1
    several = [r | {"category": f"c{i % 2}"} for i, r in enumerate(records)]
    assert set(resampling.PairedImages.of(several, several).strata) == {0}
    lonely = list(run([True] * 6, lambda i: f"c{i}").values())  # a category of one image would never vary
    assert set(resampling.PairedImages.of(lonely, lonely).strata) == {0}


# what is compared


def test_only_shared_samples_and_known_scores_are_compared():
    ours, theirs = run([True] * 6), run([False] * 6)
    del ours["s000"], theirs["s005"]
    differences = compare(ExactMatch(), ours, theirs, ["accuracy", "nonsense"])
    assert set(differences) == {"accuracy"}
    assert (differences["accuracy"]["n"], differences["accuracy"]["delta"]) == (4, 100)
    assert compare(ExactMatch(), {"x": {}}, theirs, ["accuracy"]) == {}


def test_a_judge_is_asked_once_and_not_at_every_draw():
    class Marked(ExactMatch):
        judge, asked = "somebody", 0

        def judged(self, records):
            if self.judge is None:
                return records
            Marked.asked += 1
            return [r | {"mark": 0.5 + 0.5 * (r["prediction"] == r["answer"])} for r in records]

        def score(self, records):
            return {"total": mean(r["mark"] for r in self.judged(records))}

    differences = compare(Marked(), run([True] * 6 + [False] * 6), run([False] * 12), ["total"], resamples=200)
    assert differences["total"]["delta"] == pytest.approx(25)
    assert Marked.asked <= 4
