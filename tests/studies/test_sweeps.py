"""Sweeps and searches as the README writes them: what is chosen on one part of a benchmark is reported on the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.scripts import printed


@pytest.mark.slow
def test_a_product_of_ranges_and_choices_is_measured_point_by_point_and_ends_with_the_summary(tmp_path):
    words = ("layer=range(4,8,2)", "thresholds.tau_exp=choice(0.4,0.5)", "method=blink_interp", "limit=2")
    output = printed("sweep.py", "-m", *words, f"store={tmp_path / 'points'}", f"hydra.sweep.dir={tmp_path / 'a'}")
    wanted = {(layer, tau) for layer in (4, 6) for tau in (0.4, 0.5)}
    methods = [yaml.safe_load(p.read_text(encoding="utf-8"))["method"] for p in tmp_path.glob("points/*/config.yaml")]
    assert {(*m["layers"]["indices"], m["tau_exp"]) for m in methods} == wanted and len(methods) == 4
    summary = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8")
    for layer, tau in wanted:
        assert f"| layer={layer} thresholds.tau_exp={tau} | done |" in summary
    assert "at every point: limit=2 method=blink_interp" in output
    assert "layer by layer: python -m blink_exp view layer=4 thresholds.tau_exp=0.4 method=blink_interp sample=mosaic_mme/" in output


def search_words(tmp_path: Path, folder: str, trials: int) -> tuple[str, ...]:
    settings = ("search=blink_interp", "limit=4", f"hydra.sweeper.n_trials={trials}", f"store={tmp_path / 'points'}")
    return "sweep.py", "-m", *settings, f"hydra.sweep.dir={tmp_path / folder}"


def ids(folder: str) -> set[str]:
    return {json.loads(line)["image_id"] for line in (Path(folder) / "records.jsonl").read_text(encoding="utf-8").splitlines()}


@pytest.mark.slow
def test_a_search_chooses_on_validation_reports_on_test_and_goes_on_from_the_store(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    printed(*search_words(tmp_path, "a", 2))
    output = printed(*search_words(tmp_path, "b", 3))
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
    assert f"best: {best['command']}" in output and "the best (thresholds.tau_exp=0." in output


@pytest.mark.slow
def test_a_search_whose_points_all_fail_and_one_on_the_test_part_end_in_one_line(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("sweep.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", f"store={tmp_path / 'points'}")
    output = printed(*words, "thresholds.tau_exp=interval(2.0,3.0)", f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert output.splitlines()[-1].startswith("error: all 2 points failed, first thresholds.tau_exp=2.")
    output = printed(*words, "thresholds.tau_exp=interval(0.2,0.8)", "part=test", f"hydra.sweep.dir={tmp_path / 'b'}", code=2)
    assert output.splitlines()[-1] == "error: part=test is what a search is reported on, so it cannot choose there; leave part away"
    output = printed(*words, "method=blink_interp,none", "objective=acuracy", "limit=4", f"hydra.sweep.dir={tmp_path / 'c'}", code=2)
    assert output.splitlines()[-1] == "error: objective=acuracy is no score of mosaic_mme; did you mean accuracy?"
