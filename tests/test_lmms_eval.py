"""The model that lmms-eval loads: settings, batches, refusals (with a stand-in where lmms-eval is not installed), and one real run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from blink_exp.cli import CONF
from blink_exp.errors import UserError
from blink_exp.experiments import evaluate
from blink_exp.integrations import answering
from blink_exp.integrations.answering import Question

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


def one_line_error(match: str):
    return pytest.raises(UserError, match=f"^(?=.*{match})[^\n]+$")


# Settings


def test_words_that_lmms_eval_turned_into_python_become_hydra_s_again():
    settings = {"method": "blink", "retention_ratio": 0.25, "layer": None, "method.amplify": True, "layers.indices": "[12,13]"}
    assert answering.overrides(settings) == [
        *("method=blink", "retention_ratio=0.25", "layer=null", "method.amplify=true", "layers.indices=[12,13]")
    ]


def test_settings_mean_what_they_mean_to_evaluate_py():
    settings = {"method": "hero", "model": "scale_llava_next", "thresholds": "high_exp", "hero_low.layers": "[4,5]", "seed": 3}
    words = ["method=hero", "model=scale_llava_next", "thresholds=high_exp", "hero_low.layers=[4,5]", "seed=3"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        wanted = OmegaConf.to_container(compose("evaluate", [*words, "batch_size=4", "model.device=cuda:1"]), resolve=True)
    found = OmegaConf.to_container(answering.configure(settings, "4", "cuda:1"), resolve=True)
    assert found == wanted
    assert found["method"]["low"] == [4, 5]  # the comma did not end the word


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
    with one_line_error(re.escape(message)):
        answering.configure(settings, batch_size, device)


@pytest.mark.parametrize(
    ("settings", "message"), [({"model": "folder", "model.path": "no/such/folder"}, "no/such/folder"), ({"layer": 99}, "99")]
)
def test_a_model_or_method_that_cannot_be_built_is_one_line(settings, message):
    with one_line_error(message):
        answering.build(answering.configure(settings))


def test_each_process_takes_its_own_gpu_only_where_several_share_the_work():
    two = {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert answering.own_device("cuda", two) == "cuda:1"
    assert answering.own_device("cuda", {}) == "cuda"
    assert answering.own_device("cuda", {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == "cuda"
    assert answering.own_device("cuda:0", two) == "cuda:0"
    assert answering.own_device("cpu", two) == "cpu"


# Generation settings


def test_until():
    assert answering.stop_at(None) == answering.stop_at([]) == ()
    assert answering.stop_at(["\n\n"]) == ()  # nobody asked for it
    assert answering.stop_at(["\n\n", "Q:"]) == ("\n\n", "Q:")  # somebody did
    assert answering.stop_at("ASSISTANT:") == ("ASSISTANT:",)
    assert answering.stop_at(["", "."]) == (".",)
    assert answering.cut("a cat. Q: more", ("Q:", ".")) == "a cat"
    assert answering.cut("a cat \n\nand more", ("Q:", "\n\n")) == "a cat"
    assert answering.cut("one\n\ntwo", ()) == "one\n\ntwo"


def test_new_tokens_and_what_is_ignored():
    assert answering.new_tokens({"max_new_tokens": 16}, "mme") == 16
    assert answering.new_tokens({}, "mme") == 1024
    for bad in (0, -1, "many", 2.5, True, None):
        with one_line_error(f"max_new_tokens={bad} of mme"):
            answering.new_tokens({"max_new_tokens": bad}, "mme")
    assert answering.ignored({"do_sample": False, "temperature": 0, "num_beams": 1, "top_p": 0.9, "until": []}) == []
    assert answering.ignored({"do_sample": True, "temperature": 0.7, "num_beams": 5}) == [
        *("do_sample=True", "temperature=0.7", "num_beams=5")
    ]


# What a question shows


def shows(visuals, text="?", name="t/test/3"):
    return Question(name, text, lambda: visuals)


def test_the_one_image_of_a_question():
    assert answering.image_of(shows([RED])) is RED
    assert answering.image_of(shows([[RED]])) is RED
    grey = answering.image_of(shows([Image.new("L", (2, 3), 7)]))
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
    with one_line_error(f"{message}.*docs/lmms_eval.md"):
        answering.image_of(shows(visuals))


def test_an_image_that_does_not_decode_names_its_document():
    def broken():
        raise OSError("image file is truncated\n(3 bytes not processed)")

    with one_line_error("t/test/3 cannot be read .image file is truncated .3 bytes"):
        answering.image_of(Question("t/test/3", "?", broken))


def test_the_placeholder_leaves_the_text_and_two_are_refused():
    assert answering.text_of(shows([RED], "<image>\nWhat is it?"), "<image>") == "What is it?"
    assert answering.text_of(shows([RED], " What is it?\n"), "<image>") == " What is it?\n"  # without one, not a letter is touched
    with one_line_error("t/test/3 names 2 images"):
        answering.text_of(shows([RED], "<image> or <image>?"), "<image>")


# Order and batches


def test_batches_share_a_limit_and_keep_the_order():
    assert answering.batches([4, 16, 4, 4, 16], 2) == [[0, 2], [3], [1, 4]]
    assert answering.batches([4, 4, 4], 1) == [[0], [1], [2]]
    assert answering.batches([], 8) == []


@dataclass
class Calls:
    """In place of ``evaluate.answers``: an answer says what was asked, and every call is kept."""

    calls: list[tuple]

    def __call__(self, backbone, method, attached, images, asked, max_new_tokens):
        self.calls.append((list(attached.samples), images, asked, max_new_tokens))
        pixels = [images[key].getpixel((0, 0)) for key, _ in asked]
        said = [f"{question} {pixel[0]} {max_new_tokens} STOP more" for (_, question), pixel in zip(asked, pixels, strict=True)]
        return said, [SimpleNamespace(source=range(10))] * len(asked)


@pytest.fixture
def calls(monkeypatch) -> Calls:
    found = Calls([])
    monkeypatch.setattr(evaluate, "answers", found)
    return found


def stand_in():
    """A backbone with 100 positions, and a method."""
    text = SimpleNamespace(max_position_embeddings=100)
    model = SimpleNamespace(config=SimpleNamespace(text_config=text), device=torch.device("cpu"))
    backbone = SimpleNamespace(model=model, processor=SimpleNamespace(image_token="<image>"), identity="stand-in@0", settings={})
    return backbone, SimpleNamespace(name="none", attach=lambda model: contextlib.nullcontext(SimpleNamespace(samples=None)))


def test_answers_come_back_in_order_with_each_question_s_own_image_limit_and_end(calls):
    questions = [
        Question("t/test/0", "a", lambda: [RED], 4),
        Question("t/test/1", "b", lambda: [BLUE], 49152, ("STOP",)),
        Question("t/test/2", "<image>\nc", lambda: [BLUE], 4, ("STOP",)),
        Question("t/test/3", "d", lambda: [RED.copy()], 4),
    ]
    advanced: list[int] = []
    found = answering.answer(*stand_in(), questions, 2, advanced.append)
    assert [a.text for a in found] == ["a 255 4 STOP more", "b 0 100", "c 0 4", "d 255 4 STOP more"]  # 100: the LLM's positions
    assert [a.visual_tokens for a in found] == [10] * 4
    assert [ids for ids, *_ in calls.calls] == [["t/test/0", "t/test/2"], ["t/test/3"], ["t/test/1"]]
    assert advanced == [2, 1, 1]


def test_equal_images_are_shown_to_the_vision_tower_once_and_others_never_mixed_up(calls):
    flat = Image.new("RGB", (8, 2), "red")  # as many bytes as RED, and the same ones
    answering.answer(*stand_in(), [Question(str(i), "?", lambda i=i: [i]) for i in (RED, RED.copy(), BLUE, flat)], 4)
    (_, images, asked, _), *_ = calls.calls
    keys = [key for key, _ in asked]
    assert keys[0] == keys[1]
    assert len(images) == len(set(keys)) == 3


def test_answers_are_those_of_evaluate(scale):
    """Whatever the batches: a random scorer is seeded by the question's id, so ids must arrive too."""
    from blink_exp.benchmarks.easyvqa import EasyVQA

    words = {"method": "blink_hero", "retention_ratio": 0.1, "saliency": "random", "thresholds": "always_expand", "model.dtype": "float32"}
    backbone, method = answering.build(answering.configure(words))
    benchmark = EasyVQA()
    samples = benchmark.samples()[::500][:8]
    wanted, _ = evaluate.evaluate(backbone, method, benchmark, 1, samples=samples)
    backbone.forget()
    questions = [Question(s.id, benchmark.prompt(s), lambda s=s: [s.image()], benchmark.max_new_tokens) for s in samples]
    found = answering.answer(backbone, method, questions[::-1], 3)[::-1]
    assert [a.text for a in found] == [r["prediction"] for r in wanted]
    assert [a.visual_tokens for a in found] == [r["visual_tokens"] for r in wanted]


