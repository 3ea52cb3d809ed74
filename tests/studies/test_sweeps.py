"""Sweeps as the README writes them, and searches: what is chosen on one part of a benchmark is reported on the other."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from support import scripts
from support.scripts import ROOT

from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import Duts
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_detail import MosaicDetail
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.benchmarks.parts import check_part, first_ids, in_validation, part_of
from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.evaluation.evaluator import chosen
from blink_exp.reports import search as report
from blink_exp.settings.compose import composed
from blink_exp.studies import tuning

SEARCHES = sorted(p.stem for p in (ROOT / "conf" / "search").glob("*.yaml"))


def run(*words: str, code: int = 0) -> str:
    done = scripts.run(words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def conf():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


# parts


def sample(image_id: str, image: Image.Image | None, question: str = "q") -> Sample:
    def opened() -> Image.Image:
        if image is None:
            raise OSError("broken")
        return image

    return Sample(f"{image_id}/{question}", image_id, opened, question, "yes", "all")


def noise(seed: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_an_image_s_part_is_what_its_id_hashes_to():
    """By the definition, and for ids written down: a sample that was ever reported on never becomes one that is chosen on."""
    for name in map(str, range(300)):
        assert in_validation(name) == (int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 100 < 30)
    held = [i for i in range(20) if in_validation(f"mosaic_mme/v1/existence/{i:04d}")]
    assert held == FROZEN
    assert 0.27 < sum(in_validation(str(i)) for i in range(3000)) / 3000 < 0.33


FROZEN = [2, 3, 5, 6, 11, 12, 14, 16]


def test_parts_are_disjoint_complete_in_order_and_whole_images():
    samples = MosaicMME(6).samples()
    held, test = part_of(samples, "validation"), part_of(samples, "test")
    assert part_of(samples, "all") is samples
    assert sorted([*held, *test], key=samples.index) == samples
    assert held == sorted(held, key=samples.index) and test == sorted(test, key=samples.index)
    assert not {s.image_id for s in held} & {s.image_id for s in test}
    assert all(sum(s.image_id == t.image_id for t in held) == 2 for s in held)  # a yes and a no


def test_one_image_under_many_ids_is_in_one_part():
    """Rows of published benchmarks have ids of their own and share images. 40 ids fall into both parts by their hashes."""
    same = [sample(str(i), noise(0)) for i in range(40)]
    assert {in_validation(s.image_id) for s in same} == {True, False}
    other = [sample(f"other {i}", noise(i + 1)) for i in range(40)]
    mixed = [s for pair in zip(same, other, strict=True) for s in pair]
    parts = [part_of(mixed, part) for part in ("validation", "test")]
    assert [sum(s in same for s in part) for part in parts] in ([40, 0], [0, 40])
    assert (same[0] in parts[0]) == in_validation("0")  # by the first id, whichever part of the rows a run takes
    assert {s.image_id for s in parts[0] if s in other} == {s.image_id for s in other if in_validation(s.image_id)}


def test_equal_bytes_of_another_shape_are_another_image_and_broken_images_are_all_their_own():
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    found = first_ids([sample("a", wide), sample("b", tall), sample("c", None), sample("d", None), sample("e", wide.copy())])
    assert found == {"a": "a", "b": "b", "c": "c", "d": "d", "e": "a"}


def test_an_empty_part_an_unknown_one_and_a_benchmark_without_questions_are_refused():
    only = next(str(i) for i in range(100) if not in_validation(str(i)))
    with pytest.raises(UserError, match="part=validation of 1 images is empty; use a benchmark with more images"):
        part_of([sample(only, noise(0))], "validation")
    with pytest.raises(UserError, match="part=valid is not known; did you mean validation"):
        check_part("valid", MosaicMME(1))
    with pytest.raises(UserError, match="part=test: duts asks no question"):
        check_part("test", Duts("x"))
    check_part("all", Duts("x"))


@pytest.mark.parametrize("make", [MosaicMME, MosaicHR, MosaicOpen, MosaicDetail, EasyVQA])
def test_no_picture_of_a_shipped_benchmark_is_in_both_parts(make):
    samples = make().samples()
    pixels = []
    for part in ("validation", "test"):
        images = {s.image_id: s for s in part_of(samples, part)}
        pixels.append({hashlib.sha256(s.image().tobytes()).hexdigest() for s in images.values()})
    assert not pixels[0] & pixels[1]
    assert 0.2 < len(pixels[0]) / len(pixels[0] | pixels[1]) < 0.4


def test_the_limit_counts_within_the_part_and_the_part_makes_another_point(conf):
    cfgs = {part: composed("evaluate", [f"part={part}", "limit=12"]) for part in ("all", "validation", "test")}
    benchmark = MosaicMME(6)
    for part in ("validation", "test"):
        taken = chosen(benchmark, cfgs[part])
        assert len(taken) == 12 and set(taken) <= set(part_of(benchmark.samples(), part))
    assert len({identity.config_hash(cfg, {}) for cfg in cfgs.values()}) == 3


# what a point is worth, by hand

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


# what a search may not do


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
    for said, config in refused.items():
        with pytest.raises(UserError, match=said):
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
    for said in ("all", "validation"):
        assert tuning.prepared(replace(settings, part=said)).part == "validation"
    with pytest.raises(UserError, match="part=test"):  # part=choice(all,test) gets as far as a job
        tuning.prepared(replace(settings, part="test"))
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra_cfg("basic")))
    assert tuning.prepared(replace(settings, part="test")).part == "test"


# the presets


def test_there_are_searches():
    assert {"blink", "blink_interp", "hero", "own"} <= set(SEARCHES)


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
        found = composed("sweep", [f"search={name}", *words]).method
        assert all(0 <= found[tau] <= 1 for tau in ("tau_exp", "tau_drop") if tau in found)
        assert 0 < found.get("retention_ratio", 1) <= 1
        assert 0 <= found.get("alpha", 0) <= 1
    if "search.first_layer" in space:
        first, last = space["search.first_layer"], space["search.last_layer"]
        assert all(isinstance(v, int) for d in (first, last) for v in (d.low, d.high))
        assert 0 <= first.low <= first.high <= last.low <= last.high <= 31
        words = [f"search={name}", f"search.first_layer={first.low}", f"search.last_layer={last.high}"]
        found = composed("sweep", words).method
        assert found["layers"]["indices"] == f"{first.low}-{last.high}"
        if found["amplify"]:
            there = {p.stem for p in (ROOT / "blink_exp/scale_model/assets/tokensr").glob("*.safetensors")}
            assert {f"layer_{i}" for i in range(first.low, last.high + 1)} <= there


@pytest.mark.parametrize("name", ["blink", "hero"])
def test_the_command_of_a_point_runs_that_point_without_its_search(conf, name):
    extra = {"blink": ["search.first_layer=13", "search.last_layer=17", "method=blink_interp"], "hero": ["hero_alpha.alpha=0.25"]}[name]
    words = [f"search={name}", *extra, "limit=20", "store=x", "objective=accuracy", "seed=3"]
    choices = compose("sweep", words, return_hydra_config=True).hydra.runtime.choices
    said = tuning.standalone_command(OmegaConf.create({"hydra": {"runtime": {"choices": choices}}}), words)
    script, *overrides = said[1:]
    assert script == "evaluate.py" and not any("search" in w for w in overrides)
    wanted = replace(composed("sweep", words), part="test")
    assert identity.config_hash(composed("evaluate", overrides), {}) == identity.config_hash(wanted, {})


# the report


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


# for real


def test_a_product_of_ranges_and_choices_is_measured_point_by_point_and_ends_with_the_summary(tmp_path):
    words = ("layer=range(4,8,2)", "thresholds.tau_exp=choice(0.4,0.5)", "method=blink_interp", "limit=4")
    printed = run("sweep.py", "-m", *words, f"store={tmp_path / 'points'}", f"hydra.sweep.dir={tmp_path / 'a'}")
    wanted = {(layer, tau) for layer in (4, 6) for tau in (0.4, 0.5)}
    found = [yaml.safe_load(p.read_text(encoding="utf-8"))["method"] for p in tmp_path.glob("points/*/config.yaml")]
    assert {(*m["layers"]["indices"], m["tau_exp"]) for m in found} == wanted and len(found) == 4
    summary = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8")
    for layer, tau in wanted:
        assert f"| layer={layer} thresholds.tau_exp={tau} | done |" in summary
    assert "at every point: limit=4 method=blink_interp" in printed


def search_words(tmp_path: Path, folder: str, trials: int) -> tuple[str, ...]:
    own = ("search=blink_interp", "limit=8", f"hydra.sweeper.n_trials={trials}", f"store={tmp_path / 'points'}")
    return "sweep.py", "-m", *own, f"hydra.sweep.dir={tmp_path / folder}"


def ids(folder: str) -> set[str]:
    return {json.loads(line)["image_id"] for line in (Path(folder) / "records.jsonl").read_text(encoding="utf-8").splitlines()}


def test_a_search_chooses_on_validation_reports_on_test_and_goes_on_from_the_store(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    run(*search_words(tmp_path, "a", 2))
    printed = run(*search_words(tmp_path, "b", 3))
    jobs = {
        f: [json.loads((tmp_path / f / str(k) / "job.json").read_text(encoding="utf-8")) for k in range(n)] for f, n in (("a", 2), ("b", 3))
    }
    assert [j["folder"] for j in jobs["b"]][:2] == [j["folder"] for j in jobs["a"]]  # the same points, proposed again
    assert [j["reused"] for j in jobs["b"]] == [True, True, False]
    assert len({j["folder"] for j in jobs["b"]}) == 3

    parts = {str(p.parent): yaml.safe_load(p.read_text(encoding="utf-8"))["part"] for p in tmp_path.glob("points/*/config.yaml")}
    assert all(parts[j["folder"]] == "validation" for j in jobs["b"])
    documents = {f: json.loads((tmp_path / f / "tuning.json").read_text(encoding="utf-8")) for f in ("a", "b")}
    opened = {documents[f]["settings"][s]["test"]["folder"] for f in ("a", "b") for s in ("default", "best")}
    assert {folder for folder, part in parts.items() if part == "test"} == opened  # nothing else was ever run there

    document = documents["b"]
    default, best = document["settings"]["default"], document["settings"]["best"]
    assert best["validation"]["score"] == max(j["scores"]["total"] for j in jobs["b"])
    assert document["points"] == 3 and document["objective"] == "total"
    for setting in (default, best):
        for part in ("validation", "test"):
            metrics = json.loads((Path(setting[part]["folder"]) / "metrics.json").read_text(encoding="utf-8"))
            assert setting[part]["score"] == metrics["scores"]["total"]["value"]
            assert parts[setting[part]["folder"]] == part
        assert not ids(setting["validation"]["folder"]) & ids(setting["test"]["folder"])
    assert (
        yaml.safe_load((Path(default["test"]["folder"]) / "config.yaml").read_text(encoding="utf-8"))["method"]["layers"]["indices"]
        == "12-18"
    )
    assert f"best: {best['command']}" in printed and "the best (thresholds.tau_exp=0." in printed


def test_a_search_whose_points_all_fail_and_one_on_the_test_part_end_in_one_line(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("sweep.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", f"store={tmp_path / 'points'}")
    printed = run(*words, "thresholds.tau_exp=interval(2.0,3.0)", f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert printed.splitlines()[-1].startswith("error: all 2 points failed, first thresholds.tau_exp=2.")
    printed = run(*words, "thresholds.tau_exp=interval(0.2,0.8)", "part=test", f"hydra.sweep.dir={tmp_path / 'b'}", code=2)
    assert printed.splitlines()[-1] == "error: part=test is what a search is reported on, so it cannot choose there; leave part away"
    printed = run(*words, "method=blink_interp,none", "objective=acuracy", "limit=4", f"hydra.sweep.dir={tmp_path / 'c'}", code=2)
    assert printed.splitlines()[-1] == "error: objective=acuracy is no score of mosaic_mme; did you mean accuracy?"
