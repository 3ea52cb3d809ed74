"""train.py's work in the process of a test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from blink_exp.commands.train import run
from support.composing import config

EVERY_STEP = ("trainer.callbacks.checkpoint.every_n_train_steps=1", "trainer.log_every_n_steps=1")
SMALL = ("layers.indices=[1]", "data.train_size=6", "data.global_batch=2", "data.held_out_size=1", *EVERY_STEP)


def train(out: Path, *words: str) -> None:
    cfg = config("train", *SMALL, *words)
    with pytest.MonkeyPatch.context() as patch:
        overrides = SimpleNamespace(task=[*SMALL, *words])
        runtime = SimpleNamespace(mode=RunMode.RUN, runtime=SimpleNamespace(output_dir=str(out)), overrides=overrides)
        patch.setattr(HydraConfig, "get", staticmethod(lambda: runtime))
        run(cfg)


def steps(out: Path) -> list[int]:
    """Of the rows of the training loss."""
    import csv

    with open(out / "log" / "metrics.csv", encoding="utf-8") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["loss/train"]]
