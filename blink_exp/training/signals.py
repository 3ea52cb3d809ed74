"""Stopping a training: exit code 143 on SIGTERM, 130 on Ctrl-C, each with a line on how to resume."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning.callbacks import Callback

from blink_exp.stopping import nothing_said, say
from blink_exp.training.resume import find

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT


def end(_signal: int, _frame: FrameType | None) -> None:
    """Handler of SIGTERM. Safe at any point, as files are written atomically."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleanup
    raise SystemExit(TERMINATED)


class OwnSignals(Callback):
    """Restores ``end`` in place of Lightning's SIGTERM handler, which continues to the end of the batch (or of the validation), exits with
    code 0, and communicates with other processes inside the handler."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        install()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        install()


def install() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def stoppable(out: Path, step: Callable[[], int], speaks: Callable[[], bool]) -> Iterator[None]:
    """Inside the block SIGTERM and Ctrl-C end the process with their exit codes and one line.

    ``out``: the run folder; ``step``: optimizer steps done; ``speaks``: whether this is the process that prints.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    install()
    nothing_said()
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        code = code_of(error)
        if code is None:
            raise
        if speaks():
            name = "SIGTERM" if code == TERMINATED else "Ctrl-C"
            say(f"stopped by {name} at step {step()}; {resume_hint(out)}", code)
        raise SystemExit(code) from None
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def code_of(error: BaseException) -> int | None:
    """130 for Ctrl-C (which Lightning turns into exit code 1), 143 for SIGTERM, None for other exceptions."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return INTERRUPTED
    return TERMINATED if isinstance(error, SystemExit) and error.code == TERMINATED else None


def resume_hint(out: Path) -> str:
    if find(out) is None:
        return "there is no checkpoint yet, so start it again (earlier ones: trainer.callbacks.checkpoint.every_n_train_steps)"
    return f"go on from its last checkpoint with the same settings and resume={out}"
