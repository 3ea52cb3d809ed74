"""Start-up: which processes are run, and what their numbers become."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from bench import startup


def test_each_number_stands_in_its_row(monkeypatch):
    ran: list[list[str]] = []

    def output(command: list[str]) -> str:
        ran.append(command)
        if "import time; begun" in command[-1]:
            return {"hydra": "0.1", "torch": "1.5"}.get(command[-1].split("import ")[-1].split(";")[0], "2.5") + "\n"
        return "a line that a library prints\n0.25 3.0 0.5 0.125\n"

    monkeypatch.setattr(startup, "output", output)
    monkeypatch.setattr(startup, "median_seconds", lambda work, repeats, warm: (work(), {1: 0.2, 3: 0.3}[repeats])[1])
    result = startup.measure(repeats="3")
    seconds = {row["what"]: row["seconds"] for row in result["rows"]}
    assert [seconds[f"python {name}.py --help"] for name in ("train", "evaluate", "sweep")] == [0.3] * 3
    assert (seconds["import hydra"], seconds["import torch"]) == (0.1, 1.5)
    assert [seconds[part] for part in startup.PARTS] == [0.25, 3.0, 0.5, 0.125]
    assert result["bars"] == [{"what": "slowest --help, seconds", "value": 0.3, "bar": "<= 1", "met": True}]
    folders = [command[-1] for command in ran if "limit=1" in command]
    assert len(folders) == len(set(folders)) == 3  # a finished folder would be resumed, not run
    assert all(command[0] == sys.executable for command in ran)


def test_seconds_of_a_failure_are_no_result():
    with pytest.raises(RuntimeError, match=r"failed: \['ZeroDivisionError"):
        startup.output([sys.executable, "-c", "1 / 0"])
    assert startup.split([sys.executable, "-c", "print('x'); print(1.5, 2)"]) == [1.5, 2.0]


def test_what_is_imported_is_there():
    assert all(importlib.util.find_spec(name) for name in startup.MODULES)
