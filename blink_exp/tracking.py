"""Where metrics go besides the output folder: nowhere by default, Weights & Biases by `logger=wandb`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def tracker(settings: dict[str, Any], out: Path, name: str) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that takes metrics. A W&B run is finished with the block, whatever happens in it: otherwise the next job of a
    sweep would go on writing to this job's run."""
    logger = settings["logger"]
    if logger["kind"] == "csv":
        yield lambda metrics: None
        return
    import wandb

    run = wandb.init(project=logger["project"], mode=logger["mode"], dir=str(out), name=name, config=settings, reinit="finish_previous")
    try:
        yield run.log
    finally:
        run.finish()


def lightning_logger(settings: dict[str, Any], out: Path, name: str) -> Any:
    """The logger of a training: CSV files in ``out``, and W&B beside them by `logger=wandb`."""
    from pytorch_lightning.loggers import CSVLogger, WandbLogger

    csv = CSVLogger(out, name="", version="log")
    if settings["logger"]["kind"] == "csv":
        return [csv]
    logger = settings["logger"]
    return [csv, WandbLogger(name=name, project=logger["project"], save_dir=str(out), offline=logger["mode"] == "offline", config=settings)]
