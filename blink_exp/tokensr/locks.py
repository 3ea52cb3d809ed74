"""One training at a time in a folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from blink_exp.errors import UserError

NAME = ".training.lock"


@contextlib.contextmanager
def alone_in(folder: Path, setting: str) -> Iterator[None]:
    """Holds ``folder`` for this process inside the block. The lock goes with the process, however it ends; its file goes with the block.

    ``setting``: what named the folder. Raises UserError where another process holds it. A disk without locks keeps nobody out.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: worker processes that outlive it do not have it
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise UserError(f"{setting}={folder} is in use by another training ({holder}); wait for it, or give another folder") from None
        except PermissionError:  # EACCES: what some systems say instead
            os.close(file)
            raise UserError(f"{setting}={folder} is in use by another training; wait for it, or give another folder") from None
        except OSError:
            break  # a disk without locks
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)  # the one that held it has taken the file away meanwhile
    try:
        os.ftruncate(file, 0)
        with contextlib.suppress(OSError):  # a full disk
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
