"""SIGTERM and Ctrl-C: exit codes 143 and 130, one line that says how to go on, and no process that a run started is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support import scripts
from support.ends import answers, until

WORKERS = 2
TRAIN = ("train.py", "layers.indices=[1]", "data.global_batch=2", "data.train_size=400", "data.held_out_size=1", f"data.workers={WORKERS}")
CASES: dict[str, tuple[list[str], Callable[[Path], bool], str]] = {  # words, whether it is well under way, how to go on
    "evaluate": (
        ["evaluate.py", "method=none", "batch_size=1", "cost=0", f"workers={WORKERS}", "hydra.run.dir=OUT/run"],
        lambda out: bool(answers(out / "run" / "records.part")),
        "to go on, run the same command with hydra.run.dir=OUT/run",
    ),
    "multirun": (
        ["evaluate.py", "-m", "method=none,fastv", "batch_size=1", "cost=0", f"workers={WORKERS}", "hydra.sweep.dir=OUT/run"],
        lambda out: bool(answers(out / "run" / "0" / "records.part")),
        "run the same command again; jobs of a multirun that were finished are in their folders",
    ),
    "sweep": (
        ["sweep.py", "-m", "method=none,fastv", "batch_size=1", f"workers={WORKERS}", "hydra.sweep.dir=OUT/run", "store=OUT/points"],
        lambda out: any(answers(file) for file in out.glob("points/*/records.part")),
        "to go on, run the same sweep again: finished points and all answers so far are in the store",
    ),
    "train": (
        [*TRAIN, "trainer.callbacks.checkpoint.every_n_train_steps=1", "hydra.run.dir=OUT/run"],
        lambda out: (out / "run" / "last.ckpt").exists(),
        "go on from its last checkpoint with the same settings and resume=OUT/run",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "number"),
    [
        ("evaluate", signal.SIGTERM),
        ("evaluate", signal.SIGINT),
        ("multirun", signal.SIGTERM),
        ("sweep", signal.SIGTERM),
        ("train", signal.SIGTERM),
        ("train", signal.SIGINT),
    ],
)
def test_a_stopped_run_says_how_to_go_on_and_leaves_no_process(case, number, tmp_path):
    if number == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("a shell ignores Ctrl-C for what runs behind &")
    words, under_way, going_on = CASES[case]
    (tmp_path / "said").mkdir()
    process = scripts.start([word.replace("OUT", str(tmp_path)) for word in words], str(tmp_path / "said"))
    until(process, lambda: under_way(tmp_path) or (not process.is_alive() and pytest.fail((tmp_path / "said" / "err").read_text("utf-8"))))
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= WORKERS, "the processes that read images"
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert psutil.wait_procs(started, timeout=10)[1] == []
    lines = (tmp_path / "said" / "err").read_text(encoding="utf-8").splitlines()
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert len(lines) == 1 and lines[0].startswith(f"stopped by {name}"), lines
    assert lines[0].endswith(going_on.replace("OUT", str(tmp_path)))
    assert not [path for path in tmp_path.rglob("*.part") if path.name != "records.part"]
