"""One run at a time in an output folder, and at a point of the store. A lock ends with its process, however that ends (flock)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from blink_exp.disk import writing
from blink_exp.errors import UserError

NAME = ".lock"  # of an output folder; the store keeps its own in .locks/NAME.lock
POLL = 0.2  # seconds between two looks at a lock that somebody else has
_folders: dict[str, FileLock] = {}  # of this process, until it ends


def claim(folder: str | Path | None, setting: str) -> Path:
    """Makes ``folder``, the value of ``setting``, and keeps every other run out of it until this process ends.

    Raises:
        UserError: where it is no folder's name, or another run has it.
        WriteError: where it cannot be made.
    """
    name = "" if folder is None else str(folder)
    if not name.strip() or name == "None":
        raise UserError(f"{setting}={name} names no folder; give one, or leave {setting} away")
    path = Path(name)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.resolve() / NAME)
        try:
            if str(path.resolve()) not in _folders:
                lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{setting}={name} is in use by another run; wait until that has ended, or give another folder with {setting}=..."
            ) from None
    _folders.setdefault(str(path.resolve()), lock)
    return path


@contextlib.contextmanager
def waited(store: Path, name: str) -> Iterator[None]:
    """Alone at ``name`` of a store; waits, and says so, while another run has it."""
    lock = _lock(store, name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {store / name}, which another run is working on", flush=True)
        lock.acquire(poll_interval=POLL)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def free(store: Path, names: Iterable[str]) -> Iterator[list[str]]:
    """Those of ``names`` that no other run works on, alone at them. Never waits, so runs that want the same names cannot block each
    other."""
    with contextlib.ExitStack() as held:
        mine = []
        for name in sorted(set(names)):
            lock = _lock(store, name)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                held.callback(lock.release)
                mine.append(name)
        yield mine


def _lock(store: Path, name: str) -> FileLock:
    folder = store / ".locks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(os.path.abspath(folder / f"{name}.lock"))
