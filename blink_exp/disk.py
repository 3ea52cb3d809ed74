"""Errors of the operating system as one line: what was done (read or write), to which file, and the cure."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from blink_exp.errors import flat
from blink_exp.stopping import run_folder

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
ONLY_WRITING = (*NO_SPACE, errno.EROFS, errno.EFBIG, errno.EEXIST, errno.ENOTEMPTY)  # never raised by reads
ELSEWHERE = "choose another folder with hydra.run.dir=... (sweeps: hydra.sweep.dir=...)"
FOLDERS: dict[Path, str] = {}  # folder: setting that names it, for the cure in a message


class WriteError(OSError):
    """An OSError of a write, which names the file. The system's own error of a write into an open file names none."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Every OSError of the block as a ``WriteError`` of ``path``."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


def disk_line(error: OSError) -> str:
    """One line about an OSError that has a number (``errno``)."""
    number, file = error.errno, error.filename
    if file is None:
        return _nameless(error)
    write, elsewhere = _writes(error), _elsewhere(file)
    if number in NO_SPACE:
        return f"{_full(number)} (writing {file}); free some space or {elsewhere}"
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission to write {file}; {elsewhere}" if write else f"no permission to read {file}; chmod +r it, or give another"
    if number == errno.EROFS:
        return f"{file} is on a file system that is read-only; {elsewhere}"
    if number == errno.ENOENT:
        if write:
            return f"{file} could not be written, its folder is gone; run the same command again, and leave its folders in place"
        return f"{file} is not there; check the path"
    if number in (errno.EEXIST, errno.ENOTDIR):
        return f"{_file_in_the_way(file)} is a file where a folder is needed; move it, or {elsewhere if write else 'give another path'}"
    if number == errno.EISDIR:
        return f"{file} is a folder where a file is needed; " + ("move it, or " + elsewhere if write else "give a file in it")
    if number == errno.ENAMETOOLONG:
        return f"{flat(file, 60)}... is a longer path than the file system takes; give a shorter one"
    cure = f"check the disk, or {elsewhere}" if write else "check the disk, or copy the file again"
    return f"{file} could not be {'written' if write else 'read'} ({error.strerror or flat(error)}); {cure}"


def _elsewhere(file: str) -> str:
    """The cure of a file that cannot be written: the setting of the folder that it is in."""
    path = Path(os.path.abspath(file))
    setting_folder = next((folder for folder in (path, *path.parents) if folder in FOLDERS), None)
    return ELSEWHERE if setting_folder is None else f"choose another folder with {FOLDERS[setting_folder]}=..."


def _nameless(error: OSError) -> str:
    if error.errno in NO_SPACE:
        return f"{_full(error.errno)} (writing {run_folder() or 'results'}); free some space or {ELSEWHERE}"
    if error.errno == errno.EPIPE:
        return "whoever read the output has gone; send it to a file, or run the command alone"
    if error.errno == errno.ENOENT and not _working_folder():
        return "the working folder is gone; change to one that is there, and run the command again"
    return flat(error)


def _full(number: int) -> str:
    return "the disk is full" if number == errno.ENOSPC else "the quota of the disk is used up"


def _working_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _writes(error: OSError) -> bool:
    """Whether an error comes of writing. Python does not say, but the state of the file does: what can be read was not to be read, and
    a file that is not there was to be made where its folder may not be written."""
    file = str(error.filename)
    if isinstance(error, WriteError) or error.errno in ONLY_WRITING:
        return True
    if error.errno not in (errno.EACCES, errno.EPERM):
        return False
    if os.path.exists(file):
        return os.access(file, os.R_OK | (os.X_OK if os.path.isdir(file) else 0))
    return _searchable(file)


def _searchable(file: str) -> bool:
    """Whether all folders above ``file`` that are there may be entered: if not, nothing can be read there, whatever its own rights."""
    above = Path(os.path.abspath(file)).parent
    while not os.path.exists(above) and above != above.parent:
        if os.path.lexists(above) or not os.access(above.parent, os.X_OK):
            return False
        above = above.parent
    return os.access(above, os.X_OK)


def _file_in_the_way(file: str) -> Path:
    """``file``, or the part of its path that is no folder."""
    path = Path(file)
    return next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), path)
