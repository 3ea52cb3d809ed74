"""GQA, ChartQA and OCRBench by hand, and data sets and settings that are not as they should be."""

from __future__ import annotations

import pytest
from support.encoded_images import encoded, oriented
from support.hub import MAKERS, build, chartqa, gqa, ocrbench, picture, write
from support.hub_choices import records, values
from support.refusals import refusal

from blink_exp.benchmarks.ocrbench import RECOGNITION
from blink_exp.errors import UserError

# GQA


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
    assert values(benchmark.score(records(benchmark, ["No", "man", "plastic."]))) == pytest.approx(
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


def test_chartqa_scores_by_type(tmp_path):
    benchmark = build("chartqa", chartqa(tmp_path))
    assert values(benchmark.score(records(benchmark, ["14", "0.58", "Oman"]))) == pytest.approx(
        {"accuracy": 200 / 3, "human": 100, "augmented": 50}
    )


def test_chartqa_s_original_answers_are_lists(tmp_path):
    rows = [{"type": "human_test", "question": "?", "answer": [a], "image": picture()} for a in ("14", "")]
    samples = build("chartqa", write(tmp_path, "test", rows)).samples()
    assert [s.answer for s in samples] == ["14", None]


# OCRBench


def test_ocrbench_counts_by_hand_and_twice_the_same(tmp_path):
    """Two evaluations in one process must not add up."""
    benchmark = build("ocrbench", ocrbench(tmp_path))
    rows = records(benchmark, ["centre", "messi", "on January 8", "x^{2}"])
    wanted = {
        **{"Regular Text Recognition": 1, "Irregular Text Recognition": 0, "Doc-oriented VQA": 1},
        **{"Handwritten Mathematical Expression Recognition": 1, "Text Recognition": 1, "final": 3, "accuracy": 75},
    }
    for scores in (benchmark.score(rows), benchmark.score(rows)):
        assert values(scores) == wanted
        assert (scores["Text Recognition"].samples, scores["final"].samples) == (2, 4)


def test_text_recognition_is_six_kinds_and_not_the_mathematical_one():
    rows = [{"category": k, "correct": True} for k in (*RECOGNITION, "Handwritten Mathematical Expression Recognition")]
    scores = build("ocrbench", "x").score(rows)
    assert (scores["Text Recognition"].value, scores["final"].value) == (6, 7)


def test_an_ocrbench_answer_may_be_plain_text_or_missing(tmp_path):
    texts = [{"dataset": "d", "question": "?", "question_type": "t", "answer": a, "image": picture()} for a in ("red", "", None)]
    benchmark = build("ocrbench", write(tmp_path, "test", texts))
    rows = records(benchmark, ["it is red", "", "x"])  # an empty reference is part of every text
    assert [r["correct"] for r in rows] == [True, None, None]
    assert values(benchmark.score(rows)) == {"accuracy": 100, "final": 1, "t": 1, "without_answer": 2}


# Data sets that are not as they should be


@pytest.mark.parametrize("name", MAKERS)
def test_images_arrive_as_rgb(name, tmp_path):
    samples = build(name, MAKERS[name](tmp_path)).samples()
    assert {s.image().mode for s in samples} == {"RGB"}
    assert len({s.id for s in samples}) == len(samples)


def chart(image):
    return {"type": "human_test", "question": "?", "answer": "1", "image": image}


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
        ({"split": "tset"}, "; did you mean test?"),
        ({"path": "/nowhere/ChartQA"}, "benchmark.path=/nowhere/ChartQA is neither a folder nor a hub id"),
    ],
)
def test_a_wrong_split_or_path_is_one_line(changes, message, tmp_path):
    assert message in refusal(build("chartqa", chartqa(tmp_path), **changes).samples)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("chartqa", {"protocol": "llava"}, "benchmark.protocol=llava does not exist for chartqa; use lmms_eval"),
        ("mmstar", {"rule": "first"}, "benchmark.rule=first is not known"),
        ("vqav2", {"normalization": "never"}, "benchmark.normalization=never is not known; use always or unless_equal"),
        ("textvqa", {"ocr": "yes"}, "benchmark.ocr=yes is not known; use row, none or null"),
        ("mmbench", {"choice": "judge"}, "benchmark.choice=judge has no judge; add judge=openai, or use benchmark.choice=static"),
        ("mmbench", {"choice": "dice"}, "benchmark.choice=dice is not known; did you mean judge or static?"),
        ("mmbench", {"language": "de"}, "benchmark.language=de is not known; did you mean en?"),
    ],
)
def test_an_unknown_setting_is_one_line(name, changes, message):
    assert message in refusal(lambda: build(name, "x", **changes))


@pytest.mark.parametrize(
    ("name", "split", "row", "prediction"),
    [
        ("chartqa", "test", {"type": "human_test", "answer": 14}, "14.5"),
        ("realworldqa", "test", {"answer": 3}, "3"),
        ("vqav2", "validation", {"question_id": 1, "image_id": 1, "answers": [{"answer": 3}] * 10}, "three"),
    ],
)
def test_numbers_among_the_answers_are_texts(name, split, row, prediction, tmp_path):
    benchmark = build(name, write(tmp_path, split, [row | {"question": "?", "image": picture()}]))
    assert benchmark.correct(benchmark.samples()[0], prediction) == 1
