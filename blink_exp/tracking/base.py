"""Creates the logger of a run from its settings, and a context manager that always closes its tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blink_exp.settings.build import build
from blink_exp.settings.check import check_values
from blink_exp.settings.targets import BY_TARGET
from blink_exp.tracking.interface import NullTracker, Run, SafeTracker, Tracker
from blink_exp.tracking.loggers import Csv, Logger


def logger_of(settings: dict[str, Any]) -> Logger:
    """The logger that ``settings["logger"]`` describes."""
    logger: Logger = build(settings["logger"])
    return logger


def silent(settings: dict[str, Any]) -> bool:
    """Whether nothing is logged besides the output folder (`logger=csv`)."""
    return isinstance(logger_of(settings), Csv)


def check(settings: dict[str, Any]) -> None:
    """Checks ``settings["logger"]`` before any work: installed packages, W&B's key (prompted for on a terminal), and values that the
    logger would reject, as far as possible without a network.

    Raises:
        UserError: for a missing package, an invalid name or number, or no key.
    """
    schema = BY_TARGET.get(settings["logger"]["_target_"])
    if schema is not None:
        check_values(schema, "logger.", settings["logger"])
    logger_of(settings).check(settings)


@contextlib.contextmanager
def tracker(
    settings: dict[str, Any], out: Path, name: str, group: str | None = None, tags: Sequence[str] = (), job: str = "point"
) -> Iterator[Tracker]:
    """A run of the logger in ``settings["logger"]``; its files are below ``out``, the other ``settings`` are its configuration.

    It is always closed at the end of the block, so that the next job of a sweep does not write to this job's run. Errors of a logger
    are printed and never raised; errors of the block are raised.
    """
    run = Run(name, group, tuple(tags), job)
    logger = logger_of(settings)
    track: Tracker = (
        NullTracker() if isinstance(logger, Csv) else SafeTracker(logger.name, lambda: open_tracker(logger, settings, Path(out), run))
    )
    failed = True
    try:
        yield track
        failed = False
    finally:
        track.close(failed)


def open_tracker(logger: Logger, settings: dict[str, Any], out: Path, run: Run) -> Tracker:
    logger.check(settings)
    out.mkdir(parents=True, exist_ok=True)
    return logger.tracker(settings, out, run)
