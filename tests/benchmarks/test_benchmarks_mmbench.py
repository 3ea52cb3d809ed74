"""MMBench: circles of rotations, who reads a letter out of an answer, limits, the file for the server."""

from __future__ import annotations

import random

import pytest
from support.hub import MAKERS, build, picture, write
from support.hub_choices import Script, circle, records

from blink_exp.benchmarks.base import Count, Score, spread
from blink_exp.benchmarks.mmbench import read_letter


def test_mmbench_is_circular(tmp_path):
    """Question 0 all right: counted once. Question 1 with one rotation of two wrong: wrong, though half of its rows are right."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    entries = records(benchmark, lambda s: s.answer if s.fields["index"] != 1_000_252 else "A")
    assert [r["correct"] for r in entries] == [True, True, True, True, True, False]
    scores = benchmark.score(entries)
    assert (scores["accuracy"].value, scores["accuracy"].samples) == (50, 2)
    assert (scores["attribute_recognition"].value, scores["spatial_relationship"].value) == (100, 0)
    assert (scores["l2_finegrained_perception (instance-level)"].value, scores["l2_relation_reasoning"].value) == (100, 0)
    assert scores["chosen_by_rules"] == Count(6, 6)
    assert "left_out" not in scores
    assert benchmark.submit(entries, tmp_path) == []


def test_the_rotations_of_the_fixture_are_rotations():
    rows = circle(7, ["a", "b", "c"], 1, "?", None)
    assert [r[r["answer"]] for r in rows] == ["b"] * 3
    assert [r["A"] for r in rows] == ["a", "b", "c"]
    assert [r["D"] for r in rows] == ["nan"] * 3


def test_mmbench_leaves_open_questions_out_and_counts_them(tmp_path):
    """Without its first rotation (a broken image) a question has no row in the count of questions."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    entries = records(benchmark, lambda s: s.answer)
    scores = benchmark.score([r for r in entries if r["fields"]["index"] != 241])
    assert scores["accuracy"] == Score(100, 1, 0)
    assert scores["left_out"] == Count(1, 2)


