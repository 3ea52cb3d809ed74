"""How runs end: stopped, incomplete, beside others, one job of many wrong. And that the next run goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import easy_vqa
import pytest
from hydra import compose, initialize_config_dir
from support import scripts
from support.refusals import refusal

from blink_exp import tracking
from blink_exp.cli import CONF
from blink_exp.evaluation import identity, shared_runs
from blink_exp.evaluation.evaluator import check_complete, incomplete
from blink_exp.evaluation.records import read
from blink_exp.evaluation.terminal import Lines
from blink_exp.files import write_json
from blink_exp.settings.compose import composed
from blink_exp.studies.point import guarded, measured_point

SOURCE = Path(easy_vqa.__file__).parent / "data" / "test"


def run(*words: str, code: int = 0) -> tuple[str, list[str]]:
    """(stdout, lines of stderr)"""
    done = scripts.run(words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr.splitlines()


def answers(file: Path) -> list[str]:
    """Ids in a records file, whole lines only."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [r["id"] for line in lines if line.endswith("\n") and "id" in (r := json.loads(line))]


def until(process, ready) -> None:
    for _ in range(6000):
        if ready() or not process.is_alive():
            break
        time.sleep(0.05)
    assert process.is_alive() and ready()


# stopped, and beside others


def test_a_stopped_evaluation_says_how_to_go_on_and_goes_on_and_keeps_others_out(tmp_path):
    out = tmp_path / "run"
    words = ["evaluate.py", "method=none", "limit=40", "batch_size=1", "cost=0", f"hydra.run.dir={out}"]
    (tmp_path / "said").mkdir()
    process = scripts.start(words, str(tmp_path / "said"))
    until(process, lambda: answers(out / "records.part"))
    _, errors = run(*words, code=2)
    assert errors == [
        f"error: hydra.run.dir={out} is in use by another run; wait until that has ended, or give another folder with hydra.run.dir=..."
    ]
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    line = f"stopped by SIGTERM; to go on, run the same command with hydra.run.dir={out}"
    assert (tmp_path / "said" / "err").read_text(encoding="utf-8").splitlines() == [line]
    first = answers(out / "records.part")
    printed, _ = run(*words)
    assert f"going on: {len(first)} of 40 samples are done" in printed
    assert "none on mosaic_mme: 40 of 40 (100 %)" in printed  # the output is a file
    ids = answers(out / "records.jsonl")
    assert len(ids) == len(set(ids)) == 40 and set(first) <= set(ids)
    assert not list(out.rglob("*.part"))


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="a shell ignores Ctrl-C for what runs behind &")
def test_a_sweep_that_is_interrupted_says_that_the_same_sweep_goes_on(tmp_path):
    words = ["sweep.py", "-m", "method=none,fastv", "batch_size=1", f"store={tmp_path / 'points'}"]
    (tmp_path / "said").mkdir()
    process = scripts.start([*words, f"hydra.sweep.dir={tmp_path / 'a'}"], str(tmp_path / "said"))
    until(process, lambda: any(answers(file) for file in tmp_path.glob("points/*/records.part")))
    _, errors = run(*words, f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert errors[0].startswith(f"error: hydra.sweep.dir={tmp_path / 'a'} is in use by another run")
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    (line,) = (tmp_path / "said" / "err").read_text(encoding="utf-8").splitlines()
    assert line == "stopped by Ctrl-C; to go on, run the same sweep again: finished points and all answers so far are in the store"


# one of many


def test_a_wrong_job_of_a_multirun_lets_the_others_run(tmp_path):
    own = ("limit=2", "cost=0", "method=blink_interp", f"hydra.sweep.dir={tmp_path / 'a'}", "hydra.sweep.subdir=job/${hydra.job.num}")
    printed, errors = run("evaluate.py", "-m", "layer=40,12,41", *own, code=2)
    assert errors == ["error: 2 of 3 jobs failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]
    assert (tmp_path / "a" / "job" / "1" / "metrics.json").is_file()
    assert "layer=41 method=blink_interp failed: layer=41 is outside" in printed.replace("limit=2 cost=0 ", "")


WRONG = "thresholds.tau_exp must be a number in [0, 1], got high"
UNKNOWN = "method=blonk is not a preset; did you mean blink or blink_hero or blink_interp?"
FORCE = "force must be true or false, got 7"


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
    own = ["limit=2", "cost=0", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'a'}"]
    printed, (error,) = run("evaluate.py", "-m", *words, *own, code=2)
    jobs = 4 if len(failed) == 2 else 2
    assert error.startswith(f"error: {jobs - len(whole)} of {jobs} jobs failed, first ")
    assert any(error.endswith(why) for why in failed.values())
    for job, why in failed.items():
        assert any(job in line and f"failed: {why}" in line for line in printed.splitlines())
    assert [int(file.parent.name) for file in (tmp_path / "a").glob("*/metrics.json")] == whole
    assert "Traceback" not in printed and not (tmp_path / "a" / ".jobs").exists()


def test_a_point_whose_words_do_not_compose_is_a_failed_point_of_the_table(tmp_path):
    own = ["limit=2", "hydra.sweep.subdir=${hydra.runtime.choices.method}", f"hydra.sweep.dir={tmp_path / 'a'}"]
    printed, errors = run("sweep.py", "-m", "method=none,blonk,fastv", *own, f"store={tmp_path / 'points'}", code=2)
    assert errors == [f"error: 1 of 3 points failed, first method=blonk: {UNKNOWN}"]
    rows = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8").splitlines()[2:]
    states = ("done", "failed", "done")
    assert [[cell.strip() for cell in row.split("|")[1:3]] for row in rows] == [
        [f"method={name}", state] for name, state in zip(("none", "blonk", "fastv"), states, strict=True)
    ]
    assert "2 points run together" in printed
    assert json.loads((tmp_path / "a" / "1" / "job.json").read_text(encoding="utf-8"))["error"] == UNKNOWN


def test_a_training_job_whose_words_do_not_compose_lets_the_others_start(tmp_path):
    own = ["layer=12,40", "trainer.steps=ten", f"hydra.sweep.dir={tmp_path / 'a'}"]
    _, errors = run("train.py", "-m", *own, code=2)
    assert len(errors) == 1 and errors[0].startswith("error: trainer.steps ") and not (tmp_path / "a").exists()
    _, errors = run("train.py", "-m", "layer=40,twelve", f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert errors == ["error: 2 of 2 jobs failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]


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


def test_jobs_below_the_sweep_s_folder_count_and_those_of_an_older_sweep_do_not(tmp_path):
    (tmp_path / "a" / "7").mkdir(parents=True)
    old = {"point": "old", "status": "done", "overrides": ["layer=7"], "scores": {"total": 1.0}}
    for place in ("7/job.json", ".jobs/7.json"):  # of a whole one, and of one that was killed
        write_json(tmp_path / "a" / place, old)
    own = ("limit=2", "method=blink_interp", f"hydra.sweep.dir={tmp_path / 'a'}", "hydra.sweep.subdir=job/${hydra.job.num}")
    _, errors = run("sweep.py", "-m", "layer=12,40", *own, f"store={tmp_path / 'points'}", code=2)
    assert errors == ["error: 1 of 2 points failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"]
    rows = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["layer=12", "layer=40"]
    assert not (tmp_path / "a" / ".jobs").exists()


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_jobs_of_every_script_are_below_outputs(script):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(script, return_hydra_config=True)
    assert cfg.hydra.sweep.dir.startswith(f"outputs/{script}/")


@pytest.mark.parametrize("word", ["store=", "store=null", "report=", "logger=wandb logger.project=a/b"])
def test_what_would_fail_every_point_is_said_at_once(word, tmp_path):
    _, errors = run("sweep.py", "-m", "method=none,blink", *word.split(), f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert len(errors) == 1 and errors[0].startswith(f"error: {word.split()[-1].partition('=')[0]}")
    assert not (tmp_path / "a").exists()


# incomplete


@pytest.fixture
def data(tmp_path) -> Path:
    """Four images of easy-VQA with ten questions each."""
    rows = json.loads((SOURCE / "questions.json").read_text(encoding="utf-8"))
    ids = list(dict.fromkeys(row[2] for row in rows))[:4]
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps([row for row in rows if row[2] in ids]), encoding="utf-8")
    for name in ids:
        shutil.copy2(SOURCE / "images" / f"{name}.png", folder / "images")
    return folder


@pytest.fixture
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def away(data: Path, count: int) -> list[Path]:
    """Takes ``count`` images out of the data."""
    files = sorted((data / "images").iterdir())[:count]
    (data.parent / "away").mkdir(exist_ok=True)
    return [Path(shutil.move(file, data.parent / "away")) for file in files]


def back(data: Path, files: list[Path]) -> None:
    for file in files:
        shutil.move(file, data / "images")


def point(data: Path, *words: str):
    return composed("sweep", [f"benchmark.path={data}", "benchmark=easyvqa", "method=none", f"store={data.parent / 'points'}", *words])


def test_a_point_without_its_images_fails_and_goes_on_when_they_are_back(data, hydra, capsys):
    questions = len(json.loads((data / "questions.json").read_text(encoding="utf-8")))
    gone = away(data, 3)
    row = guarded(point(data), "p")
    assert row["status"] == "failed"
    assert "samples" in row["error"] and "were skipped, more than skip_limit=0.01 allows, first easyvqa/test/00000: " in row["error"]
    assert not list(data.parent.glob("points/*/metrics.json"))
    (parts,) = data.parent.glob("points/*/records.part")
    first = answers(parts)
    assert first
    back(data, gone)
    capsys.readouterr()
    row = measured_point(point(data))
    assert (row["samples"], row["skipped_samples"], row["reused"]) == (questions, 0, False)
    assert f"going on: {len(first)} of {questions} samples are done" in capsys.readouterr().out
    assert sorted(r["id"] for r in read(row["folder"])) == sorted({r["id"] for r in read(row["folder"])})
    assert not any("image_file" in r for r in read(row["folder"]))
    assert not list(data.parent.rglob("*.part"))
    assert measured_point(point(data))["reused"]
    away(data, 3)
    assert guarded(point(data), "p")["status"] == "failed"  # other data, another point


def test_an_incomplete_point_that_was_allowed_is_not_taken_where_it_is_not(data, hydra):
    away(data, 1)
    row = measured_point(point(data, "skip_limit=0.5"))
    assert row["skipped_samples"] > 0 and row["first_skipped"].startswith("easyvqa/test/")
    assert shared_runs.stored_point(point(data, "skip_limit=0.5"))[1] is not None
    assert shared_runs.stored_point(point(data))[1] is None


def test_a_changed_image_is_asked_about_again(data, hydra, capsys):
    gone = away(data, 1)
    assert guarded(point(data), "p")["status"] == "failed"
    (parts,) = data.parent.glob("points/*/records.part")
    known = len(answers(parts))
    changed = sorted((data / "images").iterdir())[0]
    os.utime(changed, (1, 1))
    back(data, gone)
    capsys.readouterr()
    measured_point(point(data))
    said = capsys.readouterr().out
    assert "going on: " in said and f"going on: {known} of" not in said


def test_an_incomplete_evaluation_ends_with_one_line_and_keeps_its_records(data, tmp_path):
    gone = away(data, 3)
    words = ("evaluate.py", "method=none", "cost=0", "benchmark=easyvqa", f"benchmark.path={data}", f"hydra.run.dir={tmp_path / 'run'}")
    _, errors = run(*words, code=2)
    (line,) = errors
    assert line.startswith("error: ") and "were skipped, more than skip_limit=0.01 allows, first easyvqa/test/00000: " in line
    assert line.endswith(f"with hydra.run.dir={tmp_path / 'run'} the same command goes on from the answers that are there")
    assert not (tmp_path / "run" / "metrics.json").exists() and answers(tmp_path / "run" / "records.part")
    back(data, gone)
    printed, _ = run(*words)
    assert "going on: " in printed and (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("skipped", "samples", "limit", "wanted"),
    [
        (1, 99, 0.01, False),
        (2, 98, 0.01, True),
        (10, 990, 0.01, False),
        (11, 989, 0.01, True),
        (1, 1, 0.01, False),
        (1, 9, 0, True),
        (0, 9, 0, False),
        (59, 11, 1, False),
    ],
)
def test_how_many_samples_may_be_skipped(skipped, samples, limit, wanted):
    assert incomplete(skipped, samples, limit) == wanted


def test_the_line_of_an_incomplete_run_counts_and_names_the_first():
    skipped = [{"id": "b/1", "why": "no such file"}, {"id": "b/2", "why": "cut off"}]
    said = refusal(lambda: check_complete([{}] * 8, skipped, 0.1))
    assert said.startswith("2 of 10 samples (20.0 %) were skipped, more than skip_limit=0.1 allows, first b/1: no such file; ")
    assert refusal(lambda: check_complete([], skipped, 1)).startswith("none of the 2 samples could be read, first b/1: no such file")


# what a point is known by


def test_image_files_are_part_of_what_a_point_is_known_by(tmp_path):
    def digests() -> dict[str, str]:
        return identity.digests(replace(composed("evaluate", ["method=none"]), benchmark={"path": str(tmp_path)}))

    (tmp_path / "questions.json").write_text("[]", encoding="utf-8")
    assert "images" not in digests()
    seen = [digests()["data"]]
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for name, data in (("a.png", b"1"), ("images/b.JPG", b"1"), ("images/deep/c.webp", b"1"), ("images/b.JPG", b"22")):
        (tmp_path / name).write_bytes(data)
        assert digests()["data"] == seen[0]
        seen.append(digests()["images"])
    os.utime(tmp_path / "a.png", (1, 1))
    seen.append(digests()["images"])
    (tmp_path / "a.png").unlink()
    seen.append(digests()["images"])
    assert len(set(seen)) == len(seen)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.png").write_bytes(b"1")
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    assert digests()["images"] == seen[-1]


def test_a_slow_look_through_a_folder_is_used_again_for_a_while(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"1")
    clock = iter([0.0, 1.0, 19.9, 20.1, 20.1])
    monkeypatch.setattr(identity.time, "monotonic", lambda: next(clock))
    first = identity.image_stamp(tmp_path)  # took a second
    (tmp_path / "a.png").write_bytes(b"22")
    assert identity.image_stamp(tmp_path) == first
    assert identity.image_stamp(tmp_path) != first


# progress, loggers


def test_progress_in_a_file_is_a_line_a_tenth_and_one_after_thirty_seconds(capsys):
    now = [0.0]
    lines = Lines(1000, "none on mme", lambda: now[0])
    for _ in range(1000):
        now[0] += 0.1
        lines.advance(1)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10
    assert said[0] == "none on mme: 100 of 1000 (10 %), 10.0 s, about 1 min 30 s left"
    assert said[-1] == "none on mme: 1000 of 1000 (100 %), 1 min 40 s"
    lines = Lines(1000, "none on mme", lambda: now[0])
    for _ in range(5):
        now[0] += 20
        lines.advance(1)
    assert [line.partition(" of")[0] for line in capsys.readouterr().out.splitlines()] == ["none on mme: 2", "none on mme: 4"]
    lines = Lines(None, "duts", lambda: now[0])
    now[0] += 31
    lines.advance(16)
    assert capsys.readouterr().out == "duts: 16, 31.0 s\n"


WANDB = {"_target_": "blink_exp.tracking.loggers.Wandb", "project": "p", "entity": None, "mode": "offline", "rows": 1, "images": 1}
MLFLOW = {"_target_": "blink_exp.tracking.loggers.MLflow", "project": "p", "uri": None, "rows": 1, "images": 1}


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        (WANDB | {"project": "my/project"}, "logger.project=my/project is refused by W&B (cannot contain"),
        (WANDB | {"project": "x" * 129}, "is refused by W&B (exceeded 128 characters)"),
        (WANDB | {"project": ""}, "logger.project must be the name of a project, got nothing"),
        (WANDB | {"project": None}, "logger.project must be the name of a project, got null"),
        (WANDB | {"entity": "a team"}, "logger.entity=a team is no user or team of W&B"),
        (WANDB | {"mode": "onlin"}, "logger.mode must be one of online, offline, disabled, got onlin; did you mean online"),
        (WANDB | {"images": -1}, "logger.images must be a whole number of at least 0, got -1"),
        (MLFLOW | {"project": " "}, "logger.project must be the name of an experiment"),
        (MLFLOW | {"project": "x" * 501}, "is no name of an experiment; use 1 to 500 characters"),
        (MLFLOW | {"uri": "localhost:5000"}, "logger.uri=localhost:5000 is no address of MLflow"),
        (MLFLOW | {"uri": "sqlite"}, "logger.uri=sqlite is no address of MLflow"),
        (
            {"_target_": "blink_exp.tracking.loggers.TensorBoard", "rows": "many", "images": 1},
            "logger.rows must be a whole number of at least 0, got many",
        ),
    ],
)
def test_what_a_logger_would_refuse_is_said_before_any_work(logger, said):
    assert said in refusal(lambda: tracking.check({"logger": logger}))


@pytest.mark.parametrize(
    "logger",
    [
        WANDB | {"project": "a b.c-d_e", "entity": "team-1"},
        MLFLOW | {"uri": "http://host:5000"},
        MLFLOW | {"uri": "databricks"},
        MLFLOW | {"uri": "sqlite:////all/runs.db", "project": "a/b"},
    ],
)
def test_what_a_logger_takes_is_taken(logger):
    tracking.check({"logger": logger})
