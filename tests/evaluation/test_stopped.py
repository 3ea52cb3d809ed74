"""Runs that are stopped: what they say, and that the same command goes on."""

from __future__ import annotations

import os
import signal

import pytest
from support import scripts
from support.ends import answering, answers, run, until


@pytest.mark.slow
def test_a_stopped_evaluation_says_how_to_go_on_and_goes_on_and_keeps_others_out(tmp_path):
    out = tmp_path / "run"
    words = ["evaluate.py", "method=none", "limit=12", "batch_size=1", "cost=0", f"hydra.run.dir={out}"]
    process = answering(words, tmp_path, out / "records.part")
    os.kill(process.pid, signal.SIGSTOP)  # so that it is not done before the other has looked
    _, errors = run(*words, code=2)
    assert errors == [
        f"error: hydra.run.dir={out} is in use by another run; wait until that has ended, or give another folder with hydra.run.dir=..."
    ]
    for each in (signal.SIGTERM, signal.SIGCONT):
        os.kill(process.pid, each)
    process.join()
    assert process.exitcode == 143
    line = f"stopped by SIGTERM; to go on, run the same command with hydra.run.dir={out}"
    assert (tmp_path / "said" / "err").read_text(encoding="utf-8").splitlines() == [line]
    first = answers(out / "records.part")
    printed, _ = run(*words)
    assert f"going on: {len(first)} of 12 samples are done" in printed
    assert "none on mosaic_mme: 12 of 12 (100 %)" in printed  # the output is a file
    ids = answers(out / "records.jsonl")
    assert len(ids) == len(set(ids)) == 12 and set(first) <= set(ids)
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
