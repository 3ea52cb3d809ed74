"""Multiple choice and judged benchmarks: letters out of answers, circles, averages, marks; published vectors and values by hand."""

from __future__ import annotations

import json
import random
import zlib

import pytest
from hub import MAKERS, build, picture, write
from hub_choices import circle
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blink_exp.benchmarks.base import Score, spread
from blink_exp.benchmarks.captions import DIMENSIONS, compare, pairs, read_table, score_comparison
from blink_exp.benchmarks.letters import extract_letter, infer_choice
from blink_exp.benchmarks.mmbench import read_letter
from blink_exp.benchmarks.mmstar import MMStar, average
from blink_exp.benchmarks.mmvet import read_mark
from blink_exp.benchmarks.scienceqa import letter_of
from blink_exp.errors import UserError
from blink_exp.judge import UNPARSED, Verdict


class Script:
    """A judge that replies from a list, and remembers what it was asked."""

    model = "scripted"

    def __init__(self, *replies):
        self.replies, self.asked, self.tries = list(replies), [], None

    def verdicts(self, requests, parse, tries=2, advance=None):
        self.tries = tries
        out = []
        for request in requests:
            self.asked.append(request())
            reply = self.replies.pop(0)
            value = None if reply is None else parse(reply)
            out.append(Verdict(None, None, "status 500") if reply is None else Verdict(value, reply, "" if value is not None else UNPARSED))
        return out


def records(benchmark, predictions):
    """As an evaluation makes them. ``predictions``: by sample number, or a function of the sample."""
    said = predictions if callable(predictions) else iter(predictions)
    out = []
    for s in benchmark.samples():
        prediction = said(s) if callable(said) else next(said)
        base = {"id": s.id, "image_id": s.image_id, "category": s.category, "question": benchmark.prompt(s), "answer": s.answer}
        out.append(base | {"prediction": prediction, "correct": benchmark.correct(s, prediction), "fields": s.fields})
    return json.loads(json.dumps(out))  # scores must be computable from what a file holds


# Letters


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[("A", "A"), ("(C)", "C"), ("The answer is D.", "D"), ("A dog", "A"), ("b", None), ("C: cat", "C"), ("I think B or C", "C")],
        *[("D) yes", "D"), ("Both A and B", "B"), ("None", None), ("", None), ("   ", None)],
        # start before end; end before a phrase; a phrase before (X); (X) before X.; the last of equals; inside a word only as a last resort
        *[
            ("A, not B", "A"),
            ("The answer is A, not B", "B"),
            ("The answer is A of (B)!x", "B"),
            ("x the answer is A y, (B) z w", "B"),
            ("x the answer is A. the correct answer is B, A x", "A"),
        ],
        *[("it (A) or B. no", "A"), ("it B. or C: no", "B"), ("it B: or C) no", "B"), ("it (A) or (B) no", "B"), ("sayDog", "D")],
        *[('"C".', "C"), ("Dog", "D"), ("I choose C of all", "C"), ("答案是B吧", "B")],
    ],
)
def test_general_letter_extraction(text, letter):
    assert extract_letter(text) == letter


def test_only_offered_letters_are_found():
    assert extract_letter("E") is None
    assert extract_letter("E", "ABCDE") == "E"
    assert extract_letter("Both A and B", "A") == "A"


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
        ],
    ],
)
def test_mmbench_choice_inference(text, letter):
    assert infer_choice(text, OPTIONS) == letter


# MMBench


