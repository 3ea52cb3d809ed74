"""The model that lmms-eval loads: requests, refusals (with a stand-in where lmms-eval is not installed), and one real run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.refusals import refusal
from support.stand_ins import BLUE, RED, Calls, attach, stand_in

from blink_exp.evaluation import evaluator
from blink_exp.integrations import requests

INSTALLED = importlib.util.find_spec("lmms_eval") is not None

# The class that lmms-eval loads


@pytest.fixture
def calls(monkeypatch) -> Calls:
    monkeypatch.setattr(requests, "answers", recorder := Calls())
    monkeypatch.setattr(requests, "attach", attach)
    return recorder


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
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "build", lambda settings: stand_in())
    yield module
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
    message = refusal(lambda: model.generate_until([*requests_of("x", range(2)), *requests_of("pairs", range(2))]))
    assert "pairs/test/0 shows 2 images" in message
    assert calls.calls == []


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round", "generate_visual_cot"])
def test_other_kinds_of_task_are_refused_by_name(adapter, kind):
    ask = getattr(adapter.BlinkExp(method="none"), kind)
    message = refusal(lambda: ask(requests_of("x", range(1))))
    assert re.search(f"^x has output_type .*{kind}.*generate_until about one image: docs/lmms_eval.md", message)


def test_nothing_else_imports_lmms_eval():
    package = Path(requests.__file__).parent.parent
    importers = [
        p for p in package.rglob("*.py") if re.search(r"^\s*(import|from) (lmms_eval|loguru)\b", p.read_text(encoding="utf-8"), flags=re.M)
    ]
    assert [p.relative_to(package).as_posix() for p in importers] == ["integrations/lmms_eval.py"]


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
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(data=tmp_path / "test.parquet"), encoding="utf-8")
    (tmp_path / "tasks" / "toy.py").write_text(CODE, encoding="utf-8")

    settings = "method=random,retention_ratio=0.05,model=scale_llava"
    words = ["--model", "blink_exp", "--model_args", settings, "--tasks", "blink_exp_toy", "--batch_size", "3", "--log_samples"]
    folders = ["--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out")]
    alone = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmms_eval", *words, *folders]
    run = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    logs = list((tmp_path / "out").rglob("*samples_blink_exp_toy.jsonl"))
    assert len(logs) == 1, run.stdout + run.stderr
    logged = sorted((json.loads(line) for line in logs[0].read_text(encoding="utf-8").splitlines()), key=lambda row: row["doc_id"])

    backbone, method = requests.build(requests.configure({"method": "random", "retention_ratio": 0.05}))
    wanted, _ = evaluator.evaluate(backbone, method, benchmark, 8, samples=samples)
    assert [row["filtered_resps"] for row in logged] == [r["prediction"] for r in wanted]
    assert [row["hit"] for row in logged] == [float(r["correct"]) for r in wanted]
    assert {r["correct"] for r in wanted} == {True, False}  # or the method was not there
