"""VQA accuracy and its normaliser by published vectors and by hand; VQAv2, VizWiz and TextVQA on top of it; the servers' files."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hub import build, picture, ten, textvqa, vizwiz, vqav2, vqav2_row, write
from support.hub_choices import records

from blink_exp.benchmarks import vqa
from blink_exp.benchmarks.base import Submits, mean
from blink_exp.benchmarks.vqa import normalize, vqa_accuracy
from blink_exp.errors import UserError

VECTORS = [  # text, with the first step, without it
    ("The Red, Blue car.", "red blue car", "red blue car"),
    ("x/y/\n", "x y", "x y"),  # the line break does not touch the last mark
    ("two", "2", "2"),
    ("none", "0", "0"),
    ("$1,000", "$1000", "$1000"),
    ("1,000 people", "1000 people", "1000 people"),
    ("a dog's leash", "dog 's leash", "dog's leash"),
    ("dont", "don't", "don't"),
    ("cant", "can't", "can't"),
    ("Yes!", "yes", "yes"),
    ("(a)", "", ""),
    ("N/A", "n", "n"),
    ("3.5", "3.5", "3.5"),
    ("U.S.A.", "usa", "usa"),
    ("10:30", "10:30", "10:30"),
    ("well-known", "well known", "well known"),
    ("left/right", "left right", "left right"),
    ("it's 5 o'clock", "it 's 5 o'clock", "it's 5 o'clock"),
]


@pytest.mark.parametrize(("text", "with_it", "without"), VECTORS, ids=[v[0] for v in VECTORS])
def test_the_normaliser_s_published_vectors(text, with_it, without):
    assert normalize(text) == with_it
    assert normalize(text, tokenize=False) == without


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("well- known-fact", "well knownfact"),  # one dash touches a space, so every dash is deleted
        ("well -known-fact", "well knownfact"),
        ("a-b c/d", "b c d"),  # a mark is judged by itself: these touch none
        ("2,000-3,000", "20003000"),  # digit, comma, digit: every mark is deleted
        ("red\nand\tblue", "red and blue"),
        ("  An apple  ", "apple"),
        ("ten of the zero", "10 of 0"),
        ("somebody'd", "somebodyd"),  # the table's own slip
        ("Im", "im"),  # its entries with capitals never meet a text
        ("theyre", "they're"),
        ("yalld've", "yalld've"),  # two apostrophes less is no entry
        ("yall'd've", "y'all'd've"),
        ("'ows'at", "'ow's'at"),
        ("5 %", "5 %"),
        ("1. 2.5.", "1 2.5"),
        ("", ""),
    ],
)
def test_the_normaliser_by_hand(text, expected):
    assert normalize(text, tokenize=False) == expected


def test_the_contraction_table_has_the_servers_entries():
    """114 of 120: without the four with capitals, which never fire, and the two that map a word to itself."""
    assert len(vqa.CONTRACTIONS) == 114
    assert all(value.replace("'", "") == key.replace("'", "") for key, value in vqa.CONTRACTIONS.items())
    assert {k for k in vqa.CONTRACTIONS if len(k) >= len(vqa.CONTRACTIONS[k])} == {"somebody'd"}
    wanted = {"wont": "won't", "youre": "you're", "oclock": "o'clock", "twas": "'twas", "couldn'tve": "couldn't've", "maam": "ma'am"}
    assert wanted.items() <= vqa.CONTRACTIONS.items()
    assert not {"wed", "well", "were", "ill", "shell", "its", "id"} & vqa.CONTRACTIONS.keys()  # words of their own


def left_one_out(prediction: str, people: list[str]) -> Fraction:
    """The definition, person by person."""
    answer, answers = normalize(prediction), [normalize(a) for a in people]
    others = [[a for j, a in enumerate(answers) if j != i] for i in range(len(answers))]
    return sum(min(Fraction(1), Fraction(rest.count(answer), 3)) for rest in others) / len(answers)


@given(people=st.lists(st.sampled_from(["red", "Red", "two", "2", "a red", "blue?", ""]), min_size=2, max_size=12), seed=st.integers(0, 99))
@settings(deadline=None)
def test_accuracy_is_the_mean_over_left_out_people_in_any_order(people, seed):
    mixed = random.Random(seed).sample(people, len(people))
    for prediction in ("red", "2", "green"):
        assert vqa_accuracy(prediction, mixed) == vqa_accuracy(prediction, people) == float(left_one_out(prediction, people))


@given(hits=st.lists(st.sampled_from([0, 0.3, 0.6, 0.9, 1]), min_size=3, max_size=60), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_mean_of_fractions_has_no_order(hits, seed):
    assert mean(random.Random(seed).sample(hits, len(hits))) == mean(hits)


@pytest.mark.parametrize(
    ("prediction", "people", "accuracy"),
    [
        ("Yes", ["yes"] * 10, 1),  # what is handed in is normalised, so that "Yes" is "yes"
        ("2", ["two"] * 10, 0),  # and what all people share is compared as it is
        (" two\n", ["two"] * 10, 0),
        ("T-shirt", ["t-shirt"] * 10, 0),
        ("t shirt", [" t shirt\n"] * 5 + ["t shirt"] * 5, 1),  # spaces at the ends are no difference
        ("2", ["two"] * 9 + ["2"], 1),
        ("T-shirt", ["t-shirt"] * 9 + ["shirt"], 1),
        ("a dog's", ["dog's"] * 9 + ["cat"], 0),  # 's is parted from its word in what is handed in alone
        ("a dog's", ["the dog 's"] * 9 + ["cat"], 1),
        ("", [""] * 3 + ["red"] * 7, 0.9),
    ],
)
def test_the_server_s_script_on_a_submission(prediction, people, accuracy, tmp_path):
    assert vqa_accuracy(prediction, people, "unless_equal") == accuracy
    for protocol in ("llava", "lmms_eval"):
        benchmark = build(
            "vqav2", write(tmp_path, "validation", [vqav2_row(1, "?", people)]), protocol=protocol, normalization="unless_equal"
        )
        assert benchmark.correct(benchmark.samples()[0], prediction) == accuracy


def test_blank_answers_are_people_s_answers(tmp_path):
    """Seven said nothing, three said red: three of ten agree, not three of three. Where nobody wrote anything there is no answer."""
    rows = [vqav2_row(1000, "?", [*[""] * 6, None, *["red"] * 3]), vqav2_row(2000, "?", [" "] * 10)]
    benchmark = build("vqav2", write(tmp_path, "validation", rows))
    some, none = benchmark.samples()
    assert (some.answer, some.fields["answers"].count("")) == ("red", 7)
    assert [benchmark.correct(some, answer) for answer in ("red", "", "the")] == [0.9, 1, 1]
    assert none.answer is None and benchmark.correct(none, "red") is None


def test_vqav2_s_rows_become_samples_and_stay_as_they_are(tmp_path):
    benchmark = build("vqav2", vqav2(tmp_path))
    first, second, third = samples = benchmark.samples()
    assert [s.category for s in samples] == ["other", "number", "yes/no"]
    assert first.image_id == second.image_id != third.image_id
    assert (first.id, first.answer) == ("vqav2/validation/262148000", "down")
    scores = benchmark.score(records(benchmark, ["Up", "Two.", "no"]))
    assert {k: v.value for k, v in scores.items()} == pytest.approx({"accuracy": 130 / 3, "other": 30, "number": 100, "yes/no": 0})
    assert samples[1].fields["answers"] == ["two"] * 9 + ["2"]  # not the normalised ones
    json.dumps([s.fields for s in samples])


def test_a_row_without_answers_scores_nothing_and_is_counted(tmp_path):
    rows = [vqav2_row(1000, "What?", ten("red")), vqav2_row(2000, "What?", None)]
    benchmark = build("vqav2", write(tmp_path, "validation", rows))
    entries = records(benchmark, ["red", "red"])
    assert [r["correct"] for r in entries] == [1, None]
    scores = benchmark.score(entries)
    assert (scores["accuracy"].value, scores["accuracy"].samples, scores["without_answer"].value) == (100, 1, 1)


def test_textvqa_s_ocr_tokens_go_with_the_protocol_and_can_be_left_out(tmp_path):
    folder = textvqa(tmp_path)
    asked = {
        (protocol, ocr): [s.fields.get("ocr_tokens") is not None for s in b.samples()] + ["Reference OCR" in b.prompt(b.samples()[1])]
        for protocol in ("llava", "lmms_eval")
        for ocr in (None, "row", "none")
        for b in [build("textvqa", folder, protocol=protocol, ocr=ocr)]
    }
    given_to = {key for key, seen in asked.items() if all(seen)}
    assert given_to == {("llava", None), ("llava", "row"), ("lmms_eval", "row")}
    assert all(all(seen) or not any(seen) for seen in asked.values())


def test_ocr_tokens_are_a_needed_column_only_where_they_are_read(tmp_path):
    row = {"question_id": 1, "image_id": "a", "question": "What?", "answers": ten("x"), "image": picture()}
    folder = write(tmp_path, "validation", [row])
    with pytest.raises(UserError, match="lacks the column ocr_tokens, which textvqa reads"):
        build("textvqa", folder).samples()
    assert len(build("textvqa", folder, ocr="none").samples()) == 1


def test_a_split_without_answers_is_refused_where_no_server_takes_it(tmp_path):
    with pytest.raises(UserError, match="split test of .* has no answers; choose one that has"):
        build("textvqa", textvqa(tmp_path), split="test").samples()
    assert all(s.answer is None for s in build("vizwiz", vizwiz(tmp_path / "v"), split="test").samples())


# Files for the servers


@pytest.mark.parametrize("protocol", ["llava", "lmms_eval"])
def test_vqav2_s_file_is_what_the_server_takes(protocol, tmp_path):
    benchmark = build("vqav2", vqav2(tmp_path), split="testdev", protocol=protocol)
    assert isinstance(benchmark, Submits)
    entries = records(benchmark, ["The dog's bowl.", "Two", "it's"])
    [file] = benchmark.submit(entries[::-1], tmp_path / "out")
    assert file.name == "vqav2_testdev_submission.json"
    answers = ["dog 's bowl", "2", "it 's"]  # with the first step, whatever the protocol scores with
    assert json.loads(file.read_text(encoding="utf-8")) == [{"question_id": 1000 + k, "answer": a} for k, a in enumerate(answers)]
    assert set(benchmark.score(entries)) == {"without_answer"}


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_vizwiz_s_file_names_images(ending, tmp_path):
    rows = [{"question_id": f"VizWiz_test_{k:08d}{ending}", "question": "What?", "answers": None, "category": None} for k in range(2)]
    benchmark = build("vizwiz", write(tmp_path, "test", [r | {"image": picture()} for r in rows]), split="test")
    [file] = benchmark.submit(records(benchmark, ["Unanswerable", "A mug!"]), tmp_path / "out")
    assert json.loads(file.read_text(encoding="utf-8")) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "mug"},
    ]


def test_an_incomplete_run_says_so_in_the_file_s_name(tmp_path):
    benchmark = build("vqav2", vqav2(tmp_path), split="testdev")
    [file] = benchmark.submit(records(benchmark, ["a b", "c", "d"])[1:2], tmp_path / "out")
    assert file.name == "vqav2_testdev_partial_2_missing.json"
    assert json.loads(file.read_text(encoding="utf-8")) == [{"question_id": 1001, "answer": "c"}]


def test_a_split_with_answers_needs_no_server(tmp_path):
    benchmark = build("vqav2", vqav2(tmp_path))
    assert benchmark.submit(records(benchmark, ["a", "b", "c"]), tmp_path / "out") == []
    assert benchmark.submit([], tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_submissions_are_checked(tmp_path):
    benchmark = build("vqav2", vqav2(tmp_path), split="testdev")
    entries = records(benchmark, ["a", "b", "c"])
    for rows, message in (
        ([*entries, entries[0]], "vqav2/testdev/1000 is answered twice"),
        ([entries[0] | {"id": "vqav2/test/1000"}], "vqav2/test/1000 is not a question of vqav2/testdev"),
        ([entries[0] | {"id": "vqav2/testdev/77"}], "vqav2/testdev/77 is not a question of vqav2/testdev"),
        ([entries[0] | {"prediction": None}], "vqav2/testdev/1000 has the prediction None, which is no text"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.submit(rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()
