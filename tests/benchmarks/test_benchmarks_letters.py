"""Letters out of answers; ScienceQA and MMStar, which score them, by hand."""

from __future__ import annotations

import pytest
from support.hub import MAKERS, build, picture, write
from support.hub_choices import records

from blink_exp.benchmarks.base import Score
from blink_exp.benchmarks.letters import extract_letter, infer_choice
from blink_exp.benchmarks.mmstar import MMStar, average
from blink_exp.errors import UserError


def test_only_offered_letters_are_found():
    assert extract_letter("E") is None
    assert extract_letter("E", "ABCDE") == "E"
    assert extract_letter("Both A and B", "A") == "A"
    assert extract_letter("(H)", "") == "H"  # none offered: A to H, as lmms-eval has it


OPTIONS = {"A": "cat", "B": "black dog", "C": "dog", "D": "fish"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[("A", "A"), ("B.", "B"), ("C. dog", "C"), ("(D)", "D"), ("dog", "C"), ("black dog", None), ("It is a cat", "A")],
        *[("A cat is here now", "A"), ("E", "E"), ("bird", None), ("A B", None)],
        *[
            ("A thing is here", None),
            ("A it is", "A"),
            ("I say B here now", "B"),
            ("so :C).", "C"),
            ("A. B, x", "A"),
            ("FISH", "D"),
            ("", None),
            ("Failed to obtain answer via API B", None),  # its letter is no answer
            ("Failed to obtain answer via API. fish", "D"),  # the text of an option still is
            ("failed to obtain answer via API B", "B"),
        ],
    ],
)
def test_mmbench_choice_inference(text, letter):
    assert infer_choice(text, OPTIONS) == letter


# ScienceQA


def test_scienceqa_has_as_many_letters_as_options_under_lmms_eval_and_five_under_llava(tmp_path):
    row = {"question": "?", "choices": list("uvwxyz"), "answer": 5, "hint": "", "image": picture()}
    folder = write(tmp_path, "test", [row, row | {"answer": 0}], "ScienceQA-IMG")
    six, five = (build("scienceqa", folder, protocol=p).samples()[0] for p in ("lmms_eval", "llava"))
    assert (six.answer, five.answer) == ("F", None)
    assert list(six.fields["options"]) == list("ABCDEF")


def test_scienceqa_answers_that_are_no_number_set_their_row_aside(tmp_path):
    row = {"question": "?", "choices": ["a", "b"], "hint": "", "image": picture()}
    folder = write(tmp_path, "test", [row | {"answer": "1"}, row | {"answer": "b"}], "ScienceQA-IMG")
    good, bad = build("scienceqa", folder).samples()
    assert (good.answer, good.image().size) == ("B", (48, 32))
    with pytest.raises(OSError, match="answer is text \\('b'\\), not a whole number"):
        bad.image()


def test_scienceqa_scores_by_subject(tmp_path):
    benchmark = build("scienceqa", MAKERS["scienceqa"](tmp_path))
    scores = benchmark.score(records(benchmark, ["B", "B"]))
    assert [scores[k].value for k in ("accuracy", "natural science", "social science")] == [50, 100, 0]


def test_rows_without_an_answer_are_predicted_and_not_scored(tmp_path):
    """An empty cell, and a benchmark without any answer."""
    rows = [{"question": "?", "choices": ["a", "b"], "answer": answer, "hint": "", "image": picture()} for answer in (1, None)]
    some = build("scienceqa", write(tmp_path / "one", "test", rows, "ScienceQA-IMG"))
    entries = records(some, ["B", "B"])
    assert [r["correct"] for r in entries] == [True, None]
    assert some.score(entries)["accuracy"] == Score(100, 1, 0)
    none = build("scienceqa", write(tmp_path / "none", "test", rows[1:], "ScienceQA-IMG"))
    with pytest.raises(UserError, match="has no answers"):
        none.samples()


# MMStar


def star(category, axis, hits):
    return [{"category": category, "correct": hit, "fields": {"l2": axis}} for hit in hits]


def test_mmstar_averages_differ_as_axes_are_unequal():
    """math: axis a 3 of 3, axis b 0 of 1, so 75 % over its questions and 50 % over its axes; logic: 1 of 4 on its one axis."""
    rows = [*star("math", "a", [1, 1, 1]), *star("math", "b", [0]), *star("logic", "a", [1, 0, 0, 0])]
    scores = MMStar.score(None, rows)
    wanted = {"average": 50, "average_l2": 125 / 3, "accuracy": 50, "math": 75, "logic": 25, "math_l2": 50, "logic_l2": 25, "math/b": 0}
    assert {name: scores[name].value for name in wanted} == pytest.approx(wanted)
    assert scores["math/a"].value == 100  # not mixed with logic's axis of the same name
    assert scores["average"].samples == 8
    # two independent means with p = 3/4 and 1/4 over 4: sqrt(2 * (3/16) / 4) / 2
    assert scores["average"].stderr == pytest.approx(100 * (2 * 3 / 16 / 4) ** 0.5 / 2)


def test_mmstar_average_is_hero_s():
    assert round(average([Score(v, 250) for v in (67.6, 28.0, 38.7, 33.5, 29.6, 23.9)]).value, 1) == 36.9
