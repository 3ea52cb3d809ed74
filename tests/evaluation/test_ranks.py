"""One evaluation on several processes: the files of one process, to the byte, and one line where a process is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import scripts
from support.easy import easy_vqa
from support.ends import answering, answers, run

# metrics.json of the same run twice differs in no more than this
OWN = ("seconds",)
WORDS = ("evaluate.py", "method=blink", "limit=10", "batch_size=4", "cost=0")
LONG = ("evaluate.py", "method=none", "limit=20", "batch_size=1", "cost=0")  # to be stopped on the way


def metrics(folder: Path) -> dict:
    return {k: v for k, v in json.loads((folder / "metrics.json").read_text("utf-8")).items() if k not in OWN}


def same(a: Path, b: Path) -> None:
    assert (a / "records.jsonl").read_bytes() == (b / "records.jsonl").read_bytes()
    assert metrics(a) == metrics(b)
    assert (a / "config.yaml").read_bytes() == (b / "config.yaml").read_bytes()
    assert {p.name for p in a.iterdir()} == {p.name for p in b.iterdir()}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    run(*WORDS, f"hydra.run.dir={out}")
    return out


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_of_torchrun_write_the_files_of_one(one, tmp_path, count):
    """10 samples in batches of 4: ranks with unlike numbers of batches."""
    first, *others = scripts.run_ranks([*WORDS, f"hydra.run.dir={tmp_path / 'run'}"], count)
    assert first.returncode == 0, first.stdout + first.stderr
    assert [(r.returncode, r.stdout) for r in others] == [(0, "")] * (count - 1)
    assert "blink on mosaic_mme: 10 of 10 (100 %)" in first.stdout
    same(tmp_path / "run", one)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_rank_without_a_sample_and_images_that_cannot_be_read(tmp_path):
    data = easy_vqa(tmp_path / "data" / "set", images=4)
    words = ["evaluate.py", "method=none", "benchmark=easyvqa", f"benchmark.path={data}", "cost=0", "skip_limit=0.5", "batch_size=8"]
    run(*words, f"hydra.run.dir={tmp_path / 'one'}")
    first, *others = scripts.run_ranks([*words, f"hydra.run.dir={tmp_path / 'three'}"], 3)
    assert [first.returncode, *(r.returncode for r in others)] == [0, 0, 0], first.stderr
    same(tmp_path / "three", tmp_path / "one")
    assert metrics(tmp_path / "one")["skipped"]
    first, _ = scripts.run_ranks([*words, "skip_limit=0.01", f"hydra.run.dir={tmp_path / 'strict'}"], 2)
    (line,) = first.stderr.splitlines()
    assert first.returncode == 2 and "samples (" in line and "more than skip_limit=0.01 allows" in line  # of all ranks together
    assert answers(tmp_path / "strict" / "records.part")


def ranks_of(process) -> list[psutil.Process]:
    """The processes that ``process`` started to answer, by rank."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_ends_the_run_with_one_line_and_the_next_goes_on(tmp_path, number):
    out = tmp_path / "run"
    words = [*LONG, f"hydra.run.dir={out}"]
    process = answering([*words, "devices=3"], tmp_path, out / "records.rank2.part")
    children = ranks_of(process)
    assert len(children) == 2
    children[-1].send_signal(number)
    process.join()
    (line,) = (tmp_path / "said" / "err").read_text("utf-8").splitlines()
    memory = ", perhaps as memory ran out" if number == signal.SIGKILL else ""
    assert line == (
        f"error: the process of rank 2 of 3 was killed ({number.name}){memory}; to go on, run the same command with hydra.run.dir={out}"
    )
    assert process.exitcode == 2
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    done = {name for file in out.glob("records*.part") for name in answers(file)}
    printed, _ = run(*words, "devices=2" if number == signal.SIGKILL else "devices=1")
    assert f"going on: {len(done)} of 20 samples are done" in printed
    run(*LONG, f"hydra.run.dir={tmp_path / 'one'}")
    assert (out / "records.jsonl").read_bytes() == (tmp_path / "one" / "records.jsonl").read_bytes()
    assert metrics(out) == metrics(tmp_path / "one") | {"kept": len(done)}
    assert not list(out.glob("*.part"))


@pytest.mark.slow
def test_a_signal_ends_all_processes_with_one_line(tmp_path):
    out = tmp_path / "run"
    process = answering([*LONG, "devices=2", f"hydra.run.dir={out}"], tmp_path, out / "records.rank1.part")
    children = ranks_of(process)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    (line,) = (tmp_path / "said" / "err").read_text("utf-8").splitlines()
    assert line == f"stopped by SIGTERM; to go on, run the same command with hydra.run.dir={out}"
    assert children and not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.slow
def test_a_killed_rank_0_leaves_no_process_behind(tmp_path):
    out = tmp_path / "run"
    process = answering([*LONG, "devices=2", f"hydra.run.dir={out}"], tmp_path, out / "records.rank1.part")
    children = ranks_of(process)
    process.kill()
    process.join()
    for _ in range(100):
        if not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process is still there")
    assert (tmp_path / "said" / "err").read_text("utf-8") == ""


SWEEP = ("sweep.py", "-m", "method=none,fastv", "limit=6", "batch_size=2")


def points_of(folder: Path) -> dict[str, tuple[bytes, dict]]:
    """{name of a point: its records, its metrics}"""
    drop = (*OWN, "together", "kept")
    return {
        point.name: ((point / "records.jsonl").read_bytes(), {k: v for k, v in metrics(point).items() if k not in drop})
        for point in (folder / "points").iterdir()
        if not point.name.startswith(".")
    }


@pytest.mark.slow
@pytest.mark.parametrize("share", ["true", "false"])
def test_a_sweep_on_two_devices_leaves_the_points_of_one(tmp_path, share):
    words = [[*SWEEP, f"share={share}", f"store={tmp_path / n / 'points'}", f"hydra.sweep.dir={tmp_path / n / 'sweep'}"] for n in "ab"]
    run(*words[0])
    first, other = scripts.run_ranks(words[1], 2)
    assert (first.returncode, other.returncode, other.stdout) == (0, 0, ""), first.stdout + first.stderr
    assert ("2 points run together on mosaic_mme" in first.stdout) == (share == "true")
    assert len(points_of(tmp_path / "a")) == 2 and points_of(tmp_path / "a") == points_of(tmp_path / "b")
    assert (tmp_path / "a" / "sweep" / "summary.md").read_bytes() == (tmp_path / "b" / "sweep" / "summary.md").read_bytes()
    assert not [*tmp_path.rglob("*.part"), *tmp_path.rglob("together.json")]


@pytest.mark.slow
def test_torchrun_itself(one, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *WORDS, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(words, cwd=scripts.ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("blink on mosaic_mme: 10 of 10 (100 %)") == 1
    same(tmp_path / "run", one)
    words[-1] = "limit=none"
    refused = subprocess.run(words, cwd=scripts.ROOT, capture_output=True, text=True, timeout=500)
    assert refused.returncode and not refused.stdout
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith("error: limit must be a whole number")
    assert "blink_exp" not in refused.stderr.replace(str(scripts.ROOT), "")  # the rest is torchrun's own report