def test_mmbench_static_reads_what_the_rules_leave_open(tmp_path):
    """Two letters leave the rules undecided, and the general extractor takes the last. Where nobody finds a letter the answer is wrong."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    sample = benchmark.samples()[0]  # circle, square, star, cross: C
    assert benchmark.correct(sample, "Either A or C") is True
    assert benchmark.correct(sample, "cannot say") is False
    assert benchmark.correct(sample, "a STAR I believe") is True
    entries = records(benchmark, lambda s: "cannot say" if s.fields["index"] == 241 else f"not E but {s.answer}")
    by_whom = [r["chosen_by"] for r in benchmark.judged(entries)]
    assert by_whom == ["nobody", "extractor", "extractor", "extractor", "extractor", "extractor"]


def test_mmbench_judge_is_asked_only_where_a_question_is_not_lost(tmp_path):
    """Question 0 has a rotation that is wrong by the rules: its undecided rotation costs no request. Question 1 needs two."""
    judge = Script("(B).", "A")
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path), judge=judge, choice="judge")
    wrong = {241: "A", 1_000_241: "no idea", 252: "none given", 1_000_252: "no idea"}
    entries = records(benchmark, lambda s: wrong.get(s.fields["index"], s.answer))
    assert [r["correct"] for r in entries] == [False, None, True, True, None, None]
    scores = benchmark.score(entries)
    assert len(judge.asked) == 2
    assert judge.tries == 3
    asked = judge.asked[0][0]["content"]
    assert "Where is it?" in asked and "A. left\nB. right" in asked and "none given" in asked
    assert scores["accuracy"].value == 0  # 252 means A (left), the judge said B
    assert scores["chosen_by_judge"] == Count(2, 6)
    assert scores["chosen_by_nobody"] == Count(1, 6)


def test_mmbench_draws_a_letter_by_seed_where_the_judge_makes_no_sense(tmp_path):
    folder = MAKERS["mmbench"](tmp_path)

    def drawn(seed):
        benchmark = build("mmbench", folder, judge=Script(*["no letter"] * 6), choice="judge", seed=seed)
        return benchmark.judged(records(benchmark, lambda s: "hm"))

    assert [r["letter"] for r in drawn(0)] == [r["letter"] for r in drawn(0)]
    assert {r["chosen_by"] for r in drawn(0)} == {"chance"}
    assert len({tuple(r["letter"] for r in drawn(seed)) for seed in range(8)}) > 1
    assert all(r["letter"] in r["fields"]["options"] for r in drawn(1))  # two options: no C


def test_mmbench_answers_that_the_endpoint_never_judged_are_left_out(tmp_path):
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path), judge=Script(None), choice="judge")
    scores = benchmark.score(records(benchmark, lambda s: "hm" if s.fields["index"] == 252 else s.answer))
    assert scores["accuracy"] == Score(100, 1, 0)
    assert scores["left_out"] == Count(1, 2)


def row(hint="nan", answer="A", **options):
    cells = {letter: options.get(letter) for letter in "ABCD"}
    return {"index": 7, "question": "Q", "hint": hint, "answer": answer, **cells, "category": "c", "L2-category": "l", "image": picture()}


@pytest.mark.parametrize(
    ("cells", "llava", "lmms_eval"),
    [
        (["None", "red", "blue", "nan"], "", "ABC"),
        (["red", "None", "blue", "green"], "A", "ABCD"),
        (["red", "blue", "none", "NONE"], "AB", "ABCD"),
        (["red", "nan", "blue", "green"], "A", "ACD"),
        (["red", None, "blue", None], "A", "AC"),
        (["red", "NaN", "blue", ""], "A", "ABC"),
        (["red", "", "blue", "green"], "A", "ACD"),
        (["red", "blue", " nan", "nans"], "ABCD", "ABCD"),
        (["nan", "nan", "nan", "nan"], "", ""),
    ],
)
def test_what_is_no_option(cells, llava, lmms_eval, tmp_path):
    """llava: the first option that is missing ends the list. lmms_eval: a missing one alone is left out, and "None" is not missing."""
    folder = write(tmp_path, "dev", [row(**dict(zip("ABCD", cells, strict=True)))], "en")
    for protocol, letters in (("llava", llava), ("lmms_eval", lmms_eval)):
        benchmark = build("mmbench", folder, protocol=protocol)
        [sample] = benchmark.samples()
        assert "".join(sample.fields["options"]) == letters
        listed = "".join(f"\n{letter}. {cells['ABCD'.index(letter)]}" for letter in letters)
        opening = f"Q{listed}" if protocol == "llava" else f"Q There are several options:{listed}\n"
        assert benchmark.prompt(sample) == f"{opening}\nAnswer with the option's letter from the given choices directly."
        assert benchmark.correct(sample, "A") is True
        assert benchmark.correct(sample, "say what you like") is False
        assert benchmark.score(records(benchmark, ["hm"]))["accuracy"].value == 0


@pytest.mark.parametrize(
    ("hint", "llava", "en", "cn"),
    [
        ("Look.", "Look.\nQ", "Look. Q", "Look. Q"),
        ("nan", "Q", "Q", "nan Q"),
        (None, "Q", "Q", "Q"),
        ("None", "Q", "None Q", "None Q"),
        ("NaN", "Q", "NaN Q", "NaN Q"),
        ("", "Q", " Q", " Q"),
    ],
)
def test_what_is_no_hint(hint, llava, en, cn, tmp_path):
    write(tmp_path, "dev", [row(hint=hint, A="x")], "en")
    folder = write(tmp_path, "dev", [row(hint=hint, A="x")], "cn")
    wanted = {("mmbench", "llava"): llava, ("mmbench_cn", "llava"): llava, ("mmbench", "lmms_eval"): en, ("mmbench_cn", "lmms_eval"): cn}
    for (name, protocol), opening in wanted.items():
        benchmark = build(name, folder, protocol=protocol)
        assert benchmark.prompt(benchmark.samples()[0]).startswith(opening + ("\nA. x" if protocol == "llava" else " There are"))


def test_a_letter_is_drawn_where_there_are_no_options(tmp_path):
    folder = write(tmp_path, "dev", [row(A="None")], "en")
    benchmark = build("mmbench", folder, judge=Script("no letter"), choice="judge")
    assert benchmark.judged(records(benchmark, ["hm"]))[0]["letter"] in "ABCDE"


def test_mmbench_s_file_for_the_server_has_the_options_behind_a_missing_one(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    folder = write(tmp_path, "test", [row(answer="nan", A="red", B="nan", C="blue", D="nan")], "en")
    for protocol in ("llava", "lmms_eval"):
        benchmark = build("mmbench", folder, split="test", protocol=protocol)
        [file] = benchmark.submit(records(benchmark, ["A"]), tmp_path / protocol)
        assert list(openpyxl.load_workbook(file).active.iter_rows(values_only=True))[1][2:6] == ("red", None, "blue", None)


def test_mmbench_limits_and_shards_keep_circles_whole(tmp_path):
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    subset = spread(benchmark.samples(), 3)
    assert {s.fields["index"] % 1_000_000 for s in subset} == {241}
    assert len(subset) == 4


def test_mmbench_test_split_is_not_scored_but_submitted(tmp_path):
    """A prediction like a formula must stay a text, and control characters cannot stand in a workbook."""
    openpyxl = pytest.importorskip("openpyxl")
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path), split="test")
    entries = records(benchmark, ["=1+1", "B", "C\x07", "D", "A", "B"])
    assert all(r["correct"] is None for r in entries)
    assert benchmark.score(entries) == {}
    random.Random(0).shuffle(entries)
    (file,) = benchmark.submit(entries, tmp_path / "out")
    assert file.name == "mmbench_test_submission.xlsx"
    rows = list(openpyxl.load_workbook(file).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction")
    assert rows[1] == (241, "What shape is it?", "circle", "square", "star", "cross", "=1+1")
    assert rows[2][:6] == (252, "Where is it?", "left", "right", None, None)
    assert [row[0] for row in rows[1:]] == [241, 252, 1000241, 1000252, 2000241, 3000241]
    assert openpyxl.load_workbook(file).active["G2"].data_type == "s"
    (part,) = benchmark.submit(entries[1:], tmp_path / "out")
    assert part.name == "mmbench_test_partial_1_missing.xlsx"


@pytest.mark.parametrize(
    ("reply", "letter"), [("B", "B"), (" B.\n", "B"), ("(B)", "B"), ("E", "E"), ("b", None), ("B or C", None), ("", None)]
)
def test_a_judge_s_letter_is_read_strictly(reply, letter):
    assert read_letter(reply) == letter
