"""The logger of a run, made of its settings; and a block that closes its tracker whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from blink_exp.settings.check import check_values
from blink_exp.settings.targets import BY_TARGET
from blink_exp.tracking.interface import NullTracker, Run, SafeTracker, Tracker
from blink_exp.tracking.loggers import Csv, Logger


def logger_of(settings: dict[str, Any]) -> Logger:
    """The logger that ``settings["logger"]`` describes."""
    return instantiate(settings["logger"])


def silent(settings: dict[str, Any]) -> bool:
    """Whether the output folder has it all (`logger=csv`)."""
    return isinstance(logger_of(settings), Csv)


def check(settings: dict[str, Any]) -> None:
    """Says before any work what ``settings["logger"]`` lacks: a package, or W&B's key (asked for where there is a terminal), and what it
    holds that the logger would refuse at its first run, as far as that can be told without a network.

    Raises:
        UserError: for a package that is not installed, a name or number that is refused, or no key.
    """
    schema = BY_TARGET.get(settings["logger"]["_target_"])
    if schema is not None:
        check_values(schema, "logger.", settings["logger"])
    logger_of(settings).check(settings)


@contextlib.contextmanager
def tracker(
    settings: dict[str, Any], out: Path, name: str, group: str | None = None, tags: Sequence[str] = (), job: str = "point"
) -> Iterator[Tracker]:
    """A run of the logger in ``settings["logger"]``, its files below ``out``, the rest of ``settings`` its configuration.

    It is closed with the block, whatever happens in it: otherwise the next job of a sweep would go on writing to this job's run. What
    fails in a logger is said and never raised; what fails in the block is raised.
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
