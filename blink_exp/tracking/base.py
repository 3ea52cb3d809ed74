"""Trackers by ``logger.kind``: what each needs, checked before any work, and a block that closes it whatever happens."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blink_exp.errors import UserError, nearest
from blink_exp.tracking import lightning
from blink_exp.tracking.interface import NullTracker, Run, SafeTracker, Tracker
from blink_exp.tracking.lightning import check_mlflow
from blink_exp.tracking.weights_and_biases import WandbTracker, check_key, check_names

NEEDED = {  # packages of a kind of logger, and what installs them
    "csv": ((), ""),
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard",), "tensorboard"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "mlflow-skinny sqlalchemy alembic"),
}


def check(settings: dict[str, Any]) -> None:
    """Says before any work what ``settings["logger"]`` lacks: a package, or W&B's key (asked for where there is a terminal), and what it
    holds that the logger would refuse at its first run, as far as that can be told without a network.

    Raises:
        UserError: for a kind that is not known, a package that is not installed, a name or number that is refused, or no key.
    """
    logger = settings["logger"]
    kind = logger["kind"]
    if kind not in NEEDED:
        raise UserError(f"logger.kind={kind} is not known; {nearest(str(kind), NEEDED)}")
    modules, install = NEEDED[kind]
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    if absent:
        raise UserError(f"logger={kind} needs {', '.join(absent)}; pip install {install}, or use logger=csv")
    for setting in ("rows", "images"):
        count = logger.get(setting, 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UserError(f"logger.{setting}={count} is no number of {setting}; use 0 (none) or more")
    if kind == "wandb":
        check_names(logger)
        check_key(logger)
    if kind == "mlflow":
        check_mlflow(logger)


@contextlib.contextmanager
def tracker(
    settings: dict[str, Any], out: Path, name: str, group: str | None = None, tags: Sequence[str] = (), job: str = "point"
) -> Iterator[Tracker]:
    """A run of the logger in ``settings["logger"]``, its files below ``out``, the rest of ``settings`` its configuration.

    It is closed with the block, whatever happens in it: otherwise the next job of a sweep would go on writing to this job's run. What
    fails in a logger is said and never raised; what fails in the block is raised.
    """
    kind = settings["logger"]["kind"]
    run = Run(name, group, tuple(tags), job)
    track: Tracker = NullTracker() if kind == "csv" else SafeTracker(kind, lambda: opened(settings, Path(out), run))
    failed = True
    try:
        yield track
        failed = False
    finally:
        track.close(failed)


def opened(settings: dict[str, Any], out: Path, run: Run) -> Tracker:
    check(settings)
    out.mkdir(parents=True, exist_ok=True)
    kind = settings["logger"]["kind"]
    if kind == "wandb":
        return WandbTracker(settings, out, run)
    return (lightning.TensorBoardTracker if kind == "tensorboard" else lightning.MLflowTracker)(settings, out, run)
