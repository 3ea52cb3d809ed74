"""The loggers of a training."""

from __future__ import annotations

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

from blink_exp.tracking.base import logger_of
from blink_exp.tracking.interface import Run, attempt
from blink_exp.tracking.loggers import Csv


def lightning_logger(settings: dict[str, Any], out: Path, name: str, group: str | None = None) -> list[Any]:
    """CSV files in ``out``, and by `logger=` one more beside them. It is opened now: what cannot be is said, and the training goes on
    without it. End with ``finish``.

    Raises:
        UserError: see ``check``.
    """
    from pytorch_lightning.loggers import CSVLogger
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    loggers: list[Any] = [CSVLogger(out, name="", version="log", flush_logs_every_n_steps=1)]  # a killed run has its rows
    logger = logger_of(settings)
    if isinstance(logger, Csv):
        return loggers
    logger.check(settings)
    if getattr(rank_zero_only, "rank", 0) == 0:  # one run for all devices
        tags = (f"tokensr:{settings['tokensr']['architecture']}", f"model:{settings['model'].get('name') or settings['model']['path']}")
        out.mkdir(parents=True, exist_ok=True)
        opened, extra = attempt(logger.name, lambda: logger.lightning(settings, out, Run(name, group, tags, "train")))
        loggers += [extra] if opened else []
    return loggers


def keep_rows(loggers: list[Any], step: int) -> None:
    """Opens the CSV file of a training with the rows that it has up to optimizer step ``step``, from where the training goes on. Lightning
    would take the file away."""
    from pytorch_lightning.loggers import CSVLogger

    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        path = Path(logger.log_dir) / "metrics.csv"
        part = path.with_name(path.name + ".part")
        rows, columns = rows_before(path if path.is_file() else part, step)  # the part: killed right here before
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


def rows_before(path: Path, step: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of steps below ``step``, columns) of a CSV file; a row that was cut off is left out."""
    if not path.is_file():
        return [], []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values() and (row.get("step") or "").isdigit() and int(row["step"]) < step]
    return [{k: v for k, v in row.items() if k is not None} for row in rows], list(reader.fieldnames or [])


def finish(loggers: list[Any], failed: bool = False) -> None:
    """Ends the W&B run of a training, which would else take in what the process logs next. Lightning ends the others."""
    from pytorch_lightning.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            attempt("wandb", partial(logger.experiment.finish, exit_code=int(failed)))
