"""Runs killed at random moments (SIGKILL), and the next one: nothing lost, nothing doubled, nothing left over. More of them: ``python -m
bench kill runs=200``."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
from support import scripts

from bench import kill


class Forked:
    """A command in a process forked from one that has imported everything."""

    def __init__(self, words: list[str]):
        self.folder = tempfile.TemporaryDirectory()
        self.process = scripts.start(words, self.folder.name)

    def ended(self) -> bool:
        return not self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> tuple[int, str]:
        self.process.join()
        output = "".join(
            path.read_text("utf-8") for path in map(Path, (f"{self.folder.name}/out", f"{self.folder.name}/err")) if path.is_file()
        )
        self.folder.cleanup()
        return self.process.exitcode or 0, output


@pytest.fixture(scope="module", autouse=True)
def server():
    """Starts the server of ``scripts`` once, so that no run's seconds hold its start."""
    scripts.run(["-m", "blink_exp"])


@pytest.mark.slow
@pytest.mark.parametrize("case", kill.CASES, ids=lambda case: case.name)
def test_what_a_killed_run_and_the_next_one_leave_is_what_an_unbroken_one_leaves(case, tmp_path):
    seconds = kill.unbroken(case, tmp_path / "whole", Forked)
    seed = random.randrange(10**6)
    done = kill.trial(case, tmp_path / "whole", seconds, tmp_path / "killed", seed, Forked)
    print(done)
    assert done.kills and not done.problems, str(done)


def run_of(folder: Path, ids: list[str], **metrics: object) -> Path:
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "records.jsonl").write_text("".join(json.dumps({"id": name}) + "\n" for name in ids), encoding="utf-8")
    (folder / "run" / "metrics.json").write_text(json.dumps({"seconds": 1.5, "scores": {"accuracy": 50.0}, **metrics}), encoding="utf-8")
    return folder


def test_differences_are_seen(tmp_path):
    case = kill.CASES[0]
    whole = run_of(tmp_path / "whole", ["a", "b"], cost={"prefill_seconds": 1, "kv_bytes": 8})
    same = run_of(tmp_path / "same", ["a", "b"], seconds=9, kept=3, cost={"prefill_seconds": 2, "kv_bytes": 8})
    assert kill.differences(case, whole, same) == []
    double = run_of(tmp_path / "double", ["a", "b", "b"], cost={"prefill_seconds": 2, "kv_bytes": 9})
    (double / "run" / "records.rank1.part").write_text("", encoding="utf-8")
    assert kill.differences(case, whole, double) == [
        "run/records.rank1.part is left over",
        "run/metrics.json differs",
        "run/records.jsonl differs",
    ]
    (same / "run" / "metrics.json").unlink()
    assert kill.differences(case, whole, same) == ["run/metrics.json is missing"]
    assert kill.differences(case, tmp_path / "none", tmp_path / "none") == ["there is nothing to compare"]


def test_code_that_is_worked_on_meanwhile_is_no_difference(tmp_path):
    for name, text in (("a", "Measured with commit 0123456789."), ("b", "Measured with commits 0123456789, abcdef0123+changes.")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "c").write_text("Measured with commit 0123456789. 1 missing.", encoding="utf-8")
    a, b, c = (kill.content(tmp_path / name, tmp_path) for name in "abc")
    assert a == b != c


def test_a_training_goes_on_from_a_checkpoint_that_was_written_to_its_end(tmp_path):
    (case,) = (case for case in kill.CASES if case.name == "training")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt.part").touch()
    assert not any(word.startswith("resume=") for word in case.command(tmp_path))
    (tmp_path / "run" / "last.ckpt.old").touch()
    assert f"resume={tmp_path}/run" in case.command(tmp_path)
