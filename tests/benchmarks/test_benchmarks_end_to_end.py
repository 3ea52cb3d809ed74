"""Every published benchmark on the scale model: files in the hub's layout, asked, answered, recorded, scored, written for the servers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from support.hub import CONF, build, picture, write
from support.hub_choices import MAKERS

from blink_exp.benchmarks.base import Submits
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.evaluation.records import write_lines
from blink_exp.methods.none import none
from blink_exp.studies.rescoring import predicted, scored_again


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Makes a benchmark on its fixture. Two tokens an answer: by the published limits the scale model would babble a thousand."""

    def make(name, **changes):
        benchmark = build(name, MAKERS[name](tmp_path / "data"), **changes)
        monkeypatch.setattr(type(benchmark), "max_new_tokens", 2)
        return benchmark

    return make


def written(records):
    return [json.loads(line) for line in write_lines(records).splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_from_the_hub_s_files_to_a_score(name, scale, made, tmp_path):
    """The headline exists and is a number; every record says enough to be scored again from its line in records.jsonl."""
    benchmark = made(name)
    samples = benchmark.samples()
    records, skipped = evaluate(scale, none(), benchmark, batch_size=4)
    assert skipped == []
    assert [r["id"] for r in records] == [s.id for s in samples]
    assert all(r["question"] == benchmark.prompt(s) for r, s in zip(records, samples, strict=True))
    scores = benchmark.score(records)
    if not benchmark.answered_elsewhere or benchmark.headline in scores:
        assert math.isfinite(scores[benchmark.headline].value)
        assert 0 < scores[benchmark.headline].samples <= len(records)
    (tmp_path / "records.jsonl").write_text(write_lines(records), encoding="utf-8")
    again = scored_again(benchmark, samples, predicted(str(tmp_path / "records.jsonl")))
    assert written(again) == written(records)
    assert benchmark.score(again) == scores


@pytest.mark.parametrize(("name", "split"), [("vqav2", "testdev"), ("vizwiz", "test")])
def test_from_a_secret_split_to_the_server_s_file(name, split, scale, made, tmp_path):
    benchmark = made(name, split=split)
    records, _ = evaluate(scale, none(), benchmark, batch_size=3)
    assert isinstance(benchmark, Submits)
    [file] = benchmark.submit(records, tmp_path)
    assert len(json.loads(file.read_text(encoding="utf-8"))) == len(records) == 3
    assert benchmark.headline not in benchmark.score(records)


def test_batch_size_changes_no_score(scale, made):
    """Left padding and shared images: the answers of three questions on two images, alone and together."""
    benchmark = made("gqa")
    alone, together = (evaluate(scale, none(), benchmark, batch_size=n)[0] for n in (1, 3))
    assert [r["prediction"] for r in alone] == [r["prediction"] for r in together]
    assert benchmark.score(alone) == benchmark.score(together)


def test_broken_images_are_named_and_the_rest_is_scored(scale, tmp_path, capsys):
    rows = [{"type": "human_test", "question": "How many?", "answer": "1", "image": image} for image in (picture(), b"broken", None)]
    benchmark = build("chartqa", write(tmp_path, "test", rows))
    records, skipped = evaluate(scale, none(), benchmark, batch_size=2)
    assert [r["id"] for r in records] == ["chartqa/test/00000"]
    assert [s["id"] for s in skipped] == ["chartqa/test/00001", "chartqa/test/00002"]
    assert skipped[1]["why"] == "the row has no image"
    assert "2 of 3 samples skipped, first chartqa/test/00001" in capsys.readouterr().out


def test_every_published_benchmark_has_a_fixture():
    """A config with a protocol reads published data; without a maker above, nothing here has run it."""
    settings = {Path(file).stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in CONF.glob("*.yaml")}
    assert {name for name, config in settings.items() if "protocol" in config or "mmbench" in config.get("defaults", [])} == set(MAKERS)
