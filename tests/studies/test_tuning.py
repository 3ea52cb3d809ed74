"""Searches: what a point is worth, what a search may not do, its presets and its report."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from support.scripts import ROOT

from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.reports import search as report
from blink_exp.settings.compose import composed
from blink_exp.studies import tuning

SEARCHES = sorted(p.stem for p in (ROOT / "conf" / "search").glob("*.yaml"))


@pytest.fixture
def conf():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


ROW = {"status": "done", "benchmark": "b", "method": "m", "headline": "total", "scores": {"total": 80.0, "count": 60.0, "gone": None}}

ROW |= {"tokens": {"layer": 100.0}}


def test_worth_is_the_headline_or_the_objective_less_the_price_of_tokens():
    assert tuning.worth(ROW, None, 0) == 80
    assert tuning.worth(ROW, "count", 0) == 60
    assert tuning.worth(ROW, None, 0.05) == 75  # 80 - 0.05 * 100
    assert tuning.worth(ROW | {"tokens": {}}, None, 0) == 80
    with pytest.raises(UserError, match="objective=totl is no score of b; did you mean total"):
        tuning.worth(ROW, "totl", 0)
    with pytest.raises(UserError, match="objective=gone is no score"):  # NaN when it was measured
        tuning.worth(ROW, "gone", 0)
    with pytest.raises(UserError, match="token_price=0.1: the tokens of m are not known; use token_price=0"):
        tuning.worth(ROW | {"tokens": {"layer": None}}, None, 0.1)
    with pytest.raises(UserError, match="that has answers"):
        tuning.worth(ROW | {"scores": {}}, None, 0)


def hydra_cfg(target: str = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", **sweeper) -> dict:
    sampler = {"_target_": "optuna.samplers.TPESampler", "seed": None}
    return {"sweeper": {"_target_": target, "direction": "maximize", "sampler": sampler, "params": None} | sweeper}


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_a_search_raises_the_score_whatever_the_direction_and_a_failure_is_the_worst(monkeypatch, direction, sign):
    """The plugin's own default is minimize."""
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_cfg(direction=direction)))
    assert tuning.returned(ROW, None, 0.1) == sign * 70
    assert tuning.returned({"status": "failed"}, None, 0.1) == sign * -math.inf
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_cfg("hydra._internal.core_plugins.basic_sweeper.BasicSweeper")))
    assert tuning.returned(ROW, None, 0.1) is ROW


def master(folder: Path, *words: str, part: str = "all", target: str = "blink_exp.benchmarks.mosaic_mme.MosaicMME", **sweeper):
    """What Hydra gives to a callback before and after a multirun."""
    hydra = hydra_cfg(**sweeper) | {"sweep": {"dir": str(folder)}, "overrides": {"task": list(words)}}
    return OmegaConf.create({"part": part, "seed": 7, "benchmark": {"_target_": target}, "hydra": hydra})


def test_a_search_is_refused_before_anything_runs(tmp_path):
    ok = "thresholds.tau_exp=interval(0.2,0.8)"
    refused = {
        "part=test is what a search is reported on": master(tmp_path, ok, part="test"),
        "nothing to search; add search=blink": master(tmp_path, "method=blink", "limit=8"),
        "hydra.sweeper.n_trials must be a whole number of at least 1, got 0": master(tmp_path, ok, n_trials=0),
        "is more than one aim; use maximize": master(tmp_path, ok, direction=["maximize", "minimize"]),
        "benchmark=duts runs no method": master(tmp_path, ok, target="blink_exp.benchmarks.duts.Duts"),
    }
    for message, config in refused.items():
        with pytest.raises(UserError, match=message):
            tuning.check(config)
    (tmp_path / "tuning.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="measured on the test part, so it is over; give another hydra.sweep.dir"):
        tuning.check(master(tmp_path, ok))


def test_a_search_is_seeded(tmp_path):
    config = master(tmp_path, "thresholds=high_exp,low_drop")
    tuning.check(config)
    assert config.hydra.sweeper.sampler.seed == 7


def test_every_job_of_a_search_runs_on_the_validation_part(monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_cfg()))
    settings = composed("sweep", [])
    for part in ("all", "validation"):
        assert tuning.prepared(replace(settings, part=part)).part == "validation"
    with pytest.raises(UserError, match="part=test"):  # part=choice(all,test) gets as far as a job
        tuning.prepared(replace(settings, part="test"))
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_cfg("basic")))
    assert tuning.prepared(replace(settings, part="test")).part == "test"