# The class that lmms-eval loads


@pytest.fixture
def adapter(monkeypatch):
    """blink_exp.integrations.lmms_eval on lmms-eval itself or, where that is not installed, on as much of its interface as is used."""
    name = "blink_exp.integrations.lmms_eval"
    if not INSTALLED:

        class Lmms:
            def __init__(self):
                self.task_dict, self.rank = {}, 0

        log = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
        parts = {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.model": {"lmms": Lmms},
            "lmms_eval.models": {},
            "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
            "loguru": {"logger": log},
        }
        for part, inside in parts.items():
            module = types.ModuleType(part)
            module.__dict__.update(inside)
            monkeypatch.setitem(sys.modules, part, module)
    monkeypatch.setattr(answering, "build", lambda cfg: stand_in())
    yield importlib.import_module(name)
    if not INSTALLED:
        del sys.modules[name]


def requests_of(task: str, docs: range, **settings):
    return [
        SimpleNamespace(task_name=task, args=(f"{task} {i}", settings, lambda doc: doc["images"], i, task, "test"))  # as tasks build them
        for i in docs
    ]


def test_requests_become_questions_and_answers_keep_their_order(adapter, calls, monkeypatch):
    notes: list[str] = []
    monkeypatch.setattr(adapter.logger, "warning", notes.append)
    model = adapter.BlinkExp(batch_size="2", method="none")
    model.task_dict = {"x": {"test": [{"images": [RED]}, {"images": [BLUE]}]}, "y": {"test": [{"images": [BLUE]}]}}
    asked = [*requests_of("x", range(2), max_new_tokens=4, until="STOP", temperature=0.7), *requests_of("y", range(1), max_new_tokens=8)]
    assert model.generate_until(asked) == ["x 0 255 4", "x 1 0 4", "y 0 0 8 STOP more"]
    assert [ids for ids, *_ in calls.calls] == [["x/test/0", "x/test/1"], ["y/test/0"]]
    assert notes == ["x: temperature=0.7 ignored, answers are greedy"]
    assert model.generate_until([]) == []
    assert (model.is_simple, model.device) == (True, torch.device("cpu"))


