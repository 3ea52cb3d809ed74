"""Creates the logger of a run from its settings, and a context manager that always closes its tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from blink_exp.documents.settings import PlainSettings
from blink_exp.settings.build import build
from blink_exp.settings.check import check_values
from blink_exp.settings.targets import BY_TARGET
from blink_exp.tracking.interface import NullTracker, Run, SafeTracker, Tracker
from blink_exp.tracking.loggers import Csv, Logger


def logger_of(node: PlainSettings) -> Logger:
    """The logger that the settings of the group ``logger`` describe."""
    logger: Logger = build(node)
    return logger


def check(node: PlainSettings) -> None:
    """Checks the settings of the group ``logger`` before any work: installed packages, W&B's key (prompted for on a terminal), and values
    that the logger would reject, as far as possible without a network.

    Raises:
        UserError: for a missing package, an invalid name or number, or no key.
    """
    schema = BY_TARGET.get(node["_target_"])
    if schema is not None:
        check_values(schema, "logger.", node)
    logger_of(node).check()


@contextlib.contextmanager
def tracker(logger: Logger, out: Path, run: Run) -> Iterator[Tracker]:
    """``run`` of ``logger``; its files are below ``out``.

    It is always closed at the end of the block, so that the next job of a sweep does not write to this job's run. Errors of a logger
    are printed and never raised; errors of the block are raised.
    """
    track: Tracker = NullTracker() if isinstance(logger, Csv) else SafeTracker(logger.name, lambda: open_tracker(logger, out, run))
    failed = True
    try:
        yield track
        failed = False
    finally:
        track.close(failed)


def open_tracker(logger: Logger, out: Path, run: Run) -> Tracker:
    logger.check()
    out.mkdir(parents=True, exist_ok=True)
    return logger.tracker(out, run)
