"""GQA, ChartQA, OCRBench and RealWorldQA: their rules by published vectors and by hand, and data sets that are not as they should be."""

from __future__ import annotations

import pytest
import support.hub_choices  # noqa: F401 (enters its makers)
from support.encoded_images import encoded, oriented
from support.hub import MAKERS, build, chartqa, gqa, ocrbench, picture, realworldqa, write

from blink_exp.benchmarks.chartqa import relaxed
from blink_exp.benchmarks.ocrbench import RECOGNITION, hit
from blink_exp.errors import UserError
from blink_exp.evaluation.records import graded


def scored(benchmark, predictions):
    return [graded(benchmark, s, p) for s, p in zip(benchmark.samples(), predictions, strict=True)]


def values(scores):
    return {k: v.value for k, v in scores.items()}


# GQA


@pytest.mark.parametrize(
    ("text", "llava", "lmms_eval"),
    [
        *[("plastic", 1, 1), ("Plastic.", 1, 1), ("plastic...", 1, 1), ("plas-tic", 0, 1), ("plastic!", 0, 1), ("plastic cup", 0, 0)],
        *[("plastic ", 0, 1), (".plastic", 0, 1), (". plastic", 0, 0)],
    ],
)
def test_gqa_has_two_rules(text, llava, lmms_eval, gqa_folder):
    for protocol, right in (("llava", llava), ("lmms_eval", lmms_eval)):
        benchmark = build("gqa", gqa_folder, protocol=protocol)
        cup = next(s for s in benchmark.samples() if s.answer == "plastic")
        assert benchmark.correct(cup, text) == right


def test_gqa_s_references_are_unpunctuated_too_by_lmms_eval_only(tmp_path):
    rows = [{"id": "1", "imageId": "n1", "question": "What?", "answer": "T-shirt"}]
    folder = write(tmp_path, "testdev", rows, "testdev_balanced_instructions")
    write(folder, "testdev", [{"id": "n1", "image": picture()}], "testdev_balanced_images")
    right = [(b := build("gqa", folder, protocol=p)).correct(b.samples()[0], "tshirt") for p in ("llava", "lmms_eval")]
    assert right == [False, True]


@pytest.fixture(scope="module")
def gqa_folder(tmp_path_factory):
    return gqa(tmp_path_factory.mktemp("gqa"))


def test_gqa_joins_questions_with_their_images(gqa_folder):
    """The images stand in another order than the questions; catches a join by row number."""
    first, second, third = build("gqa", gqa_folder).samples()
    assert first.image_id == third.image_id != second.image_id
    assert first.image().tobytes() == picture(2).tobytes() == third.image().tobytes()
    assert second.image().tobytes() == picture(1).tobytes()
    assert first.image() is third.image()  # decoded once for the questions of a batch


def test_gqa_scores_by_kind_of_question(gqa_folder):
    benchmark = build("gqa", gqa_folder)
    assert values(benchmark.score(scored(benchmark, ["No", "man", "plastic."]))) == pytest.approx(
        {"accuracy": 200 / 3, "verify": 100, "query": 50}
    )


def test_gqa_questions_without_their_image_are_skipped_and_another_split_s_images_refused(tmp_path):
    rows = [{"id": str(k), "imageId": f"n{k}", "question": "What?", "answer": "x"} for k in range(2)]
    folder = write(tmp_path, "testdev", rows, "testdev_balanced_instructions")
    write(folder, "testdev", [{"id": "n1", "image": picture()}], "testdev_balanced_images")
    missing, there = build("gqa", folder).samples()
    with pytest.raises(OSError, match="imageId n0 is not in testdev_balanced_images"):
        missing.image()
    assert there.image().size == (48, 32)
    write(folder, "testdev", [{"id": "m", "image": picture()}], "others")
    with pytest.raises(UserError, match="benchmark.image_config=others has no image that testdev_balanced_instructions asks about"):
        build("gqa", folder, image_config="others").samples()


# ChartQA


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        *[("14.5", "14", True), ("14.8", "14", False), ("14%", "14", False), ("0.14", "14%", True), ("0", "0", True), ("0.01", "0", False)],
        *[("Yes", "yes", True), ("Yes.", "Yes", False), ("1,000", "1000", False), ("$14", "14", False)],
        *[("2009", "2010", True), ("1950", "2010", True), ("1909", "2010", False)],
        *[("95", "100", True), ("105", "100", True), ("-100", "100", False), ("-100", "-104", True), ("-100", "-50", False)],
        *[(" 14 ", "14", True), ("", "14", False), ("0.0", "0", False), ("%", "%", True), ("Yemen ", "Yemen", False)],
    ],
)
def test_relaxed_correctness(prediction, target, right):
    """The last rows: the bound itself, signs, spaces that float() takes off, a zero target compared as text."""
    assert relaxed(prediction, target) is right