def test_mmbench_is_circular(tmp_path):
    """Question 0 all right: counted once. Question 1 with one rotation of two wrong: wrong, though half of its rows are right."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    found = records(benchmark, lambda s: s.answer if s.fields["index"] != 1_000_252 else "A")
    assert [r["correct"] for r in found] == [True, True, True, True, True, False]
    scores = benchmark.score(found)
    assert (scores["accuracy"].value, scores["accuracy"].samples) == (50, 2)
    assert (scores["attribute_recognition"].value, scores["spatial_relationship"].value) == (100, 0)
    assert (scores["l2_finegrained_perception (instance-level)"].value, scores["l2_relation_reasoning"].value) == (100, 0)
    assert scores["chosen_by_rules"] == Score(6, 6)
    assert "left_out" not in scores
    assert benchmark.submit(found, tmp_path) == []


def test_the_rotations_of_the_fixture_are_rotations():
    rows = circle(7, ["a", "b", "c"], 1, "?", None)
    assert [r[r["answer"]] for r in rows] == ["b"] * 3
    assert [r["A"] for r in rows] == ["a", "b", "c"]
    assert [r["D"] for r in rows] == ["nan"] * 3


def test_mmbench_leaves_open_questions_out_and_counts_them(tmp_path):
    """Without its first rotation (a broken image) a question has no row in the count of questions."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    found = records(benchmark, lambda s: s.answer)
    scores = benchmark.score([r for r in found if r["fields"]["index"] != 241])
    assert scores["accuracy"] == Score(100, 1, 0)
    assert scores["left_out"] == Score(1, 2)


def test_mmbench_static_reads_what_the_rules_leave_open(tmp_path):
    """Two letters leave the rules undecided, and the general extractor takes the last. Where nobody finds a letter the answer is wrong."""
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    sample = benchmark.samples()[0]  # circle, square, star, cross: C
    assert benchmark.correct(sample, "Either A or C") is True
    assert benchmark.correct(sample, "cannot say") is False
    assert benchmark.correct(sample, "a STAR I believe") is True
    found = records(benchmark, lambda s: "cannot say" if s.fields["index"] == 241 else f"not E but {s.answer}")
    by_whom = [r["chosen_by"] for r in benchmark.judged(found)]
    assert by_whom == ["nobody", "extractor", "extractor", "extractor", "extractor", "extractor"]


def test_mmbench_judge_is_asked_only_where_a_question_is_not_lost(tmp_path):
    """Question 0 has a rotation that is wrong by the rules: its undecided rotation costs no request. Question 1 needs two."""
    judge = Script("(B).", "A")
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path), judge=judge, choice="judge")
    wrong = {241: "A", 1_000_241: "no idea", 252: "none given", 1_000_252: "no idea"}
    found = records(benchmark, lambda s: wrong.get(s.fields["index"], s.answer))
    assert [r["correct"] for r in found] == [False, None, True, True, None, None]
    scores = benchmark.score(found)
    assert len(judge.asked) == 2
    assert judge.tries == 3
    asked = judge.asked[0][0]["content"]
    assert "Where is it?" in asked and "A. left\nB. right" in asked and "none given" in asked
    assert scores["accuracy"].value == 0  # 252 means A (left), the judge said B
    assert scores["chosen_by_judge"] == Score(2, 6)
    assert scores["chosen_by_nobody"] == Score(1, 6)


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
    assert scores["left_out"] == Score(1, 2)


def test_mmbench_prompts_follow_hint_language_and_protocol(tmp_path):
    """Question 1 has the string "nan" for a hint and two options. lmms-eval prints the former, in Chinese only."""
    en = build("mmbench", MAKERS["mmbench"](tmp_path / "en"), protocol="lmms_eval")
    cn = build("mmbench_cn", MAKERS["mmbench_cn"](tmp_path / "cn"), protocol="lmms_eval")
    llava = build("mmbench_cn", tmp_path / "cn")
    letter = "Answer with the option's letter from the given choices directly."
    assert en.prompt(en.samples()[4]) == f"Where is it? There are several options:\nA. left\nB. right\n\n{letter}"
    assert cn.prompt(cn.samples()[4]).startswith("nan 它在哪里？ There are several options:\nA. left")
    assert llava.prompt(llava.samples()[4]) == "它在哪里？\nA. left\nB. right\n请直接回答选项字母。"
    assert [b.max_new_tokens for b in (en, cn, llava)] == [1024, 256, 1024]
    assert (cn.name, en.name) == ("mmbench_cn", "mmbench")


def test_mmbench_limits_and_shards_keep_circles_whole(tmp_path):
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path))
    kept = spread(benchmark.samples(), 3)
    assert {s.fields["index"] % 1_000_000 for s in kept} == {241}
    assert len(kept) == 4


