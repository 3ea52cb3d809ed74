"""MME and POPE: their pairs and rows, and the statistics made of yes and no, worked out by hand."""

from __future__ import annotations

import pytest
from support.hub import build, mme, picture, pope, write
from support.hub_choices import records, values

from blink_exp.benchmarks import mme as mme_
from blink_exp.benchmarks import pope as pope_
from blink_exp.benchmarks.base import group_by
from blink_exp.errors import UserError

# MME


@pytest.mark.parametrize("answer", ["maybe", "1"])
def test_an_answer_that_is_neither_yes_nor_no_sets_its_row_aside(answer, tmp_path):
    """By name and reason; its partner on the image is then half a pair. "Yes." is a yes, for MME."""
    row = {"question_id": "a.png", "question": "?", "category": "count", "image_source": "a", "image": picture()}
    for name, more in (("mme", {}), ("pope", {"category": "random"})):
        rows = [row | more | {"answer": answer}, row | more | {"answer": "no", "question_id": "b.png"}]
        sample, good = build(name, write(tmp_path / name, "test", rows)).samples()
        with pytest.raises(OSError, match=f"answer={answer!r} is neither yes nor no"):
            sample.image()
        assert good.image().size == (48, 32)
        assert sample.image_id != good.image_id.replace("b", "a")
    benchmark = build("mme", write(tmp_path / "stop", "test", [row | {"answer": "Yes."}]))
    assert benchmark.samples()[0].answer == "yes"


def test_a_category_that_is_none_sets_its_row_aside(tmp_path):
    row = {"question_id": "1", "question": "?", "answer": "yes", "image_source": "a", "image": picture()}
    good, odd = build("pope", write(tmp_path, "test", [row | {"category": c} for c in ("random", "easy")])).samples()
    assert good.image().size == (48, 32)
    with pytest.raises(OSError, match="category='easy' is not one of random, popular, adversarial"):
        odd.image()


def by_hand(rows):
    return mme_.score_pairs(rows, mme_.PERCEPTION, mme_.COGNITION)


def mme_records(outcomes):
    """{subtask: [(first right, second right) an image]} as records."""
    return [
        {"id": f"{subtask}/{i}/{k}", "image_id": f"{subtask}/{i}", "category": subtask, "correct": right}
        for subtask, images in outcomes.items()
        for i, pair in enumerate(images)
        for k, right in enumerate(pair)
    ]


PERCEPTION_BY_HAND = {
    "existence": [(True, True)] * 3,  # 100 + 100
    "count": [(True, True), (True, False)],  # 75 + 50
    "OCR": [(True, False), (False, True)],  # 50 + 0
}
COGNITION_BY_HAND = {"code_reasoning": [(True, True), (False, False), (False, False), (True, False)]}  # 37.5 + 25


def test_mme_s_sums_by_hand():
    """Catches accuracy-plus per question instead of per image, a mean for a sum, a subtask in the wrong sum."""
    scores = by_hand(mme_records(PERCEPTION_BY_HAND | COGNITION_BY_HAND))
    wanted = {"existence": 200, "count": 125, "OCR": 50, "code_reasoning": 62.5, "perception": 375, "cognition": 62.5, "total": 437.5}
    assert values(scores) == {**wanted, "accuracy": pytest.approx(100 * 14 / 22)}
    assert scores["total"].samples == 22
    assert scores["count"].stderr == pytest.approx(75)  # images give 200 and 50: their standard deviation over the root of 2
    assert scores["OCR"].stderr == 0 and by_hand(mme_records({"count": [(True, False)]}))["count"].stderr is None


def test_the_fourteen_subtasks_are_ten_and_four_and_2374_questions_at_most_2800_points():
    assert (len(set(mme_.PERCEPTION)), len(set(mme_.COGNITION))) == (10, 4)
    whole = mme_records({s: [(True, True)] for s in (*mme_.PERCEPTION, *mme_.COGNITION)})
    assert {k: v for k, v in values(by_hand(whole)).items() if k in ("perception", "cognition", "total")} == {
        "perception": 2000,
        "cognition": 800,
        "total": 2800,
    }


def test_incomplete_pairs_are_left_out_and_counted():
    """A pair with one question unasked, or without an answer to compare with, must not count as wrong, nor crash."""
    rows = mme_records({"count": [(True, True), (True, True), (True, None)], "OCR": [(True, True)]})
    scores = by_hand(rows[1:])
    assert (scores["count"].value, scores["count"].samples) == (200, 2)
    assert (scores["incomplete_images"].value, scores["incomplete_images"].samples) == (2, 4)
    assert "incomplete_images" not in by_hand(rows[:4])


