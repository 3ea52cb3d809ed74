"""Verdicts of the published code, worked out by hand from its rules: tests/benchmarks/vectors/<benchmark>.yaml.

A file is a list. An entry with a ``row`` holds answers by what they score (1: right, 0: wrong; VQA accuracy may lie between), for ``both``
protocols or one, under ``settings`` of the benchmark. An entry with ``asked`` holds rows of what a question becomes, [question, llava,
lmms_eval], before the ``suffix``. null: there is no such protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.hub import build

VECTORS = Path(__file__).parent / "vectors"
FILES = sorted(VECTORS.glob("*.yaml"))
ROWS: dict[str, dict[str, Any]] = {  # what a row holds where an entry does not say it
    "mme": {"question_id": "a.png", "category": "count", "answer": "Yes"},
    "pope": {"question_id": "1", "category": "random", "image_source": "a", "answer": "yes"},
    "gqa": {"id": "1", "imageId": "a", "answer": "x"},
    "chartqa": {"type": "human_test", "answer": "1"},
    "realworldqa": {"answer": "x"},
    "ocrbench": {"dataset": "IIIT5K", "question_type": "Regular Text Recognition", "answer": ["x"]},
    "scienceqa": {"choices": ["u", "v", "w"], "answer": 1, "hint": ""},
    "mmstar": {"index": 0, "category": "math", "l2_category": "geometry", "answer": "A"},
    "mmbench": {"index": 1, "hint": "nan", "category": "c", "L2-category": "l", "answer": "A"},
    "mmvet": {"question_id": "v1_0", "answer": "a", "capability": "rec"},
    "vqav2": {"question_id": 1, "image_id": 1, "answers": ["x"] * 10},
    "vizwiz": {"question_id": "VizWiz_val_00000000", "answers": ["x"] * 10},
    "textvqa": {"question_id": 1, "image_id": "a", "answers": ["x"] * 10, "ocr_tokens": []},
}
ROWS["mmbench_cn"] = ROWS["mmbench"]


def entries(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((VECTORS / f"{name}.yaml").read_text(encoding="utf-8"))


def asked_of(name: str, protocol: str, entry: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """(benchmark, sample) of an entry's row."""
    benchmark = build(name, Path("x"), protocol=protocol, **entry.get("settings", {}))
    row = {"question": "Q"} | ROWS[name] | entry.get("row", {}) | more
    return benchmark, benchmark.sample(0, row, lambda: None)


def protocols_of(name: str, entry: dict[str, Any], key: str) -> tuple[str, ...]:
    known = type(build(name, Path("x"), **entry.get("settings", {}))).protocols
    return known if key == "both" else (key,)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_answers_score_what_the_published_code_gives(name):
    wrong = []
    for entry in entries(name):
        for key in ("both", "llava", "lmms_eval"):
            for protocol in protocols_of(name, entry, key) if key in entry else ():
                benchmark, sample = asked_of(name, protocol, entry)
                for score, texts in entry[key].items():
                    wrong += [
                        (protocol, entry["row"], text, "should score", score)
                        for text in texts
                        if benchmark.correct(sample, text) != pytest.approx(float(score))
                    ]
    assert wrong == []


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_questions_become_the_published_prompts(name):
    wrong = []
    for entry in entries(name):
        for question, *prompts in entry.get("asked", ()):
            for protocol, prompt in zip(("llava", "lmms_eval"), prompts, strict=True):
                if prompt is None:
                    continue
                benchmark, sample = asked_of(name, protocol, entry, question=question)
                got = benchmark.prompt(sample)
                wrong += [] if got == prompt + entry["suffix"] else [(protocol, question, got)]
    assert wrong == []


def counted(name: str) -> int:
    """Verdicts in a file, those of both protocols twice."""
    total = 0
    for entry in entries(name):
        for key in ("both", "llava", "lmms_eval"):
            texts = [text for texts in entry.get(key, {}).values() for text in texts]
            assert all(isinstance(text, str) for text in texts), (name, texts)
            assert len(texts) == len(set(texts)), (name, sorted(text for text in texts if texts.count(text) > 1))
            total += len(texts) * (len(protocols_of(name, entry, key)) if texts else 0)
        total += sum(prompt is not None for _, *prompts in entry.get("asked", ()) for prompt in prompts)
    return total


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"mmvet", "mmbench_cn"}))
def test_each_benchmark_has_some_hundred_vectors(name):
    assert counted(name) >= 100