def test_mmbench_test_split_is_not_scored_but_submitted(tmp_path):
    """A prediction like a formula must stay a text, and control characters cannot stand in a workbook."""
    openpyxl = pytest.importorskip("openpyxl")
    benchmark = build("mmbench", MAKERS["mmbench"](tmp_path), split="test")
    found = records(benchmark, ["=1+1", "B", "C\x07", "D", "A", "B"])
    assert all(r["correct"] is None for r in found)
    assert benchmark.score(found) == {}
    random.Random(0).shuffle(found)
    (file,) = benchmark.submit(found, tmp_path / "out")
    assert file.name == "mmbench_test_submission.xlsx"
    rows = list(openpyxl.load_workbook(file).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction")
    assert rows[1] == (241, "What shape is it?", "circle", "square", "star", "cross", "=1+1")
    assert rows[2][:6] == (252, "Where is it?", "left", "right", None, None)
    assert [row[0] for row in rows[1:]] == [241, 252, 1000241, 1000252, 2000241, 3000241]
    assert openpyxl.load_workbook(file).active["G2"].data_type == "s"
    (part,) = benchmark.submit(found[1:], tmp_path / "out")
    assert part.name == "mmbench_test_partial_1_missing.xlsx"


def test_mmbench_refuses_what_it_cannot_do(tmp_path):
    folder = MAKERS["mmbench"](tmp_path)
    for change, word in (({"choice": "judge"}, "judge=openai"), ({"choice": "dice"}, "static"), ({"language": "de"}, "en")):
        with pytest.raises(Exception, match=word) as error:
            build("mmbench", folder, **change)
        assert "\n" not in str(error.value.__cause__ or error.value)


@pytest.mark.parametrize(
    ("reply", "letter"), [("B", "B"), (" B.\n", "B"), ("(B)", "B"), ("E", "E"), ("b", None), ("B or C", None), ("", None)]
)
def test_a_judge_s_letter_is_read_strictly(reply, letter):
    assert read_letter(reply) == letter


# ScienceQA


@pytest.mark.parametrize(
    ("prediction", "lmms_eval", "llava"),
    [
        *[("B", True, True), ("b", True, False), ("B.", True, False), ("B. y", True, True), ("(B)", False, False)],
        *[("The answer is B", False, False), ("The answer is B.", False, True), ("y", False, False), ("B y", False, False)],
        *[("The answer is B. The answer is B.", False, False), ("", False, False), ("AB", False, False), ("b. y", False, False)],
    ],
)
def test_scienceqa_letters(tmp_path, prediction, lmms_eval, llava):
    folder = MAKERS["scienceqa"](tmp_path)
    for protocol, right in (("lmms_eval", lmms_eval), ("llava", llava)):
        benchmark = build("scienceqa", folder, protocol=protocol)
        assert benchmark.samples()[0].answer == "B"
        assert benchmark.correct(benchmark.samples()[0], prediction) is right
    assert letter_of("C. x") == "C"


def test_scienceqa_context_is_left_out_where_there_is_none(tmp_path):
    benchmark = build("scienceqa", MAKERS["scienceqa"](tmp_path))
    letter = "Answer with the option's letter from the given choices directly."
    assert [benchmark.prompt(s) for s in benchmark.samples()] == [
        f"Context: Look at it.\nWhich is hot?\nA. ice\nB. steam\nC. snow\n{letter}",
        f"Which is north?\nA. up\nB. down\n{letter}",
    ]
    scores = benchmark.score(records(benchmark, ["B", "B"]))
    assert [scores[k].value for k in ("accuracy", "natural science", "social science")] == [50, 100, 0]


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


def test_mmstar_has_one_protocol(tmp_path):
    with pytest.raises(Exception, match="does not exist for mmstar; use lmms_eval"):
        build("mmstar", tmp_path, protocol="llava")


# MM-Vet


def test_mmvet_marks_by_capability_and_set(tmp_path):
    judge = Script("0.5", "1.0", "0")
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path), judge=judge)
    found = records(benchmark, ["-1", "a | cat\nit is", "go"])
    scores = benchmark.score(found)
    wanted = {"total": 50, "rec": 100, "ocr": 25, "math": 25, "ocr+math": 25, "unjudged": 0}
    assert {name: score.value for name, score in scores.items()} == pytest.approx(wanted)
    asked = judge.asked[1][0]["content"]
    assert asked.endswith("| Who / is this? | a cat <OR> a kitten | a / cat it is |")