def test_a_task_that_cannot_work_is_refused_before_another_costs_hours(adapter, calls):
    model = adapter.BlinkExp(method="none")
    model.task_dict = {"x": {"test": [{"images": [RED]}] * 2}, "pairs": {"test": [{"images": [RED, BLUE]}, {"images": [RED]}]}}
    with one_line_error("pairs/test/0 shows 2 images"):
        model.generate_until([*requests_of("x", range(2)), *requests_of("pairs", range(2))])
    assert calls.calls == []


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round", "generate_visual_cot"])
def test_other_kinds_of_task_are_refused_by_name(adapter, kind):
    with one_line_error(f"^x has output_type .*{kind}.*generate_until about one image: docs/lmms_eval.md"):
        getattr(adapter.BlinkExp(method="none"), kind)(requests_of("x", range(1)))


def test_nothing_else_imports_lmms_eval():
    package = Path(answering.__file__).parent.parent
    found = [p for p in package.rglob("*.py") if re.search(r"^\s*(import|from) (lmms_eval|loguru)\b", p.read_text(), flags=re.M)]
    assert [p.relative_to(package).as_posix() for p in found] == ["integrations/lmms_eval.py"]


# For real


TASK = """task: blink_exp_toy
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy.images
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
process_results: !function toy.exact
metric_list: [{{metric: hit, aggregation: mean, higher_is_better: true}}]
"""
CODE = """def images(doc):
    return [doc["image"]]


def exact(doc, results):
    return {"hit": float(results[0] == doc["answer"])}
"""


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed; docs/lmms_eval.md says how")
def test_lmms_eval_s_own_command_gives_evaluate_s_answers(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    from blink_exp.benchmarks.easyvqa import EasyVQA

    benchmark = EasyVQA()
    samples = benchmark.samples()[::500][:8]
    for i, sample in enumerate(samples):
        sample.image().save(tmp_path / f"{i}.png")
    rows = {
        "image": [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(len(samples))],
        "question": [s.question for s in samples],
        "answer": [s.answer for s in samples],
    }
    columns = Features({"image": ImageColumn(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_dict(rows, features=columns).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(data=tmp_path / "test.parquet"))
    (tmp_path / "tasks" / "toy.py").write_text(CODE)

    settings = "method=random,retention_ratio=0.05,model=scale_llava"
    words = ["--model", "blink_exp", "--model_args", settings, "--tasks", "blink_exp_toy", "--batch_size", "3", "--log_samples"]
    folders = ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")]
    alone = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmms_eval", *words, *folders]
    run = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    logs = list((tmp_path / "out").rglob("*samples_blink_exp_toy.jsonl"))
    assert len(logs) == 1, run.stdout + run.stderr
    said = sorted((json.loads(line) for line in logs[0].read_text().splitlines()), key=lambda row: row["doc_id"])

    backbone, method = answering.build(answering.configure({"method": "random", "retention_ratio": 0.05}))
    wanted, _ = evaluate.evaluate(backbone, method, benchmark, 8, samples=samples)
    assert [row["filtered_resps"] for row in said] == [r["prediction"] for r in wanted]
    assert [row["hit"] for row in said] == [float(r["correct"]) for r in wanted]
    assert {r["correct"] for r in wanted} == {True, False}  # or the method was not there
