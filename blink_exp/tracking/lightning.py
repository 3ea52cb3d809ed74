"""TensorBoard and MLflow trackers, built on the Lightning loggers that trainings use."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from blink_exp.errors import UserError, flat
from blink_exp.images import open_image
from blink_exp.markdown import escaped, line
from blink_exp.tracking.interface import Boxes, Picture, Run

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")  # of a tracking server or a database
LONGEST_EXPERIMENT = 500  # characters, MLflow's limit
RED, WIDTH = (255, 0, 0), 3  # of boxes, in pixels


def tensorboard(out: Path, name: str) -> Any:
    """Lightning's logger that writes event files to ``out``/tensorboard/NAME: ``tensorboard --logdir out``."""
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(out), name="tensorboard", version=slug(name))


def mlflow(project: str, uri: str | None, out: Path, run: Run) -> Any:
    """Lightning's MLflow logger for ``uri``, or for ``out``/mlflow.db and ``out``/mlflow (MLflow dropped its file store)."""
    from filelock import FileLock
    from pytorch_lightning.loggers import MLFlowLogger

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    folder = out.resolve()
    local = uri is None
    tags = dict(tag.split(":", 1) for tag in run.tags if ":" in tag) | {"job": run.job} | ({"group": run.group} if run.group else {})
    mlflow_logger = MLFlowLogger(
        experiment_name=project,
        run_name=run.name,
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}" if local else uri,
        artifact_location=(folder / "mlflow").as_uri() if local else None,
        tags=tags,
    )
    # two jobs must not create the tables of one database at the same time
    with FileLock(folder / "mlflow.lock") if local else contextlib.nullcontext(), quiet("pytorch_lightning.loggers.mlflow"):
        _ = mlflow_logger.experiment
    return mlflow_logger


def check_mlflow(project: str, uri: str | None) -> None:
    """Raises UserError for an experiment name or URI that MLflow would reject. Does not contact the server."""
    if not isinstance(project, str) or not project.strip() or len(project) > LONGEST_EXPERIMENT:
        project_text = "" if project is None else flat(project, 140)
        raise UserError(
            f"logger.project={project_text} is no name of an experiment; use 1 to {LONGEST_EXPERIMENT} characters, e.g. blink-exp"
        )
    scheme, separator, rest = str(uri).partition(":")
    if uri is not None and uri != "databricks" and not (separator and scheme.partition("+")[0] in SCHEMES and rest.strip("/")):
        schemes = ", ".join(f"{name}:" for name in SCHEMES)
        raise UserError(f"logger.uri={flat(uri, 140)} is no address of MLflow; begin it with one of {schemes}, or use null")


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Limits a Python logger to errors: a new experiment is not worth a warning."""
    noisy = logging.getLogger(name)
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        yield
    finally:
        noisy.setLevel(before)


class LightningTracker:
    """The part of a ``Tracker`` that is the same for all Lightning loggers."""

    logger: Any

    def metrics(self, values: dict[str, float]) -> None:
        self.logger.log_metrics(values, step=0)

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None:
        for step, values in steps(axis, rows):
            self.logger.log_metrics(values, step=step)

    def close(self, failed: bool = False) -> None:
        self.logger.finalize("failed" if failed else "success")


class TensorBoardTracker(LightningTracker):
    """A ``Tracker`` that writes event files. Tables are logged as Markdown text."""

    def __init__(self, out: Path, run: Run):
        self.logger = tensorboard(out, run.name)
        words = {"group": run.group, "tags": ", ".join(run.tags), "job": run.job}
        self.logger.log_hyperparams(run.config | {"run": words})

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        lines = [map(cell, columns), ["---"] * len(columns), *(map(cell, row) for row in rows)]
        text = "\n".join(map(line, lines))
        self.logger.experiment.add_text(key, text, global_step=0)

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        import numpy as np

        self.logger.experiment.add_image(key, np.asarray(with_boxes(picture, boxes)), global_step=0, dataformats="HWC")
        if caption:
            self.logger.experiment.add_text(f"{key}/caption", escaped(caption), global_step=0)

    def close(self, failed: bool = False) -> None:
        super().close(failed)
        self.logger.experiment.close()


class MLflowTracker(LightningTracker):
    """A ``Tracker`` that writes an MLflow run, ``logger``'s. Tables and pictures are artifacts."""

    def __init__(self, logger: Any):
        self.logger = logger
        self.client, self.id = logger.experiment, logger.run_id

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        import pandas as pd

        self.client.log_table(self.id, pd.DataFrame(rows, columns=columns), f"{slug(key)}.json")

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        self.client.log_image(self.id, with_boxes(picture, boxes), f"images/{slug(key)}.png")
        if caption:
            self.client.log_text(self.id, caption, f"images/{slug(key)}.txt")


def steps(axis: str, rows: list[dict[str, float]]) -> list[tuple[int, dict[str, float]]]:
    """(step, numbers) of a curve for loggers with integer steps: the axis if it is integral, else the row index with the axis kept."""
    whole = all(float(row[axis]).is_integer() for row in rows)
    return [(int(row[axis]) if whole else k, {key: v for key, v in row.items() if key != axis or not whole}) for k, row in enumerate(rows)]


def slug(name: str) -> str:
    """``name`` as a file name."""
    return re.sub(r"[^\w.,=+-]+", "_", name)[:120]


def cell(value: Any) -> str:
    return "" if value is None else escaped(str(value))


def with_boxes(picture: Picture, boxes: Boxes) -> Image.Image:
    """The picture as RGB with its boxes drawn."""
    if isinstance(picture, str | Path):
        picture = open_image(picture)
    elif not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    annotated: Image.Image = picture.convert("RGB")
    pen = ImageDraw.Draw(annotated)
    for left, top, right, bottom in boxes:
        pen.rectangle(
            (left * annotated.width, top * annotated.height, right * annotated.width - 1, bottom * annotated.height - 1),
            outline=RED,
            width=WIDTH,
        )
    return annotated