def test_mmvet_verdicts_stay_in_records_and_score_again_without_a_judge(tmp_path):
    folder = MAKERS["mmvet"](tmp_path)
    benchmark = build("mmvet", folder, judge=Script("0.5", "1.0", None))
    kept = json.loads(json.dumps(benchmark.judged(records(benchmark, ["x"] * 3))))
    assert [r["correct"] for r in kept] == [0.5, 1.0, None]
    again = build("mmvet", folder).score([r | {"correct": None} for r in kept])
    assert again["total"].value == 75
    assert again["unjudged"] == Score(1, 3)


def test_mmvet_nonsense_is_no_zero(tmp_path):
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path), judge=Script("1.0", "I would say 0.3", "1.0"))
    scores = benchmark.score(records(benchmark, ["x"] * 3))
    assert scores["total"] == Score(100, 2, 0)
    assert scores["unjudged"] == Score(1, 3)
    assert "rec" not in scores


@pytest.mark.parametrize(
    ("reply", "mark"),
    [("0.5", 0.5), (" 1.0\n", 1.0), ("0", 0.0), ("1", 1.0), ("1.5", None), ("-0.5", None), ("0.5.", None), ("mark: 0.5", None), ("", None)],
)
def test_a_mark_is_read_strictly(reply, mark):
    assert read_mark(reply) == mark


def test_mmvet_writes_the_evaluator_s_file_with_and_without_a_judge(tmp_path):
    benchmark = build("mmvet", MAKERS["mmvet"](tmp_path))
    found = records(benchmark, ["α", "b", "c"])
    assert benchmark.score(found) == {}
    (file,) = benchmark.submit(found[::-1], tmp_path)
    assert list(json.loads(file.read_text(encoding="utf-8")).items()) == [("v1_0", "α"), ("v1_1", "b"), ("v1_2", "c")]
    assert file.name == "mmvet_test_submission.json"
    assert benchmark.submit(found[:2], tmp_path)[0].name == "mmvet_test_partial_1_missing.json"
    with pytest.raises(UserError, match="mmvet/test/v1_0 is answered twice"):
        benchmark.submit([*found, found[0]], tmp_path)
    odd = [found[0] | {"id": "mmvet/test/v1_7"}]
    with pytest.raises(UserError, match="mmvet/test/v1_7 is not a question of mmvet/test"):
        benchmark.submit(odd, tmp_path)
    rows = [{"question_id": "7", "question": "?", "answer": "a", "capability": "rec", "image": picture()}]
    with pytest.raises(UserError, match="question_id=7 is not MM-Vet's"):
        build("mmvet", write(tmp_path / "odd", "test", rows)).submit([], tmp_path)


def test_mmvet_protocols_differ_in_the_prompt(tmp_path):
    folder = MAKERS["mmvet"](tmp_path)
    plain, steps = (build("mmvet", folder, protocol=p) for p in ("llava", "lmms_eval"))
    assert plain.prompt(plain.samples()[0]) == "What is x?"
    assert steps.prompt(steps.samples()[0]).endswith("question: \n\nWhat is x?")


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

    found = compare(run(["good"] * 40), run(["bad"] * 40), Fair(), IMAGES)
    assert {r["A"] for r in found} == {"ours", "against"}
    scores = score_comparison(json.loads(json.dumps(found)))
    wanted = {"ours_object_coverage": 5, "ours_object_correctness": 4, "ours_object_average": 4.5, "ours_global_average": 5}
    assert {k: scores[k].value for k in wanted} == wanted
    assert (scores["against_object_average"].value, scores["against_global_average"].value) == (1.5, 1)
    assert scores["unparsed"] == scores["unjudged"] == Score(0, 40)
    assert found[0]["judge"]["text"].startswith("Here it is")  # kept raw


