"""Multiruns of which a job is wrong: the others run."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from support.ends import run

from blink_exp.cli import CONF
from blink_exp.files import write_json


@pytest.mark.slow
def test_a_wrong_job_of_a_multirun_lets_the_others_run(tmp_path):
    settings = ("limit=2", "cost=0", "method=blink_interp", f"hydra.sweep.dir={tmp_path / 'a'}", "hydra.sweep.subdir=job/${hydra.job.num}")
    printed, errors = run("evaluate.py", "-m", "layer=40,12,41", *settings, code=2)
    assert errors == ["error: 2 of 3 jobs failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]
    assert (tmp_path / "a" / "job" / "1" / "metrics.json").is_file()
    assert "layer=41 method=blink_interp failed: layer=41 is outside" in printed.replace("limit=2 cost=0 ", "")


WRONG = "thresholds.tau_exp must be a number in [0, 1], got high"

UNKNOWN = "method=blonk is not a preset; did you mean blink or blink_hero or blink_interp?"

FORCE = "force must be true or false, got 7"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "shared"])
@pytest.mark.parametrize(
    ("words", "failed", "whole"),
    [
        (["thresholds.tau_exp=high,0.4", "method=blink_interp"], {"thresholds.tau_exp=high": WRONG}, [1]),
        (["method=none,blonk", "thresholds.tau_exp=0.4,high"], {"blonk": UNKNOWN, "high": WRONG}, [0]),
        (["force=7,true", "method=none"], {"force=7": FORCE}, [1]),
    ],
)
def test_a_job_whose_words_do_not_compose_lets_the_others_run(words, failed, whole, launcher, tmp_path):
    settings = ["limit=2", "cost=0", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'a'}"]
    printed, (error,) = run("evaluate.py", "-m", *words, *settings, code=2)
    jobs = 4 if len(failed) == 2 else 2
    assert error.startswith(f"error: {jobs - len(whole)} of {jobs} jobs failed, first ")
    assert any(error.endswith(why) for why in failed.values())
    for job, why in failed.items():
        assert any(job in line and f"failed: {why}" in line for line in printed.splitlines())
    assert [int(file.parent.name) for file in (tmp_path / "a").glob("*/metrics.json")] == whole
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_point_whose_words_do_not_compose_is_a_failed_point_of_the_table(tmp_path):
    settings = ["limit=2", "hydra.sweep.subdir=${hydra.runtime.choices.method}", f"hydra.sweep.dir={tmp_path / 'a'}"]
    printed, errors = run("sweep.py", "-m", "method=none,blonk,fastv", *settings, f"store={tmp_path / 'points'}", code=2)
    assert errors == [f"error: 1 of 3 points failed, first method=blonk: {UNKNOWN}"]
    rows = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8").splitlines()[2:]
    states = ("done", "failed", "done")
    assert [[cell.strip() for cell in row.split("|")[1:3]] for row in rows] == [
        [f"method={name}", state] for name, state in zip(("none", "blonk", "fastv"), states, strict=True)
    ]
    assert "2 points run together" in printed
    assert json.loads((tmp_path / "a" / "1" / "job.json").read_text(encoding="utf-8"))["error"] == UNKNOWN


@pytest.mark.slow
def test_a_training_job_whose_words_do_not_compose_lets_the_others_start(tmp_path):
    settings = ["layer=12,40", "trainer.steps=ten", f"hydra.sweep.dir={tmp_path / 'a'}"]
    _, errors = run("train.py", "-m", *settings, code=2)
    assert len(errors) == 1 and errors[0].startswith("error: trainer.steps ") and not (tmp_path / "a").exists()
    _, errors = run("train.py", "-m", "layer=40,twelve", f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert errors == ["error: 2 of 2 jobs failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate", "sweep"])
@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("batch_size=abc", "batch_size must be a whole number of at least 1, got abc"),
        ("batch_size=0", "batch_size must be a whole number of at least 1, got 0"),
        ("benchmark=mosaik_mme", "benchmark=mosaik_mme is not a preset; did you mean mosaic_mme"),
        ("batchsize=2", "batchsize is not a setting; did you mean batch_size"),
    ],
)
def test_a_wrong_word_that_all_jobs_share_stops_the_multirun_at_once(script, word, line, tmp_path):
    _, errors = run(f"{script}.py", "-m", "method=none,fastv", word, f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert len(errors) == 1 and errors[0].startswith(f"error: {line}")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_jobs_below_the_sweep_s_folder_count_and_those_of_an_older_sweep_do_not(tmp_path):
    old = {"number": 7, "point": "old", "status": "done", "overrides": ["layer=7"], "scores": {"total": 1.0}}
    write_json(tmp_path / "a" / "7" / "job.json", old)
    settings = ("limit=2", "method=blink_interp", f"hydra.sweep.dir={tmp_path / 'a'}", "hydra.sweep.subdir=job/${hydra.job.num}")
    _, errors = run("sweep.py", "-m", "layer=12,40", *settings, f"store={tmp_path / 'points'}", code=2)
    assert errors == ["error: 1 of 2 points failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]
    rows = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["layer=12", "layer=40"]


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_jobs_of_every_script_are_below_outputs(script):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(script, return_hydra_config=True)
    assert cfg.hydra.sweep.dir.startswith(f"outputs/{script}/")


@pytest.mark.slow
@pytest.mark.parametrize("word", ["store=", "store=null", "report=", "logger=wandb logger.project=a/b"])
def test_what_would_fail_every_point_is_said_at_once(word, tmp_path):
    _, errors = run("sweep.py", "-m", "method=none,blink", *word.split(), f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert len(errors) == 1 and errors[0].startswith(f"error: {word.split()[-1].partition('=')[0]}")
    assert not (tmp_path / "a").exists()
