"""What a judge marks: MM-Vet by capability, captions of two runs side by side; what it left unmarked is counted and no zero."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from support.hub import MAKERS, build, picture, write
from support.hub_choices import Script, records

from blink_exp.benchmarks.base import Count, Score
from blink_exp.benchmarks.captions import DIMENSIONS, compare, pairs, read_table, score_comparison
from blink_exp.benchmarks.mmvet import read_mark
from blink_exp.errors import UserError

# MM-Vet


def test_mmvet_marks_by_capability_and_set(tmp_path):
    judge = Script("0.5", "1.0", "0")
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path), judge=judge)
    entries = records(benchmark, ["-1", "a | cat\nit is", "go"])
    scores = benchmark.score(entries)
    wanted = {"total": 50, "rec": 100, "ocr": 25, "math": 25, "ocr+math": 25, "only_rec": 100, "unjudged": 0}
    assert {name: score.value for name, score in scores.items()} == pytest.approx(wanted)
    asked = judge.asked[1][0]["content"]
    assert asked.endswith("| Who / is this? | a cat <OR> a kitten | a / cat it is |")


def test_mmvet_s_sets_of_one_are_apart_from_the_capability(tmp_path):
    """rec is needed by three questions and is the only need of one; the order of a set does not matter."""
    rows = [("rec", "1.0"), ("rec,ocr", "0.5"), ("ocr,rec", "0"), ("ocr", "0.2")]
    rows = [
        (kind, mark, {"question_id": f"v1_{i}", "question": "?", "answer": "a", "capability": kind}) for i, (kind, mark) in enumerate(rows)
    ]
    folder = write(tmp_path, "test", [row | {"image": picture()} for _, _, row in rows])
    benchmark = build("mmvet", folder, judge=Script(*(mark for _, mark, _ in rows)))
    scores = {name: score.value for name, score in benchmark.score(records(benchmark, ["x"] * 4)).items()}
    wanted = {"total": 42.5, "rec": 50, "ocr": 70 / 3, "only_rec": 100, "only_ocr": 20, "rec+ocr": 25, "unjudged": 0}
    assert scores == pytest.approx(wanted)


def test_mmvet_verdicts_stay_in_records_and_score_again_without_a_judge(tmp_path):
    folder = MAKERS["mmvet"](tmp_path)
    benchmark = build("mmvet", folder, judge=Script("0.5", "1.0", None))
    judged = json.loads(json.dumps(benchmark.judged(records(benchmark, ["x"] * 3))))
    assert [r["correct"] for r in judged] == [0.5, 1.0, None]
    again = build("mmvet", folder).score([r | {"correct": None} for r in judged])
    assert again["total"].value == 75
    assert again["unjudged"] == Count(1, 3)


def test_mmvet_nonsense_is_no_zero(tmp_path):
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path), judge=Script("1.0", "I would say 0.3", "1.0"))
    scores = benchmark.score(records(benchmark, ["x"] * 3))
    assert scores["total"] == Score(100, 2, 0)
    assert scores["unjudged"] == Count(1, 3)
    assert "rec" not in scores


@pytest.mark.parametrize(
    ("reply", "mark"),
    [("0.5", 0.5), (" 1.0\n", 1.0), ("0", 0.0), ("1", 1.0), ("1.5", None), ("-0.5", None), ("0.5.", None), ("mark: 0.5", None), ("", None)],
)
def test_a_mark_is_read_strictly(reply, mark):
    assert read_mark(reply) == mark


def test_mmvet_writes_the_evaluator_s_file_with_and_without_a_judge(tmp_path):
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path))
    entries = records(benchmark, ["α", "b", "c"])
    assert benchmark.score(entries) == {}
    (file,) = benchmark.submit(entries[::-1], tmp_path)
    assert list(json.loads(file.read_text(encoding="utf-8")).items()) == [("v1_0", "α"), ("v1_1", "b"), ("v1_2", "c")]
    assert file.name == "mmvet_test_submission.json"
    assert benchmark.submit(entries[:2], tmp_path)[0].name == "mmvet_test_partial_1_missing.json"
    rows = [{"question_id": "7", "question": "?", "answer": "a", "capability": "rec", "image": picture()}]
    with pytest.raises(UserError, match="question_id=7 is not MM-Vet's"):
        build("mmvet", write(tmp_path / "odd", "test", rows)).submit([], tmp_path)


# Captions


def table(*marks):
    rows = "\n".join(f"| {d} | {a} | {b} | because |" for d, (a, b) in zip(DIMENSIONS, marks, strict=True))
    return f"Here it is:\n| respect | A | B | reason |\n|---|---|---|---|\n{rows}"


def run(texts):
    return [{"id": f"captions/val/{i:04d}", "image_id": f"captions/val/{i:04d}", "prediction": text} for i, text in enumerate(texts)]


IMAGES = {f"captions/val/{i:04d}": lambda: Image.new("RGB", (4, 4)) for i in range(40)}


def test_captions_are_shuffled_and_marks_given_back():
    """The judge gives whatever says "good" 5s and 4s, wherever it stands: ours must come out at 5 and 4 on every image."""

    class Fair(Script):
        def verdicts(self, requests, parse, tries=2, advance=None):
            for request in requests:
                text = request()[0]["content"][0]["text"]
                first = text.index("good") < text.index("bad")
                marks = [(5, 1), (4, 2), (5, 1), (5, 1)]
                self.replies.append(table(*(marks if first else [pair[::-1] for pair in marks])))
            return super().verdicts(requests, parse, tries)

    comparison = compare(run(["good"] * 40), run(["bad"] * 40), Fair(), IMAGES)
    assert {r["A"] for r in comparison} == {"ours", "against"}
    scores = score_comparison(json.loads(json.dumps(comparison)))
    wanted = {"ours_object_coverage": 5, "ours_object_correctness": 4, "ours_object_average": 4.5, "ours_global_average": 5}
    assert {k: scores[k].value for k in wanted} == wanted
    assert (scores["against_object_average"].value, scores["against_global_average"].value) == (1.5, 1)
    assert scores["unparsed"] == scores["unjudged"] == Count(0, 40)
    assert comparison[0]["judge"]["text"].startswith("Here it is")  # kept raw


def test_caption_positions_depend_on_seed_and_image_alone():
    one, other = run("abcdefghij"), run("ABCDEFGHIJ")
    sides = {r["id"]: r["A"] for r in pairs(one, other, 0)}
    assert {r["id"]: r["A"] for r in pairs(one[::-1][:5], other[5:], 0)} == {k: v for k, v in sides.items() if k >= one[5]["id"]}
    assert sides != {r["id"]: r["A"] for r in pairs(one, other, 1)}


def test_caption_failures_are_counted_apart_and_never_averaged():
    replies = [table(*[(3, 3)] * 4), "A is better", None, table((6, 1), (1, 1), (1, 1), (1, 1))]
    scores = score_comparison(compare(run("abcd"), run("efgh"), Script(*replies), IMAGES))
    assert scores["ours_global_average"] == Score(3, 1, 0)
    assert scores["unparsed"] == Count(2, 4)
    assert scores["unjudged"] == Count(1, 4)


def test_caption_tables_are_read_row_by_row():
    assert read_table(table((1, 2), (3, 4), (5, 1), (2, 3)).replace("object_coverage", "**object_coverage**")) == {
        "object_coverage": [1, 2],
        "object_correctness": [3, 4],
        "global_coverage": [5, 1],
        "global_correctness": [2, 3],
    }
    assert read_table(table(*[(1, 1)] * 4) + "\n" + table(*[(2, 2)] * 4)) is None  # two tables: which one?
    assert read_table(table(*[(1, 1)] * 4).replace("| global_correctness | 1 |", "| global_correctness | 1.5 |")) is None


def test_the_judge_of_captions_is_asked_in_the_paper_s_words():
    """HERO's Figure 7, whose criteria of coverage leave correctness out and reward quantity."""
    judge = Script(table(*[(1, 1)] * 4))
    compare(run(["{one}"]), run(["two"]), judge, IMAGES)
    text, image = judge.asked[0][0]["content"]
    assert image["type"] == "image_url" and "{one}" in text["text"]
    for words in (
        "rate the following four aspects on a scale from 1 (lowest) to 5 (highest)",
        "(Ignore whether the details are correct; focus on their quantity and presence.)",
        "Of the object-level details mentioned, how many are actually correct and faithfully reflect the objects present in the image?",
        "(Ignore correctness; focus on the quantity and richness.)",
        "how many are actually correct and faithfully reflect the overall scene in the image?",
    ):
        assert words in text["text"]
    assert "length" not in text["text"]


def test_captions_of_other_images_are_refused_and_pairs_are_made_without_a_judge(tmp_path):
    benchmark = build("captions", MAKERS["captions"](tmp_path))
    ours = records(benchmark, lambda s: "a")
    assert benchmark.score(ours) == {}
    comparison = benchmark.compare(ours, ours)
    assert len(comparison) == 4 and benchmark.score(comparison) == {}
    with pytest.raises(UserError, match="1 images are captioned in one of the two files only"):
        benchmark.compare(ours, ours[1:])
    with pytest.raises(UserError, match="of other images, first captions/val/0004"):
        benchmark.compare(run("abcde"), run("abcde"))
