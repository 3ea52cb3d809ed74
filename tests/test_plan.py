"""What an experiment of conf/table or conf/figure runs: points, benchmarks, overrides, commands, and the training that it needs."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from blink_exp.cli import CONF
from blink_exp.errors import UserError
from blink_exp.experiments import matching, plan, results


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


EXPERIMENT = {
    "overrides": ["model=scale_llava", "method=blink"],
    "here": ["mosaic_mme"],
    "there": ["mme", "gqa"],
    "at": {"gqa": ["thresholds=gqa"]},
    "points": [{"label": "a", "overrides": ["saliency=random"]}],
    "sweeps": [{"series": "start..18", "x": [4, 18], "overrides": ["layers.indices={x}-18"]}],
}


def test_sweeps_are_written_out_behind_the_points():
    found = plan.points(EXPERIMENT)
    assert [p["label"] for p in found] == ["a", "start..18: 4", "start..18: 18"]
    assert found[2] == {"label": "start..18: 18", "series": "start..18", "x": 18, "overrides": ["layers.indices=18-18"]}
    assert EXPERIMENT["sweeps"][0]["overrides"] == ["layers.indices={x}-18"]


def test_the_user_s_benchmark_goes_before_those_of_the_experiment():
    assert plan.benchmarks(EXPERIMENT, [], scale=True) == ["mosaic_mme"]
    assert plan.benchmarks(EXPERIMENT, ["limit=3"], scale=False) == ["mme", "gqa"]
    assert plan.benchmarks(EXPERIMENT, ["benchmark=pope", "benchmark.split=adversarial"], scale=False) == ["pope"]
    assert plan.benchmarks({"here": "mosaic_open"}, [], scale=True) == ["mosaic_open"]
    assert plan.benchmarks({}, [], scale=True) == []


def test_a_scale_model_is_told_from_a_published_one():
    assert plan.on_scale_model(EXPERIMENT, [])
    assert not plan.on_scale_model(EXPERIMENT, ["model=llava_1_5_7b"])
    assert plan.on_scale_model({}, ["model=llava_1_5_7b", "model.path=scale"])


def test_words_of_a_point_stand_from_the_general_to_the_special():
    point = EXPERIMENT["points"][0]
    assert plan.words(EXPERIMENT, point, "gqa") == [
        "model=scale_llava",
        "method=blink",
        "benchmark=gqa",
        "thresholds=gqa",
        "saliency=random",
    ]
    assert plan.words(EXPERIMENT, point, "mme") == ["model=scale_llava", "method=blink", "benchmark=mme", "saliency=random"]


def test_a_command_has_each_setting_once_and_can_be_copied_to_a_shell():
    said = plan.command(["method=blink", "limit=3", "method=none", "+x={a: 1}", "layers.indices=[1,2]"])
    assert shlex.split(said) == ["python", "evaluate.py", "method=none", "limit=3", "+x={a: 1}", "layers.indices=[1,2]"]


def test_a_point_s_command_composes_to_what_was_measured(monkeypatch, tmp_path):
    from hydra import compose

    seen = []
    monkeypatch.setattr(plan, "guarded", lambda cfg, label: seen.append(cfg) or {"point": label, "status": "done"})
    base = OmegaConf.create({"store": str(tmp_path), "force": False})
    first = plan.words(EXPERIMENT, plan.points(EXPERIMENT)[1], "mosaic_mme")
    run = plan.measured_run(base, first, ["limit=7", "thresholds=high_exp"], "start..18: 4")
    alone = compose("evaluate", overrides=shlex.split(run["command"])[2:])
    one, other = (OmegaConf.to_container(cfg, resolve=True) for cfg in (alone, seen[0]))
    assert {k: one[k] for k in results.PART_OF_A_POINT} == {k: other[k] for k in results.PART_OF_A_POINT}
    assert seen[0].store == str(tmp_path) and alone.method.tau_exp == 0.7


def test_a_setting_that_cannot_be_matched_is_a_failed_run(monkeypatch, tmp_path):
    def matched(cfg, key):
        raise UserError("cannot be met")

    monkeypatch.setattr(matching, "matched", matched)
    base = OmegaConf.create({"store": str(tmp_path), "force": False})
    run = plan.measured_run(base, ["method=hero"], [], "HERO", match="method.retention_ratio")
    assert (run["point"], run["status"], run["error"]) == ("HERO", "failed", "cannot be met")


def test_modules_are_trained_once_and_a_killed_training_goes_on(monkeypatch, tmp_path):
    calls = []

    def run(words):
        calls.append(words)
        folder = next(w for w in words if w.startswith("hydra.run.dir=")).partition("=")[2]
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / ("last.ckpt" if len(calls) == 1 else "metrics.json")).write_text(json.dumps({}))
        return SimpleNamespace(returncode=int(len(calls) == 1))

    monkeypatch.setattr(subprocess, "run", run)
    base = OmegaConf.create({"store": str(tmp_path)})
    with pytest.raises(UserError, match=r"python train.py .*layers.indices=4-5"):
        plan.trained(base, ["layers.indices=4-5"])
    word = plan.trained(base, ["layers.indices=4-5"])
    assert word == plan.trained(base, ["layers.indices=4-5"]) and word[0].startswith(f"tokensr.path={tmp_path}")
    assert len(calls) == 2
    assert [any(w.startswith("resume=") for w in words) for words in calls] == [False, True]
    assert plan.trained(base, ["layers.indices=4-6"]) != word
