"""The objects of a training, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from blink_exp.backbone.model import Backbone
from blink_exp.settings.roots import TrainSettings
from blink_exp.training.optimization import Optimization
from blink_exp.training.paired_crops import PairedCrops


@dataclass(frozen=True)
class Job:
    """A training.

    Args:
        settings: of train.py, typed.
        text: the settings as the text of config.yaml.
        out: the run folder. folder: the name of its setting.
        backbone: loads the frozen model; called with ``device`` and, to override the settings, ``dtype``.
        data: makes the DataModule; called with ``transform`` and ``steps_done``.
        trainer: makes Lightning's Trainer; called with the arguments that are not settings.
        callbacks: of the Trainer.
        words: the arguments of the command line that choose the model and the architecture, for the command that evaluates the modules.
    """

    settings: TrainSettings
    text: str
    out: Path
    backbone: Callable[..., Backbone]
    data: Callable[..., PairedCrops]
    trainer: Callable[..., pl.Trainer]
    callbacks: list[pl.Callback]
    optimization: Optimization
    folder: str = "hydra.run.dir"
    words: Sequence[str] = ()
