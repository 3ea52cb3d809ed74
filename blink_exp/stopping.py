"""SIGTERM and Ctrl-C: what runs is unwound as by KeyboardInterrupt, and the program ends with one line and 128 + the signal's number."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

_folder: list[Path] = []  # of the run, once it has one
_received: list[int] = []  # signals so far
_told: list[int] = []  # exit codes whose line is out


def stop_on_signals() -> None:
    """From here on SIGTERM raises KeyboardInterrupt as Ctrl-C does. The second signal ends the process at once, whatever it is doing."""
    owner = os.getpid()
    _received.clear()
    _told.clear()
    _folder.clear()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker process that was forked
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            raise KeyboardInterrupt
        _received.append(number)
        for known in (signal.SIGTERM, signal.SIGINT):
            signal.signal(known, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not where a shell has it ignored, behind &
        signal.signal(signal.SIGINT, stop)


def end_on_signals() -> None:
    """From here on Ctrl-C and SIGTERM end this process at once and without a word, for one that works for another, which speaks."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def runs_in(folder: Path) -> None:
    """Says where this process keeps what it has done; not for the jobs of a multirun."""
    _folder[:] = [folder]


def run_folder() -> Path | None:
    return _folder[0] if _folder else None


def stopping() -> bool:
    """Whether a signal has come. Long loops ask: a KeyboardInterrupt can be lost in a callback of C code."""
    return bool(_received)


def stopped(going_on: str) -> int:
    """Says once, on stderr, that the run was stopped and ``going_on``: how to go on. Returns the exit code."""
    number = _received[0] if _received else signal.SIGINT
    say(f"stopped by {'SIGTERM' if number == signal.SIGTERM else 'Ctrl-C'}; {going_on}", 128 + number)
    return 128 + number


def nothing_said() -> None:
    """Forgets that a line is out, for a process that runs several things one after the other."""
    _told.clear()


def say(line: str, code: int) -> None:
    """Prints the line of a run that was stopped with exit code ``code``, unless one is out already."""
    if not _told:
        _told.append(code)
        print(line, file=sys.stderr, flush=True)
