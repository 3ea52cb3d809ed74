"""Schemas of loggers."""

from __future__ import annotations

from dataclasses import dataclass

from blink_exp.settings import limits


@dataclass
class NoLogger:
    """logger=csv has no settings."""


@dataclass
class TensorBoard:
    rows: int = limits.whole(0)
    images: int = limits.whole(0)


@dataclass
class MLflow(TensorBoard):
    project: str = limits.text("the name of an experiment")
    uri: str | None = limits.text("the address of a tracking server or database")


@dataclass
class WandB(TensorBoard):
    project: str = limits.text("the name of a project")
    entity: str | None = limits.text("the name of a user or team")
    mode: str = limits.words("online", "offline", "disabled")


TARGETS: dict[str, type] = {
    "blink_exp.tracking.loggers.Csv": NoLogger,
    "blink_exp.tracking.loggers.TensorBoard": TensorBoard,
    "blink_exp.tracking.loggers.MLflow": MLflow,
    "blink_exp.tracking.loggers.Wandb": WandB,
}