def test_chartqa_scores_by_type(tmp_path):
    benchmark = build("chartqa", chartqa(tmp_path))
    assert values(benchmark.score(scored(benchmark, ["14", "0.58", "Oman"]))) == pytest.approx(
        {"accuracy": 200 / 3, "human": 100, "augmented": 50}
    )


def test_chartqa_s_original_answers_are_lists(tmp_path):
    rows = [{"type": "human_test", "question": "?", "answer": [a], "image": picture()} for a in ("14", "")]
    samples = build("chartqa", write(tmp_path, "test", rows)).samples()
    assert [s.answer for s in samples] == ["14", None]


def test_chartqa_has_one_protocol():
    with pytest.raises(UserError, match="benchmark.protocol=llava does not exist for chartqa; use lmms_eval"):
        build("chartqa", "x", protocol="llava")


def test_chartqa_s_answers_are_stripped_as_lmms_eval_does_and_numbers_are_texts(tmp_path):
    rows = [chart(picture()) | {"type": "augmented_test", "answer": "Yemen"}]
    benchmark = build("chartqa", write(tmp_path / "text", "test", rows))
    assert benchmark.correct(benchmark.samples()[0], " yemen\n") is True
    benchmark = build("chartqa", write(tmp_path / "number", "test", [chart(picture()) | {"answer": 14}]))
    assert benchmark.correct(benchmark.samples()[0], "14.5") is True


# OCRBench


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("The text is Centre.", ["CENTRE"], True),
        ("cent re", ["CENTRE"], False),
        ("January\n8", ["1/8/93", "January 8"], True),
        ("january", ["January 8"], False),  # the reference in the prediction, not the other way round
        ("ＣＥＮＴＲＥ　１２", ["centre 12"], True),
        ("centre", ["ＣＥＮＴＲＥ"], True),
        ("abc", ["  ABC\n"], True),
        ("", ["x"], False),
    ],
)
def test_an_ocrbench_hit(prediction, answers, right):
    assert hit(prediction, answers) is right


@pytest.mark.parametrize(
    ("prediction", "right"), [("x^{2}", True), ("so x ^{ 2\n} .", True), ("X^{2}", False), ("x^2", False)], ids=["", "spaces", "case", "no"]
)
def test_formulas_are_compared_without_spaces_and_with_case(prediction, right, tmp_path):
    benchmark = build("ocrbench", ocrbench(tmp_path))
    formula = benchmark.samples()[3]
    assert formula.fields["dataset"] == "HME100k"
    assert benchmark.correct(formula, prediction) is right


def test_ocrbench_s_authors_ask_llava_for_a_word_and_do_not_fold(tmp_path):
    folder = ocrbench(tmp_path)
    authors, toolkit = (build("ocrbench", folder, protocol=p) for p in ("llava", "lmms_eval"))
    first, formula = authors.samples()[0], authors.samples()[3]
    assert authors.prompt(first) == "what is written in the image?\nAnswer the question using a single word or phrase."
    assert toolkit.prompt(first) == "what is written in the image?"
    assert (authors.correct(first, "ＣＥＮＴＲＥ"), toolkit.correct(first, "ＣＥＮＴＲＥ")) == (False, True)
    assert toolkit.correct(formula, "ｘ^{2}") is authors.correct(formula, "ｘ^{2}") is False  # formulas are never folded
    assert (authors.max_new_tokens, toolkit.max_new_tokens) == (128, 128)


def test_ocrbench_counts_by_hand_and_twice_the_same(tmp_path):
    """Two evaluations in one process must not add up."""
    benchmark = build("ocrbench", ocrbench(tmp_path))
    records = scored(benchmark, ["centre", "messi", "on January 8", "x^{2}"])
    wanted = {
        **{"Regular Text Recognition": 1, "Irregular Text Recognition": 0, "Doc-oriented VQA": 1},
        **{"Handwritten Mathematical Expression Recognition": 1, "Text Recognition": 1, "final": 3, "accuracy": 75},
    }
    for scores in (benchmark.score(records), benchmark.score(records)):
        assert values(scores) == wanted
        assert (scores["Text Recognition"].samples, scores["final"].samples) == (2, 4)


def test_text_recognition_is_six_kinds_and_not_the_mathematical_one():
    records = [{"category": k, "correct": True} for k in (*RECOGNITION, "Handwritten Mathematical Expression Recognition")]
    scores = build("ocrbench", "x").score(records)
    assert (scores["Text Recognition"].value, scores["final"].value) == (6, 7)


