"""Rotation of checkpoints: a new one is written beside the old, and the previous one is kept.

So a killed process or a full disk never leaves a run without a complete checkpoint.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from blink_exp.errors import UserError, flat

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove(path: Path) -> None:
    """Removes a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Rotation:
    """Replaces checkpoints (files or folders).

    Args:
        sound: whether an existing checkpoint is complete. A damaged one is replaced, and the one before it is kept.
    """

    def __init__(self, sound: bool = True):
        self.sound = sound

    @staticmethod
    def beside(path: Path, word: str) -> Path:
        return path.with_name(f"{path.name}.{word}")

    def clear(self, path: Path) -> None:
        """Removes what a new checkpoint replaces, so that at most two are on disk."""
        remove(self.beside(path, "part"))
        if self.sound and path.exists():
            remove(self.beside(path, "old"))

    def put(self, path: Path) -> None:
        """Moves the finished part to ``path``."""
        if path.exists() and self.sound:
            remove(self.beside(path, "old"))
            os.replace(path, self.beside(path, "old"))
        elif path.is_dir():
            remove(path)
        os.replace(self.beside(path, "part"), path)
        self.sound = True


class Sink:
    """A file that keeps its write error, which torch does not report."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class WholeFiles(TorchCheckpointIO):
    """Checkpoint files by ``Rotation``. (Lightning's own writes to the system's temporary folder, so its move is not atomic
    across disks.)"""

    def __init__(self, rotation: Rotation):
        super().__init__()
        self.rotation = rotation

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rotation.clear(path)
        part = self.rotation.beside(path, "part")

        def write() -> None:
            with open(part, "wb") as file:
                sink = Sink(file)
                try:
                    torch.save(checkpoint, cast(IO[bytes], sink))
                except RuntimeError:
                    if sink.error is not None:
                        raise sink.error from None
                    raise
                file.flush()
                os.fsync(file.fileno())

        write_whole(write, part, path)
        self.rotation.put(path)


def write_whole(write: Callable[[], None], part: Path, path: Path) -> None:
    """Calls ``write`` and removes ``part`` if it fails. Raises UserError where the disk is full or not writable."""
    try:
        write()
    except BaseException as error:  # also on SIGTERM
        remove(part)
        unwritten = isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)  # DeepSpeed's, with torch's words
        if isinstance(error, OSError) or unwritten:
            full = error.errno in FULL if isinstance(error, OSError) else shutil.disk_usage(path.parent).free < 2**20
            why = "the disk is full" if full else flat(getattr(error, "strerror", None) or error, 80)
            fallback = f"the one before is kept, go on from it with resume={path.parent}" if path.exists() else "there is none before it"
            raise UserError(
                f"the checkpoint {path} cannot be written ({why}); free some space or choose another folder with hydra.run.dir=...;"
                f" {fallback}"
            ) from error
        raise
