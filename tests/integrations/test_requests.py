"""Questions of a foreign loop answered by this project's models: settings, one image a question, order and batches."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from support.refusals import refusal
from support.stand_ins import BLUE, RED, Calls, attach, stand_in

from blink_exp.evaluation import answering, evaluator
from blink_exp.integrations import requests
from blink_exp.integrations.requests import Request
from blink_exp.settings.compose import composed

# Settings


def test_words_that_lmms_eval_turned_into_python_become_hydra_s_again():
    settings = {"method": "blink", "retention_ratio": 0.25, "layer": None, "method.amplify": True, "layers.indices": "[12,13]"}
    assert requests.overrides(settings) == [
        *("method=blink", "retention_ratio=0.25", "layer=null", "method.amplify=true", "layers.indices=[12,13]")
    ]


def test_settings_mean_what_they_mean_to_evaluate_py():
    settings = {"method": "hero", "model": "scale_llava_next", "thresholds": "high_exp", "hero_low.layers": "[4,5]", "seed": 3}
    words = ["method=hero", "model=scale_llava_next", "thresholds=high_exp", "hero_low.layers=[4,5]", "seed=3"]
    wanted = composed("evaluate", [*words, "batch_size=4", "model.device=cuda:1"])
    cfg = requests.configure(settings, "4", "cuda:1")
    assert cfg == wanted
    assert cfg.method["low"] == [4, 5]  # the comma did not end the word


@pytest.mark.parametrize(
    ("settings", "batch_size", "device", "message"),
    [
        ({"method": "bilnk"}, 1, None, "method=bilnk is not a preset; did you mean blink"),
        ({"metod": "blink"}, 1, None, "metod is not a setting; did you mean method"),
        ({"thresholds.tau_epx": 0.5}, 1, None, "tau_epx"),
        ({"benchmark": "mme"}, 1, None, "benchmark=mme is not a model argument; choose tasks with --tasks"),
        ({"benchmark.images": 3}, 1, None, "--tasks"),
        ({"pretrained": "llava-hf/llava-1.5-7b-hf"}, 1, None, "model=llava_1_5_7b"),
        ({}, "auto", None, "batch_size=auto is not a whole number"),
        ({}, "-1", None, "batch_size=-1"),
        ({"model.device": "cpu"}, 1, "cuda", "model.device=cpu and --device cuda contradict"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(settings, batch_size, device, message):
    assert message in refusal(lambda: requests.configure(settings, batch_size, device))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "folder", "model.path": "no/such/folder", "model.device": "cpu"}, "no/such/folder"),
        ({"layer": 99}, "99"),
        ({"method": "two_views", "method.region": "wrong"}, "method=two_views shows a region by the annotation, and a harness"),
    ],
)
def test_a_model_or_method_that_cannot_be_built_is_one_line(settings, message):
    assert message in refusal(lambda: requests.build(requests.configure(settings)))


def test_each_process_takes_its_own_gpu_only_where_several_share_the_work():
    two = {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert requests.process_device("cuda", two) == "cuda:1"
    assert requests.process_device("cuda", {}) == "cuda"
    assert requests.process_device("cuda", {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == "cuda"
    assert requests.process_device("cuda:0", two) == "cuda:0"
    assert requests.process_device("cpu", two) == "cpu"


# Generation settings


def test_until():
    assert requests.stop_at(None) == requests.stop_at([]) == ()
    assert requests.stop_at(["\n\n"]) == ()  # nobody asked for it
    assert requests.stop_at(["\n\n", "Q:"]) == ("\n\n", "Q:")  # somebody did
    assert requests.stop_at("ASSISTANT:") == ("ASSISTANT:",)
    assert requests.stop_at(["", "."]) == (".",)
    assert requests.cut("a cat. Q: more", ("Q:", ".")) == "a cat"
    assert requests.cut("a cat \n\nand more", ("Q:", "\n\n")) == "a cat"
    assert requests.cut("one\n\ntwo", ()) == "one\n\ntwo"


def test_new_tokens_and_what_is_ignored():
    assert requests.new_tokens({"max_new_tokens": 16}, "mme") == 16
    assert requests.new_tokens({}, "mme") == 1024
    for bad in (0, -1, "many", 2.5, True, None):
        message = refusal(lambda bad=bad: requests.new_tokens({"max_new_tokens": bad}, "mme"))
        assert f"max_new_tokens={bad} of mme" in message
    assert requests.ignored({"do_sample": False, "temperature": 0, "num_beams": 1, "top_p": 0.9, "until": []}) == []
    assert requests.ignored({"do_sample": True, "temperature": 0.7, "num_beams": 5}) == [
        *("do_sample=True", "temperature=0.7", "num_beams=5")
    ]


# What a question shows


def shows(visuals, text="?", name="t/test/3"):
    return Request(name, text, lambda: visuals)


def test_the_one_image_of_a_question():
    assert requests.image_of(shows([RED])) is RED
    assert requests.image_of(shows([[RED]])) is RED
    grey = requests.image_of(shows([Image.new("L", (2, 3), 7)]))
    assert (grey.mode, grey.size, grey.getpixel((0, 0))) == ("RGB", (2, 3), (7, 7, 7))


@pytest.mark.parametrize(
    ("visuals", "message"),
    [
        ([], "t/test/3 shows 0 images"),
        (None, "t/test/3 shows 0 images"),
        ([RED, BLUE], "t/test/3 shows 2 images"),
        ([[RED], [BLUE]], "t/test/3 shows 2 images"),
        (["film.mp4"], "t/test/3 shows a str"),
        ([{"array": [0.0], "sampling_rate": 16000}], "t/test/3 shows a dict"),
    ],
)
def test_anything_but_one_image_is_refused_and_never_answered_with_nothing(visuals, message):
    assert re.search(f"{message}.*docs/lmms_eval.md", refusal(lambda: requests.image_of(shows(visuals))))


@pytest.mark.parametrize(
    "error",
    [
        OSError("image file is truncated\n(3 bytes not processed)"),
        Image.DecompressionBombError("too many pixels"),
        SyntaxError("not a PNG"),
        ValueError("bad mode"),
    ],
)
def test_an_image_that_the_harness_cannot_open_names_its_document(error):
    def broken():
        raise error

    message = refusal(lambda: requests.image_of(Request("t/test/3", "?", broken)))
    assert f"t/test/3 cannot be read ({' '.join(str(error).split())})" in message


@pytest.mark.parametrize("error", [KeyError("tag"), EOFError("no more"), IndexError("index out of range")])
def test_a_decoder_that_fails_late_names_its_document(error, monkeypatch):
    def load(_):
        raise error

    late = Image.new("L", (2, 3))
    monkeypatch.setattr(late, "load", lambda: load(late))
    assert "t/test/3 cannot be read" in refusal(lambda: requests.image_of(shows([late])))


def test_the_placeholder_leaves_the_text_and_two_are_refused():
    assert requests.text_of(shows([RED], "<image>\nWhat is it?"), "<image>") == "What is it?"
    assert requests.text_of(shows([RED], " What is it?\n"), "<image>") == " What is it?\n"  # without one, not a letter is touched
    message = refusal(lambda: requests.text_of(shows([RED], "<image> or <image>?"), "<image>"))
    assert "t/test/3 names 2 images" in message


# Order and batches


def test_batches_share_a_limit_and_keep_the_order():
    assert requests.batches([4, 16, 4, 4, 16], 2) == [[0, 2], [3], [1, 4]]
    assert requests.batches([4, 4, 4], 1) == [[0], [1], [2]]
    assert requests.batches([], 8) == []


@pytest.fixture
def calls(monkeypatch) -> Calls:
    monkeypatch.setattr(requests, "answers", recorder := Calls())
    monkeypatch.setattr(requests, "attach", attach)
    return recorder


def test_answers_come_back_in_order_with_each_question_s_own_image_limit_and_end(calls):
    questions = [
        Request("t/test/0", "a", lambda: [RED], 4),
        Request("t/test/1", "b", lambda: [BLUE], 49152, ("STOP",)),
        Request("t/test/2", "<image>\nc", lambda: [BLUE], 4, ("STOP",)),
        Request("t/test/3", "d", lambda: [RED.copy()], 4),
    ]
    advanced: list[int] = []
    answers = requests.answer(*stand_in(), questions, 2, advanced.append)
    assert [a.text for a in answers] == ["a 255 4 STOP more", "b 0 100", "c 0 4", "d 255 4 STOP more"]  # 100: the LLM's positions
    assert [a.visual_tokens for a in answers] == [10] * 4
    assert [ids for ids, *_ in calls.calls] == [["t/test/0", "t/test/2"], ["t/test/3"], ["t/test/1"]]
    assert advanced == [2, 1, 1]


def test_equal_images_are_shown_to_the_vision_tower_once_and_others_never_mixed_up(calls):
    flat = Image.new("RGB", (8, 2), "red")  # as many bytes as RED, and the same ones
    requests.answer(*stand_in(), [Request(str(i), "?", lambda i=i: [i]) for i in (RED, RED.copy(), BLUE, flat)], 4)
    (_, images, asked, _), *_ = calls.calls
    keys = [one.image for one in asked]
    assert keys[0] == keys[1]
    assert len(images) == len(set(keys)) == 3


@pytest.fixture
def decided(monkeypatch) -> list[list]:
    """What each question's policy decides from now on, layer by layer, in the order in which they run."""
    real, decisions = answering.answers, []

    def answers(backbone, method, attached, *rest):
        out = real(backbone, method, attached, *rest)
        for row in range(len(attached.samples)):
            decisions.append([(r.scan.layer, type(r.decision).__name__.lower(), r.visual_tokens) for r in attached.records if r.row == row])
        return out

    monkeypatch.setattr(requests, "answers", answers)
    return decisions