def test_an_ocrbench_answer_may_be_plain_text_or_missing(tmp_path):
    rows = [{"dataset": "d", "question": "?", "question_type": "t", "answer": a, "image": picture()} for a in ("red", "", None)]
    benchmark = build("ocrbench", write(tmp_path, "test", rows))
    records = scored(benchmark, ["it is red", "", "x"])  # an empty reference is part of every text
    assert [r["correct"] for r in records] == [True, None, None]
    assert values(benchmark.score(records)) == {"accuracy": 100, "final": 1, "t": 1, "without_answer": 2}


# RealWorldQA


@pytest.mark.parametrize(
    ("predictions", "right"),
    [
        (("B", "3", "yes"), [True, True, True]),
        (("B. Right.", "3.", " YES. "), [True, True, True]),
        (("The answer is B.", "three", "yes it is"), [True, False, False]),
        (("b", "3.0", "no"), [False, False, False]),
        (("A", "", ""), [False, False, False]),
    ],
)
def test_realworldqa_reads_letters_or_words_by_the_reference(predictions, right, tmp_path):
    for protocol in ("llava", "lmms_eval"):
        benchmark = build("realworldqa", realworldqa(tmp_path), protocol=protocol)
        assert [r["correct"] for r in scored(benchmark, predictions)] == right


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        *[("Yes.", "Yes", False), ("Yes.", "Yes.", False), ("Yes", "yes.", True)],  # the reference keeps its stop, the prediction loses it
        *[("b", "B", True), ("b", "b", False), ("c ", "(C)", True)],  # a reference of one lower-case letter is a letter
        *[("e", "E.", True), ("3", "3..", True), (3, "3", True)],
    ],
)
def test_realworldqa_s_references(answer, prediction, right, tmp_path):
    folder = write(tmp_path, "test", [{"question": " ? ", "answer": answer, "image": picture()}])
    for protocol, asked in (("llava", " ? "), ("lmms_eval", "?")):
        benchmark = build("realworldqa", folder, protocol=protocol)
        [sample] = benchmark.samples()
        assert benchmark.correct(sample, prediction) is right
        assert benchmark.prompt(sample) == asked


# Data sets that are not as they should be


@pytest.mark.parametrize("name", MAKERS)
def test_images_arrive_as_rgb(name, tmp_path):
    samples = build(name, MAKERS[name](tmp_path)).samples()
    assert {s.image().mode for s in samples} == {"RGB"}
    assert len({s.id for s in samples}) == len(samples)


def chart(image):
    return {"type": "human_test", "question": "?", "answer": "1", "image": image}


def test_an_image_that_does_not_decode_raises_what_the_evaluator_skips(tmp_path):
    folder = write(tmp_path, "test", [chart(picture()), chart(b"no image"), chart(None), chart(encoded(picture())[:200])])
    good, *bad = build("chartqa", folder).samples()
    assert good.image().size == (48, 32)
    for sample in bad:
        with pytest.raises(OSError):
            sample.image()


def test_photographs_are_turned_upright_unless_told_otherwise(tmp_path):
    turned = encoded(picture(size=(48, 32)), "JPEG", exif=oriented(6))  # by 90 degrees to show
    folder = write(tmp_path, "test", [chart(turned)])
    assert build("chartqa", folder).samples()[0].image().size == (32, 48)
    assert build("chartqa", folder, exif=False).samples()[0].image().size == (48, 32)


def test_parquet_without_the_hub_s_metadata_reads_the_same(tmp_path):
    rows = [chart(picture(1)), chart(picture(2))]
    plain = build("chartqa", write(tmp_path / "plain", "test", rows, schema=False)).samples()
    hub = build("chartqa", write(tmp_path / "hub", "test", rows, shards=2)).samples()
    assert plain == hub
    assert [s.image().tobytes() for s in plain] == [s.image().tobytes() for s in hub]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tset"}, "benchmark.split=tset is not in .*; did you mean test?"),
        ({"path": "/nowhere/ChartQA"}, "benchmark.path=/nowhere/ChartQA is neither a folder nor a hub id"),
    ],
)
def test_a_wrong_split_or_path_is_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build("chartqa", chartqa(tmp_path), **changes).samples()


def test_a_missing_column_and_missing_answers_are_one_line(tmp_path):
    rows = [{k: v for k, v in chart(picture()).items() if k != "type"}]
    with pytest.raises(UserError, match="lacks the column type, which chartqa reads"):
        build("chartqa", write(tmp_path / "a", "test", rows)).samples()
    rows = [chart(picture()) | {"answer": ""}]
    with pytest.raises(UserError, match="split test of .* has no answers; choose one that has"):
        build("chartqa", write(tmp_path / "b", "test", rows)).samples()