def test_mme_s_pairs_share_an_image_id_and_nothing_else_does(tmp_path):
    """Two subtasks have an image 0001.png each: they are not one image of four questions."""
    groups = group_by([{"image_id": s.image_id, "answer": s.answer} for s in build("mme", mme(tmp_path)).samples()], "image_id")
    assert len(groups) == 3
    assert all({r["answer"] for r in g} == {"yes", "no"} for g in groups.values())


# POPE


def test_pope_s_statistics_by_hand():
    """5 true yes, 1 false yes, 3 false no, 11 true no: precision 5/6, recall 5/8, F1 = 2 * 5 / (2 * 5 + 1 + 3)."""
    pairs = [("yes", "yes")] * 5 + [("yes", "no")] + [("no", "yes")] * 3 + [("no", "no")] * 11
    wanted = {"accuracy": 80, "precision": 500 / 6, "recall": 62.5, "f1": 1000 / 14, "yes_ratio": 30}
    assert values(pope_.statistics(pairs)) == pytest.approx(wanted)


def test_an_answer_that_is_neither_is_wrong_and_in_no_ratio():
    """One missed yes is "other": recall 1/1, not 1/2; accuracy 2/4; predicted yes 1 of 4."""
    pairs = [("yes", "yes"), ("other", "yes"), ("other", "no"), ("no", "no")]
    wanted = {"accuracy": 50, "precision": 100, "recall": 100, "f1": 100, "yes_ratio": 25}
    assert values(pope_.statistics(pairs)) == wanted


def test_ratios_over_nothing_are_zero():
    assert values(pope_.statistics([("no", "yes"), ("other", "no")])) == {
        **{"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    }


def test_pope_by_category_their_means_and_pooled(tmp_path):
    """Random all right (F1 1), popular all yes (F1 2/3), adversarial all no (F1 0): mean 5/9, but pooled 4 of 6 + 2 + 2: F1 2/3."""
    benchmark = build("pope", pope(tmp_path))
    predictions = {"random": lambda s: s.answer, "popular": lambda s: "Yes", "adversarial": lambda s: "No"}
    scores = benchmark.score(records(benchmark, lambda s: predictions[s.category](s)))
    assert benchmark.headline == "f1"
    assert scores["f1"].value == pytest.approx(100 * 5 / 9)
    assert scores["pooled_f1"].value == pytest.approx(100 * 2 / 3)
    assert {k: scores[f"{k}_f1"].value for k in predictions} == pytest.approx({"random": 100, "popular": 200 / 3, "adversarial": 0})
    assert {k: scores[f"{k}_yes_ratio"].value for k in predictions} == {"random": 50, "popular": 100, "adversarial": 0}
    assert scores["accuracy"].value == pytest.approx(200 / 3)
    assert (scores["pooled_yes_ratio"].value, scores["pooled_f1"].samples, scores["random_f1"].samples) == (50, 12, 4)


def test_the_yes_ratio_is_of_the_predictions_not_of_the_truth(tmp_path):
    for protocol, prediction in (("llava", "perhaps"), ("lmms_eval", "yes")):
        benchmark = build("pope", pope(tmp_path), protocol=protocol)
        assert benchmark.score(records(benchmark, lambda s, text=prediction: text))["yes_ratio"].value == 100
    assert benchmark.headline == "pooled_f1"


def test_pope_s_eighteen_questions_on_an_image_share_it_and_ids_differ(tmp_path):
    samples = build("pope", pope(tmp_path)).samples()
    assert len({s.id for s in samples}) == 12  # question ids begin anew in each category
    assert len({s.image_id for s in samples}) == 2


def test_pope_full_has_a_split_for_each_category(tmp_path):
    rows = [{"question_id": "1", "question": "Is there a car?", "answer": "no", "image_source": "a", "image": picture()}]
    benchmark = build("pope", write(tmp_path, "popular", rows, config="Full"), config="Full", split="popular")
    assert {s.category for s in benchmark.samples()} == {"popular"}
    with pytest.raises(UserError, match="category='other' is not one of random, popular, adversarial"):
        build("pope", write(tmp_path / "b", "other", rows), split="other").samples()


def test_records_without_an_answer_are_counted_and_score_nothing(tmp_path):
    benchmark = build("pope", pope(tmp_path))
    rows = records(benchmark, lambda s: "Yes")
    for r in rows[:2]:
        r["answer"] = r["correct"] = None
    scores = benchmark.score(rows)
    assert (scores["without_answer"].value, scores["pooled_accuracy"].samples) == (2, 10)
    assert set(benchmark.score(rows[:2])) == {"without_answer"}
