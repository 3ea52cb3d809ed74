"""The loggers of a training."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from blink_exp.settings.roots import TrainSettings
from blink_exp.tracking.base import logger_of
from blink_exp.tracking.interface import Run, attempt
from blink_exp.tracking.loggers import Csv
from blink_exp.tracking.names import config_of


def lightning_logger(settings: TrainSettings, out: Path, name: str) -> list[Any]:
    """A CSV logger in ``out`` and, by `logger=`, one more. It is opened here; if that fails, a warning is printed and the training runs
    without it. End with ``finish``.

    Raises:
        UserError: see ``check``.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    tags = (f"tokensr:{settings.tokensr.architecture}", f"model:{settings.model.get('name') or settings.model['path']}")
    run = Run(name, tags=tags, job="train", config=config_of(asdict(settings)))
    loggers = [Csv().lightning(out, run)]
    logger = logger_of(settings.logger)
    if isinstance(logger, Csv):
        return loggers
    logger.check()
    if getattr(rank_zero_only, "rank", 0) == 0:  # one run for all devices
        out.mkdir(parents=True, exist_ok=True)
        opened, extra = attempt(logger.name, lambda: logger.lightning(out, run))
        loggers += [extra] if opened else []
    return loggers


def keep_rows(loggers: list[Any], step: int) -> None:
    """Reopens the CSV file of a resumed training with its rows below optimizer step ``step``. Lightning would delete the file."""
    from pytorch_lightning.loggers import CSVLogger

    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        path = Path(logger.log_dir) / "metrics.csv"
        part = path.with_name(path.name + ".part")
        rows, columns = rows_before(path if path.is_file() else part, step)  # .part: an earlier run was killed here
        if rows:
            with open(part, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
        else:
            part.unlink(missing_ok=True)
        written = logger.experiment
        if rows:
            os.replace(part, path)
            written.metrics_keys = columns


def rows_before(path: Path, step: int) -> tuple[list[dict[str, str]], list[str]]:
    """(rows of steps below ``step``, columns) of a CSV file; truncated rows are omitted."""
    if not path.is_file():
        return [], []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values() and (row.get("step") or "").isdigit() and int(row["step"]) < step]
    return [{k: v for k, v in row.items() if k is not None} for row in rows], list(reader.fieldnames or [])


def finish(loggers: list[Any], failed: bool = False) -> None:
    """Ends the W&B run of a training, so that later logging does not go to it. Lightning ends the other loggers."""
    from pytorch_lightning.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            attempt("wandb", partial(logger.experiment.finish, exit_code=int(failed)))