def test_caption_positions_depend_on_seed_and_image_alone():
    one, other = run("abcdefghij"), run("ABCDEFGHIJ")
    sides = {r["id"]: r["A"] for r in pairs(one, other, 0)}
    assert {r["id"]: r["A"] for r in pairs(one[::-1][:5], other[5:], 0)} == {k: v for k, v in sides.items() if k >= one[5]["id"]}
    assert sides != {r["id"]: r["A"] for r in pairs(one, other, 1)}


def test_caption_failures_are_counted_apart_and_never_averaged():
    replies = [table(*[(3, 3)] * 4), "A is better", None, table((6, 1), (1, 1), (1, 1), (1, 1))]
    scores = score_comparison(compare(run("abcd"), run("efgh"), Script(*replies), IMAGES))
    assert scores["ours_global_average"] == Score(3, 1, 0)
    assert scores["unparsed"] == Score(2, 4)
    assert scores["unjudged"] == Score(1, 4)


def test_caption_tables_are_read_row_by_row():
    assert read_table(table((1, 2), (3, 4), (5, 1), (2, 3)).replace("object_coverage", "**object_coverage**")) == {
        "object_coverage": [1, 2],
        "object_correctness": [3, 4],
        "global_coverage": [5, 1],
        "global_correctness": [2, 3],
    }
    assert read_table(table(*[(1, 1)] * 4) + "\n" + table(*[(2, 2)] * 4)) is None  # two tables: which one?
    assert read_table(table(*[(1, 1)] * 4).replace("| global_correctness | 1 |", "| global_correctness | 1.5 |")) is None


def test_captions_of_other_images_are_refused_and_pairs_are_made_without_a_judge(tmp_path):
    benchmark = build("captions", MAKERS["captions"](tmp_path))
    ours = records(benchmark, lambda s: "a")
    assert benchmark.score(ours) == {}
    found = benchmark.compare(ours, ours)
    assert len(found) == 4 and benchmark.score(found) == {}
    with pytest.raises(UserError, match="1 images are captioned in one of the two files only"):
        benchmark.compare(ours, ours[1:])
    with pytest.raises(UserError, match="of other images, first captions/val/0004"):
        benchmark.compare(run("abcde"), run("abcde"))


# All


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """{name: (benchmark, records with some right and some wrong answers)}."""
    out = {}
    for name in ("mmbench", "mmbench_cn", "scienceqa", "mmstar", "mmvet"):
        benchmark = build(name, MAKERS[name](tmp_path_factory.mktemp(name)))
        found = records(benchmark, lambda s: s.answer if zlib.crc32(s.id.encode()) % 3 else "A")
        marks = [{"judge": {"value": value}} for value in (0.5, None, 1.0)]
        out[name] = benchmark, [r | mark for r, mark in zip(found, marks, strict=True)] if name == "mmvet" else found
    return out


@given(
    rng=st.randoms(use_true_random=False),
    cut=st.integers(0, 6),
    name=st.sampled_from(["mmbench", "mmbench_cn", "scienceqa", "mmstar", "mmvet"]),
)
def test_order_and_shards_do_not_change_scores(answered, rng, cut, name):
    benchmark, found = answered[name]
    mixed = found[cut:] + found[:cut]
    rng.shuffle(mixed)
    assert flat(benchmark.score(mixed)) == pytest.approx(flat(benchmark.score(found)))


def flat(scores):
    return {f"{name}/{k}": v for name, s in scores.items() for k, v in (("value", s.value), ("n", s.samples), ("stderr", s.stderr or 0.0))}


def test_rows_without_an_answer_are_predicted_and_not_scored(tmp_path):
    """An empty cell, and a benchmark without any answer."""
    rows = [{"question": "?", "choices": ["a", "b"], "answer": answer, "hint": "", "image": picture()} for answer in (1, None)]
    some = build("scienceqa", write(tmp_path / "one", "test", rows, "ScienceQA-IMG"))
    found = records(some, ["B", "B"])
    assert [r["correct"] for r in found] == [True, None]
    assert some.score(found)["accuracy"] == Score(100, 1, 0)
    none = build("scienceqa", write(tmp_path / "none", "test", rows[1:], "ScienceQA-IMG"))
    with pytest.raises(UserError, match="has no answers"):
        none.samples()
