"""Commands run to their end or stopped on the way, and the answers that they leave behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

from support import scripts


def run(*words: str, code: int = 0) -> tuple[str, list[str]]:
    """(stdout, lines of stderr)"""
    done = scripts.run(words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr.splitlines()


def answers(file: Path) -> list[str]:
    """Ids in a records file, whole lines only."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [r["id"] for line in lines if line.endswith("\n") and "id" in (r := json.loads(line))]


def answering(words, folder: Path, file: Path):
    """The process of a command that has answered into ``file``. What it says goes to ``folder``/said/out and err."""
    (folder / "said").mkdir()
    process = scripts.start(words, str(folder / "said"))
    until(process, lambda: answers(file))
    return process


def until(process, ready) -> None:
    for _ in range(6000):
        if ready() or not process.is_alive():
            break
        time.sleep(0.05)
    assert process.is_alive() and ready()