def test_there_are_searches():
    assert {"blink", "blink_interp", "hero", "own"} <= set(SEARCHES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_every_point_of_a_preset_is_one_that_can_run(conf, name):
    """The ends of every range and every choice: they compose, and layers are ranges of layers that there are modules for."""
    plugin = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper._impl")
    cfg = compose("sweep", [f"search={name}"], return_hydra_config=True)
    assert (cfg.hydra.sweeper.direction, cfg.hydra.sweeper.n_jobs) == ("maximize", 1)
    params = [f"{k}={v}" for k, v in (cfg.hydra.sweeper.params or {}).items()]
    space, fixed = plugin.create_params_from_overrides(params)
    assert not fixed and bool(space) == (name != "own")
    ends = [d.choices if hasattr(d, "choices") else (d.low, d.high) for d in space.values()]
    for k in range(max(map(len, ends), default=1)):
        words = [f"{key}={values[k % len(values)]}" for key, values in zip(space, ends, strict=True)]
        method = composed("sweep", [f"search={name}", *words]).method
        assert all(0 <= method[tau] <= 1 for tau in ("tau_exp", "tau_drop") if tau in method)
        assert 0 < method.get("retention_ratio", 1) <= 1
        assert 0 <= method.get("alpha", 0) <= 1
    if "search.first_layer" in space:
        first, last = space["search.first_layer"], space["search.last_layer"]
        assert all(isinstance(v, int) for d in (first, last) for v in (d.low, d.high))
        assert 0 <= first.low <= first.high <= last.low <= last.high <= 31
        words = [f"search={name}", f"search.first_layer={first.low}", f"search.last_layer={last.high}"]
        method = composed("sweep", words).method
        assert method["layers"]["indices"] == f"{first.low}-{last.high}"
        if method["amplify"]:
            there = {p.stem for p in (ROOT / "blink_exp/scale_model/assets/tokensr").glob("*.safetensors")}
            assert {f"layer_{i}" for i in range(first.low, last.high + 1)} <= there


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blink", "hero"])
def test_the_command_of_a_point_runs_that_point_without_its_search(conf, name):
    extra = {"blink": ["search.first_layer=13", "search.last_layer=17", "method=blink_interp"], "hero": ["hero_alpha.alpha=0.25"]}[name]
    words = [f"search={name}", *extra, "limit=20", "store=x", "objective=accuracy", "seed=3"]
    choices = compose("sweep", words, return_hydra_config=True).hydra.runtime.choices
    command = tuning.standalone_command(OmegaConf.create({"hydra": {"runtime": {"choices": choices}}}), words)
    script, *overrides = command[1:]
    assert script == "evaluate.py" and not any("search" in w for w in overrides)
    wanted = replace(composed("sweep", words), part="test")
    assert identity.config_hash(composed("evaluate", overrides), {}) == identity.config_hash(wanted, {})


def test_the_report_shows_both_parts_of_both_settings_and_rounds_no_command():
    def seen(score, worth, tokens):
        return {"score": score, "stderr": 1.5, "worth": worth, "samples": 10, "tokens": tokens}

    best = {"point": "a.b=0.123456789 c=12-18", "command": "run a.b=0.123456789", "validation": seen(81, 76, 90), "test": seen(79, 74, 100)}
    default = {"point": "", "command": "run", "validation": seen(70, 60, 200), "test": seen(71, 61.25, 195)}
    document = {"objective": "total", "benchmark": "b", "backbone": "m", "token_price": 0, "settings": {"default": default, "best": best}}
    document |= {"points": 9, "failed": 2, "difference": {"delta": 8, "low": -1, "high": 17, "p": 0.08, "test": "bootstrap", "n": 10}}
    assert report.cells(document) == [
        ["without the search", "70.00 ± 1.50", "71.00 ± 1.50", "195"],
        ["the best (a.b=0.1235 c=12-18)", "81.00 ± 1.50", "79.00 ± 1.50", "100"],
    ]
    assert report.cells(document | {"token_price": 0.05})[0][2] == "71.00 ± 1.50, worth 61.25"
    text = report.text(document)
    assert "`run a.b=0.123456789`" in text and "2 of 9 points failed" in text
    assert "No point was better" not in text
    worse = document | {"settings": {"default": best, "best": default}}
    assert "No point was better on validation" in report.text(worse)
    assert "+8.00, 95 % interval -1.00 to 17.00, p = 0.080 (bootstrap, 10 questions)" in text
