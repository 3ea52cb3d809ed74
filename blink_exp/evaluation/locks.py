"""Locks for output folders and points of the store: one run at a time. A lock is released when its process ends (flock).

A run that holds a lock never waits for another one, so there is no deadlock.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from blink_exp.disk import writing
from blink_exp.errors import UserError

NAME = ".lock"  # in an output folder; a point or a file has .locks/NAME.lock beside it
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # errors of flock on a file system without locks
POLL = 0.2  # seconds between attempts to acquire a lock
_folders: dict[str, FileLock] = {}  # held by this process until it ends


def claim(folder: str | Path | None, setting: str) -> Path:
    """Creates ``folder``, the value of ``setting``, and locks it until this process ends.

    Raises:
        UserError: if the name is empty, another run holds the lock, or the file system has no locks.
        WriteError: if the folder cannot be created.
    """
    path = named(folder, setting)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.resolve() / NAME, fallback_to_soft=False)
        try:
            if str(path.resolve()) not in _folders:
                _acquire(lock, path, timeout=0)
        except Timeout:
            raise UserError(
                f"{setting}={path} is in use by another run; wait until that has ended, or give another folder with {setting}=..."
            ) from None
    _folders.setdefault(str(path.resolve()), lock)
    return path


def named(folder: str | Path | None, setting: str) -> Path:
    """The folder named by a setting. Raises UserError for an empty value or "None"."""
    name = "" if folder is None else str(folder)
    if not name.strip() or name == "None":
        raise UserError(f"{setting}={name} names no folder; give one, or leave {setting} away")
    return Path(name)


@contextlib.contextmanager
def waited(path: Path) -> Iterator[None]:
    """Locks ``path``, a point of the store or another shared file. Prints a line and waits while another run holds the lock."""
    with _waited(_lock(path), path, path.parent):
        yield


@contextlib.contextmanager
def waited_folder(folder: Path) -> Iterator[None]:
    """Like ``waited``, with the lock that ``claim`` takes: of an output folder, for a job of a multirun."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve()
    lock = FileLock(path / NAME, fallback_to_soft=False)
    with _waited(lock, folder, folder):
        _folders[str(path)] = lock  # the job may claim its folder
        try:
            yield
        finally:
            _folders.pop(str(path), None)


@contextlib.contextmanager
def _waited(lock: FileLock, path: Path, folder: Path) -> Iterator[None]:
    try:
        _acquire(lock, folder, timeout=0)
    except Timeout:
        print(f"waiting for {path}, which another run is working on", flush=True)
        _acquire(lock, folder)
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a run holds the lock of an output folder. Creates nothing; a folder that cannot be written is not in use."""
    lock = folder.resolve() / NAME
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, fallback_to_soft=False).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


@contextlib.contextmanager
def free(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Locks and yields those of ``paths`` that no other run holds. Never waits, so runs with the same paths cannot block each other."""
    with contextlib.ExitStack() as stack:
        acquired = []
        for path in sorted(set(paths)):
            lock = _lock(path)
            with contextlib.suppress(Timeout):
                _acquire(lock, path.parent, timeout=0)
                stack.callback(lock.release)
                acquired.append(path)
        yield acquired


def _lock(path: Path) -> FileLock:
    folder = path.parent / ".locks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(os.path.abspath(folder / f"{path.name}.lock"), fallback_to_soft=False)


def _acquire(lock: FileLock, folder: Path, timeout: float = -1) -> None:
    """``lock.acquire(timeout)``. Raises UserError if the file system of ``folder`` has no locks: filelock's fallback, an
    existing file, would outlive a killed run."""
    try:
        lock.acquire(timeout=timeout, poll_interval=POLL)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:  # a Timeout among them
            raise
        raise UserError(
            f"{folder} is on a file system without file locks (flock: {error}); choose a folder on one that has them, e.g. a local disk or"
            " NFS mounted with its lock service, with hydra.run.dir=... (sweeps: hydra.sweep.dir=..., store=..., report=...)"
        ) from error
