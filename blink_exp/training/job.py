"""What a training is made of, once its settings are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from blink_exp.backbone.model import Backbone
from blink_exp.settings.roots import TrainSettings
from blink_exp.training.data import PairedCrops
from blink_exp.training.optimization import Optimization


@dataclass(frozen=True)
class Job:
    """A training.

    Args:
        settings: of train.py, typed.
        record: the same as plain values, as checkpoints and loggers keep them.
        text: the same as config.yaml.
        out: the run folder. folder: the setting that names it.
        backbone: loads the frozen model; called with ``device`` and, for another than the settings say, ``dtype``.
        data: makes the pairs; called with ``transform`` and ``steps_done``.
        trainer: Lightning's; called with what the settings do not say.
        callbacks: of the trainer.
    """

    settings: TrainSettings
    record: dict[str, Any]
    text: str
    out: Path
    backbone: Callable[..., Backbone]
    data: Callable[..., PairedCrops]
    trainer: Callable[..., pl.Trainer]
    callbacks: list[pl.Callback]
    optimization: Optimization
    folder: str = "hydra.run.dir"
