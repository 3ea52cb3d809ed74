"""What an experiment of conf/table or conf/figure runs: points, benchmarks, overrides, commands, and the training that it needs."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from blink_exp.documents.experiments import Experiment, ExperimentPoint
from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.settings.compose import composed
from blink_exp.studies import plan
from blink_exp.studies.experiments import KINDS, experiments

EXPERIMENT = {
    "overrides": ["model=scale_llava", "method=blink"],
    "benchmarks": {"scale": ["mosaic_mme"], "published": ["mme", "gqa"]},
    "at": {"gqa": ["thresholds=gqa"]},
    "points": [{"label": "a", "overrides": ["saliency=random"]}],
    "sweeps": [{"series": "start..18", "x": [4, 18], "overrides": ["layers.indices={x}-18"]}],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_an_experiment_has_a_type(kind):
    for experiment in experiments(kind):
        assert experiment.keys() <= Experiment.__annotations__.keys(), experiment["name"]
        for point in plan.points(experiment):
            assert point.keys() <= ExperimentPoint.__annotations__.keys(), (experiment["name"], point["label"])


def test_sweeps_are_written_out_behind_the_points():
    points = plan.points(EXPERIMENT)
    assert [p["label"] for p in points] == ["a", "start..18: 4", "start..18: 18"]
    assert points[2] == {"label": "start..18: 18", "series": "start..18", "x": 18, "overrides": ["layers.indices=18-18"]}
    assert EXPERIMENT["sweeps"][0]["overrides"] == ["layers.indices={x}-18"]


def test_the_user_s_benchmark_goes_before_those_of_the_experiment():
    assert plan.benchmarks(EXPERIMENT, [], scale=True) == ["mosaic_mme"]
    assert plan.benchmarks(EXPERIMENT, ["limit=3"], scale=False) == ["mme", "gqa"]
    assert plan.benchmarks(EXPERIMENT, ["benchmark=pope", "benchmark.split=adversarial"], scale=False) == ["pope"]
    assert plan.benchmarks({"benchmarks": {"scale": "mosaic_open"}}, [], scale=True) == ["mosaic_open"]
    assert plan.benchmarks({}, [], scale=True) == []


@pytest.mark.slow
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
    command = plan.command(["method=blink", "limit=3", "method=none", "+x={a: 1}", "layers.indices=[1,2]"])
    assert shlex.split(command) == ["python", "evaluate.py", "method=none", "limit=3", "+x={a: 1}", "layers.indices=[1,2]"]


@pytest.mark.slow
def test_a_point_s_command_composes_to_what_was_measured(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(plan, "guarded", lambda cfg, label: seen.append(cfg) or {"point": label, "status": "done"})
    base = composed("sweep", [f"store={tmp_path}"])
    first = plan.words(EXPERIMENT, plan.points(EXPERIMENT)[1], "mosaic_mme")
    run = plan.measured_run(base, first, ["limit=7", "thresholds=high_exp"], "start..18: 4")
    alone = composed("evaluate", shlex.split(run["command"])[2:])
    one, other = ({k: getattr(cfg, k) for k in identity.PART_OF_A_POINT} for cfg in (alone, seen[0]))
    assert one == other
    assert seen[0].store == str(tmp_path) and alone.method["tau_exp"] == 0.7


def test_a_setting_that_cannot_be_matched_is_a_failed_run(monkeypatch, tmp_path):
    def matched(cfg, key):
        raise UserError("cannot be met")

    monkeypatch.setattr(plan, "matched", matched)
    base = composed("sweep", [f"store={tmp_path}"])
    run = plan.measured_run(base, ["method=hero"], [], "HERO", match="method.retention_ratio")
    assert (run["point"], run["status"], run["error"]) == ("HERO", "failed", "cannot be met")


@pytest.mark.slow
def test_modules_are_trained_once_and_a_killed_training_goes_on(monkeypatch, tmp_path):
    calls = []

    def run(words, env):
        calls.append(words)
        folder = next(w for w in words if w.startswith("hydra.run.dir=")).partition("=")[2]
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / ("last.ckpt" if len(calls) == 1 else "metrics.json")).write_text(json.dumps({}), encoding="utf-8")
        return SimpleNamespace(returncode=int(len(calls) == 1))

    monkeypatch.setattr(subprocess, "run", run)
    base = composed("sweep", [f"store={tmp_path}"])
    figure = {"name": "f", "overrides": ["model=scale_llava"], "trains": ["layers.indices=4-5"]}
    with pytest.raises(UserError, match=r"python train.py .*layers.indices=4-5"):
        plan.trained(base, figure, [])
    word = plan.trained(base, figure, ["limit=3", "logger=wandb"])  # neither changes what is trained
    assert word == plan.trained(base, figure, []) and word[0].startswith(f"tokensr.path={tmp_path}")
    assert len(calls) == 2
    assert [any(w.startswith("resume=") for w in words) for words in calls] == [False, True]
    assert "logger=wandb" in calls[1] and "limit=3" not in calls[1]
    assert plan.trained(base, figure | {"trains": ["layers.indices=4-6"]}, []) != word
    assert plan.trained(base, figure, ["tokensr.path=/mine"]) == plan.trained(base, {"name": "g"}, []) == []


@pytest.mark.slow
def test_points_train_modules_of_their_own_at_the_user_s_layer_and_show_what_was_measured_of_them(monkeypatch, tmp_path):
    commands = []

    def run(words, env):
        commands.append(words)
        folder = Path(next(w for w in words if w.startswith("hydra.run.dir=")).partition("=")[2])
        folder.mkdir(parents=True)
        rows = {"12": {"cosine_tokensr": 0.5, "samples": 4}, "13": {"cosine_tokensr": 0.75, "samples": 4}}
        (folder / "metrics.json").write_text(json.dumps({"layers": rows, "parameters": 200}), encoding="utf-8")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    base = composed("sweep", [f"store={tmp_path}"])
    table = {
        "name": "t",
        "overrides": ["model=scale_llava", "layer=12", "thresholds=always_expand"],
        "benchmarks": {"scale": ["mosaic_mme"]},
        "points": [
            {"label": "none", "overrides": ["method=none"]},
            {"label": "mlp", "overrides": ["tokensr=mlp"], "trains": ["tokensr=mlp", "loss=mse"]},
            {"label": "conv", "overrides": [], "trains": ["tokensr=conv"]},
        ],
    }
    paths = [plan.trained(base, table, ["layer=16", "limit=3"], point) for point in plan.points(table)]
    assert paths[0] == [] and len({*map(tuple, paths)}) == 3
    assert [words[2:6] for words in commands] == [
        ["model=scale_llava", "layer=12", "layer=16", "tokensr=mlp"],
        ["model=scale_llava", "layer=12", "layer=16", "tokensr=conv"],
    ]
    again = plan.settings_of(base, "table", table, ["layer=16", "limit=3"])
    assert len(commands) == 2 and [settings.tokensr.path for settings in again] == [None, *(p[0].partition("=")[2] for p in paths[1:])]
    assert plan.training_measures(base, table, ["layer=16"], table["points"][1]) == {"cosine_tokensr": 0.625, "parameters": 100}
    assert plan.training_measures(base, table, [], table["points"][0]) == {}
    with pytest.raises(UserError, match="tokensr.path=x would replace tokensr.* of t's point mlp"):
        plan.refuse_collisions(table, ["tokensr.path=x"])


@pytest.mark.slow
def test_modules_of_a_published_backbone_are_never_trained_by_a_scale_model_s_recipe(tmp_path):
    base = composed("sweep", [f"store={tmp_path}"])
    figure = {"name": "f", "trains": ["layers.indices=4-5"]}
    overrides = ["model=llava_1_5_7b"]
    with pytest.raises(UserError, match=r"^f needs TokenSR modules \(layers.indices=4-5\) of llava-hf/llava-1.5-7b-hf; give tokensr.path="):
        plan.training(base, figure, overrides)
    base = replace(base, train=composed("sweep", ["train=trainer=paper data=llava_665k"]).train)  # as the message says it
    assert plan.training(base, figure, [])[0][-2:] == ["trainer=paper", "data=llava_665k"]
    base.train = "trainer=paper data=llava_665k data.json=j data.images='/my images'"
    words, _ = plan.training(base, figure, overrides)
    assert words == [*overrides, "layers.indices=4-5", "trainer=paper", "data=llava_665k", "data.json=j", "data.images=/my images"]


@pytest.mark.parametrize(
    ("word", "overrides", "refused"),
    [
        ("layers=12-18", ["layers=11-17"], True),
        ("layers.indices=[3]", ["layers=11-17"], True),
        ("layers=all", ["layers.indices=4-18"], True),
        ("layer=3", ["layers=11-17"], True),
        ("method=hero", ["method=blink", "saliency=random"], True),
        ("retention_ratio=0.1", ["method=hero", "retention_ratio=0.4"], True),
        ("method.newline_policy=none", ["method=hero"], False),
        ("thresholds=gqa", ["layers=11-17"], False),
        ("limit=8", ["method=none"], False),
        ("model.path=/x", ["method=none"], False),
    ],
)
def test_what_the_points_vary_is_not_the_user_s_to_set(word, overrides, refused):
    """The rows would keep labels that they have not earned."""
    experiment = {"name": "t", "points": [{"label": "p", "overrides": overrides}]}
    try:
        plan.refuse_collisions(experiment, [word])
        message = ""
    except UserError as error:
        message = str(error)
    assert bool(message) == refused and (not message or f"{word} would replace" in message)