@pytest.mark.slow
@pytest.mark.parametrize("region", ["most_salient", "random"])
def test_a_second_view_is_that_of_evaluate(region):
    """What is drawn is drawn by the question's id."""
    from blink_exp.benchmarks.mosaic_open import MosaicOpen

    backbone, method = requests.build(requests.configure({"method": "crop", "method.region": region, "model.device": "cpu"}))
    benchmark = MosaicOpen(images=6)
    samples = benchmark.samples()[::3]
    wanted, _ = evaluator.evaluate(backbone, method, benchmark, 2, samples=samples)
    backbone.forget()
    questions = [Request(s.id, benchmark.prompt(s), lambda s=s: [s.image()], benchmark.max_new_tokens) for s in samples]
    answers = requests.answer(backbone, method, questions[::-1], 3)[::-1]
    assert [a.text for a in answers] == [r["prediction"] for r in wanted] and {a.visual_tokens for a in answers} == {144}
    assert len({r["second_view"]["region"] for r in wanted}) > 2


@pytest.mark.slow
def test_answers_are_those_of_evaluate(scale, decided):
    """Whatever the batches. A random scorer is seeded by the question's id: decisions show that ids arrive, which a word seldom does."""
    from blink_exp.benchmarks.easyvqa import EasyVQA

    words = {"method": "blink_hero", "retention_ratio": 0.1, "saliency": "random", "thresholds": "always_expand", "model.dtype": "float32"}
    backbone, method = requests.build(requests.configure(words))
    benchmark = EasyVQA()
    samples = benchmark.samples()[::500][:5]  # in threes: a whole batch and a part of one
    wanted, _ = evaluator.evaluate(backbone, method, benchmark, 1, samples=samples)
    alone = [[(step["layer"], step["decision"], step["visual_tokens"]) for step in record["layers"]] for record in wanted]
    backbone.forget()
    questions = [Request(s.id, benchmark.prompt(s), lambda s=s: [s.image()], benchmark.max_new_tokens) for s in samples]
    answers = requests.answer(backbone, method, questions[::-1], 3)[::-1]
    assert [a.text for a in answers] == [r["prediction"] for r in wanted]
    assert [a.visual_tokens for a in answers] == [r["visual_tokens"] for r in wanted]
    assert decided[::-1] == alone
    assert len({str(decisions) for decisions in alone}) == len(samples)  # or any id would do
