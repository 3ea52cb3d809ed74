"""Runs whose disk fills up, cannot be written or goes away: one line, exit code 2, and what was whole stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import scripts
from support.ends import answering, answers, until
from support.refusals import one_line_of
from support.small_disks import make_read_only, mounted

from blink_exp.training import resume

ONE = ("method=none", "limit=2", "cost=0")
TRAIN = (
    *(
        "train.py",
        "layers.indices=[1]",
        "data.global_batch=2",
        "data.held_out_size=1",
        "trainer.callbacks.checkpoint.every_n_train_steps=1",
    ),
    "trainer.log_every_n_steps=1",
)


def parts(folder: Path) -> list[Path]:
    """Files that were not finished; records.part holds answers that are, from which the next run goes on."""
    return [path for path in folder.rglob("*") if ".part" in path.name and path.name != "records.part"]


def test_a_training_on_a_disk_that_fills_up_keeps_its_last_checkpoint(tmp_path):
    """The disk has room for one checkpoint of 0.7 MB and not for a second beside it."""
    with mounted(tmp_path / "disk", "1200k") as disk:
        line = one_line_of([*TRAIN, "tokensr=conv", "data.train_size=8", f"hydra.run.dir={disk / 'run'}"])
        assert "disk is full" in line and str(disk) in line and "free some space" in line
        checkpoints = [disk / "run" / name for name in resume.NAMES if (disk / "run" / name).exists()]
        assert checkpoints and resume.read(checkpoints[0]).step >= 1
        assert parts(disk) == [] and not list(disk.rglob("*.safetensors")) and not list(disk.rglob("metrics.json"))


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_ends_with_the_disk_and_not_with_its_points(tmp_path):
    with mounted(tmp_path / "disk", "16k") as disk:
        words = ["sweep.py", "-m", *ONE, "seed=0,1", f"hydra.sweep.dir={disk / 'sweep'}", f"store={disk / 'points'}"]
        done = scripts.run(words)
        assert done.returncode == 2, done.stdout + done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ") and "disk is full" in last and "Traceback" not in done.stderr
        assert parts(disk / "points") == []


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate.py", "train.py", "sweep.py"])
def test_a_folder_that_cannot_be_written_is_one_line_with_the_setting(script, tmp_path):
    with mounted(tmp_path / "disk", "1m") as disk:
        make_read_only(disk)
        words = {
            "evaluate.py": [script, *ONE, f"hydra.run.dir={disk / 'run'}"],
            "train.py": [*TRAIN, "data.train_size=2", f"hydra.run.dir={disk / 'run'}"],
            "sweep.py": [script, "-m", *ONE, f"hydra.sweep.dir={tmp_path / 'sweep'}", f"store={disk / 'points'}"],
        }[script]
        done = scripts.run(words)
        assert done.returncode == 2, done.stdout + done.stderr
        last = done.stderr.splitlines()[-1]
        assert f"{disk}" in last and "read-only" in last, last
        assert ("store=" if script == "sweep.py" else "hydra.run.dir=") in last and list(disk.iterdir()) == []


@pytest.mark.slow
def test_a_run_folder_that_disappears_is_one_line_and_the_next_run_is_whole(tmp_path):
    out = tmp_path / "run"
    words = ["evaluate.py", "method=none", "limit=24", "batch_size=1", "cost=0", f"hydra.run.dir={out}"]
    process = answering(words, tmp_path, out / "records.part")
    shutil.rmtree(out)
    process.join()
    errors = (tmp_path / "said" / "err").read_text(encoding="utf-8")
    if process.exitcode == 0:  # the folder was made anew by the next write: then it is whole
        assert len(answers(out / "records.jsonl")) == json.loads((out / "metrics.json").read_text(encoding="utf-8"))["samples"]
        return
    (line,) = errors.splitlines()
    assert process.exitcode == 2 and line.startswith(f"error: {out}") and "its folder is gone; run the same command again" in line
    assert scripts.run([*words, "limit=2"]).returncode == 0 and len(answers(out / "records.jsonl")) == 2


def test_a_training_whose_folder_disappears_is_one_line(tmp_path):
    out = tmp_path / "run"
    (tmp_path / "said").mkdir()
    process = scripts.start([*TRAIN, "data.train_size=400", f"hydra.run.dir={out}"], str(tmp_path / "said"))
    until(process, lambda: (out / "last.ckpt").exists())
    shutil.rmtree(out, ignore_errors=True)
    process.join()
    lines = (tmp_path / "said" / "err").read_text(encoding="utf-8").splitlines()
    assert process.exitcode == 2 and lines[-1].startswith("error: "), lines
    assert str(out) in lines[-1] and "Traceback" not in "\n".join(lines)
