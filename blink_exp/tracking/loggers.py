"""The loggers of conf/logger, by ``_target_``: requirements, tracker of an evaluation, and Lightning logger of a training.

Another logger is another subclass of ``Logger``; its fields are its settings.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from blink_exp.errors import UserError
from blink_exp.tracking import lightning
from blink_exp.tracking.interface import NullTracker, Run, Tracker
from blink_exp.tracking.weights_and_biases import WandbTracker, check_key, check_names, start_run

STEP = "trainer/global_step"  # name of Lightning's step axis in W&B


@dataclass(frozen=True)
class Logger(ABC):
    """A logger beside the files of the output folder, which go below ``out``. ``rows``: records of a point in its table; ``images``:
    examples of a point."""

    rows: int = 0
    images: int = 0

    name: ClassVar[str]  # of its preset, for messages
    packages: ClassVar[tuple[str, ...]] = ()  # that must be installed
    install: ClassVar[str] = ""  # what installs them

    def check(self) -> None:
        """Raises UserError for a missing package, and for a name that the logger would reject."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if absent:
            raise UserError(f"logger={self.name} needs {', '.join(absent)}; pip install {self.install}, or use logger=csv")

    @abstractmethod
    def tracker(self, out: Path, run: Run) -> Tracker:
        """The tracker of an evaluation."""

    @abstractmethod
    def lightning(self, out: Path, run: Run) -> Any:
        """The Lightning logger of a training, with the configuration logged."""


@dataclass(frozen=True)
class Csv(Logger):
    """The files of the output folder only."""

    name = "csv"

    def tracker(self, out: Path, run: Run) -> Tracker:
        return NullTracker()

    def lightning(self, out: Path, run: Run) -> Any:
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(out, name="", version="log", flush_logs_every_n_steps=1)  # so that a killed run keeps its rows


@dataclass(frozen=True)
class Wandb(Logger):
    """Weights & Biases."""

    project: str = "blink-exp"
    entity: str | None = None
    mode: str = "online"

    name = "wandb"
    packages = ("wandb",)
    install = "wandb"

    def check(self) -> None:
        super().check()
        check_names(self.project, self.entity)
        check_key(self.mode)

    def tracker(self, out: Path, run: Run) -> Tracker:
        return WandbTracker(start_run(self.project, self.entity, self.mode, out, run))

    def lightning(self, out: Path, run: Run) -> Any:
        from pytorch_lightning.loggers import WandbLogger

        experiment = start_run(self.project, self.entity, self.mode, out, run)  # ours, because it can fall back to offline
        experiment.define_metric(STEP)
        experiment.define_metric("*", step_metric=STEP, step_sync=True)
        return WandbLogger(experiment=experiment)


@dataclass(frozen=True)
class TensorBoard(Logger):
    name = "tensorboard"
    packages = ("tensorboard",)
    install = "tensorboard"

    def tracker(self, out: Path, run: Run) -> Tracker:
        return lightning.TensorBoardTracker(out, run)

    def lightning(self, out: Path, run: Run) -> Any:
        logger = lightning.tensorboard(out, run.name)
        logger.log_hyperparams(run.config)
        return logger


@dataclass(frozen=True)
class MLflow(Logger):
    project: str = "blink-exp"
    uri: str | None = None

    name = "mlflow"
    packages = ("mlflow", "sqlalchemy", "alembic")
    install = "mlflow-skinny sqlalchemy alembic"

    def check(self) -> None:
        super().check()
        lightning.check_mlflow(self.project, self.uri)

    def tracker(self, out: Path, run: Run) -> Tracker:
        return lightning.MLflowTracker(self.lightning(out, run))

    def lightning(self, out: Path, run: Run) -> Any:
        logger = lightning.mlflow(self.project, self.uri, out, run)
        logger.log_hyperparams(run.config)
        return logger
