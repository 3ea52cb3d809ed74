"""One run at a time in a folder and at a point of the store."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from support.refusals import refusal

from blink_exp.evaluation import locks


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Each test is a process of its own to the folders."""
    monkeypatch.setattr(locks, "_folders", {})


def elsewhere(monkeypatch) -> None:
    """From here on as another process, while the first one still holds what it has."""
    monkeypatch.setattr(locks, "_folders", {})


def test_a_folder_is_claimed_once_and_refused_by_name(tmp_path, monkeypatch):
    first = locks._folders
    assert locks.claim(tmp_path / "a", "hydra.run.dir") == tmp_path / "a"
    locks.claim(tmp_path / "a", "hydra.run.dir")  # the same process may
    elsewhere(monkeypatch)
    text = refusal(lambda: locks.claim(tmp_path / "a", "hydra.run.dir"))
    assert text.startswith(f"hydra.run.dir={tmp_path / 'a'} is in use by another run; wait") and "another folder" in text
    locks.claim(tmp_path / "b", "hydra.run.dir")
    for lock in first.values():
        lock.release()
    locks.claim(tmp_path / "a", "hydra.run.dir")


@pytest.mark.parametrize("folder", ["", " ", None])
def test_a_folder_without_a_name_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "names no folder; give one" in refusal(lambda: locks.claim(folder, "hydra.run.dir"))
    assert not list(tmp_path.iterdir())


def test_what_is_free_is_taken_and_nobody_waits_for_the_rest(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    with locks.free([b, a]) as mine:
        assert mine == [a, b]
        with locks.free([c, b, a]) as others:
            assert others == [c]
    with locks.free([a, b, c]) as mine:
        assert mine == [a, b, c]
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]  # nothing that looks like a result


def test_who_waits_says_so_and_goes_on_when_the_other_is_done(tmp_path, capsys):
    order: list[str] = []

    def other() -> None:
        with locks.waited(tmp_path / "point"):
            order.append("other has it")
            held.set()
            time.sleep(0.5)
            order.append("other is done")

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with locks.waited(tmp_path / "point"):
        order.append("mine")
    thread.join()
    assert order == ["other has it", "other is done", "mine"]
    assert f"waiting for {Path(tmp_path / 'point')}, which another run is working on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [NotImplementedError("FileSystem does not appear to support flock"), *(OSError(n, os.strerror(n)) for n in locks.UNSUPPORTED)]
)
def test_a_file_system_without_locks_is_one_line_and_leaves_nothing_locked(error, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise error

    def enter(manager) -> None:
        with manager:
            raise AssertionError("locked")

    monkeypatch.setattr("fcntl.flock", flock)
    acts = {
        tmp_path / "a": lambda: locks.claim(tmp_path / "a", "hydra.run.dir"),
        tmp_path / "b": lambda: enter(locks.waited(tmp_path / "b" / "point")),
        tmp_path / "c": lambda: enter(locks.free([tmp_path / "c" / "point"])),
    }
    for folder, act in acts.items():
        text = refusal(act)
        assert text.startswith(f"{folder} is on a file system without file locks") and "hydra.run.dir=..." in text
    assert not locks._folders
    monkeypatch.undo()
    locks.claim(tmp_path / "a", "hydra.run.dir")
