"""Settings of a training that do not go together, and paths: refused by value, limit and cure, before anything is loaded. The range of
each setting alone: test_settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from support.composing import config
from support.refusals import refusal
from support.training_runs import train

from blink_exp.backbone import load
from blink_exp.commands.train import job_of
from blink_exp.settings.roots import TrainSettings
from blink_exp.training import recipe
from blink_exp.training.data import FolderData
from blink_exp.training.progress import ProgressLines
from blink_exp.training.signals import OwnSignals
from blink_exp.training.trainer import make_trainer


@pytest.mark.slow
def test_every_preset_of_the_recipe_passes():
    for path in sorted((Path(recipe.__file__).parent.parent.parent / "conf" / "trainer").glob("*.yaml")):
        recipe.check_recipe(settings(f"trainer={path.stem}"))


def settings(*words: str) -> TrainSettings:
    return job_of(config("train", *words), Path("run")).settings


def test_float16_autocast_needs_a_gpu():
    """Lightning would take bfloat16 instead."""
    for word in ("16-mixed", "16"):
        assert "needs a GPU; on a CPU use" in refusal(lambda word=word: recipe.check_recipe(settings(f"trainer.precision={word}")))
    recipe.check_recipe(settings("trainer.accelerator=gpu", "trainer.precision=16-mixed"))


@pytest.mark.parametrize("words", [("trainer.precision=64-true", "trainer.strategy=deepspeed_zero2"), ("trainer.accelerator=mps",)])
def test_what_lightning_refuses_is_one_line(tmp_path, words):
    assert "trainer.accelerator=" in refusal(lambda: make_trainer(job_of(config("train", *words), tmp_path)))


def test_modules_that_could_not_be_written_are_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for words, message in (
        (f"output={tmp_path / 'file'}", "is a file; give another"),
        (f"output={tmp_path / 'file' / 'below'}", "is a file; give another"),
        ("output=", "output must be a path, or null, got nothing"),
    ):
        assert message in refusal(lambda words=words: train(tmp_path / "run", words))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "no permission" in refusal(lambda: recipe.check_output(str(tmp_path / "x")))


def test_refusals_come_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    for words in (
        "trainer.max_epochs=0",
        "data.workers=-1",
        "loss.weights.kl=-1",
        "data.batch_size=abc",
        "seed=-1",
    ):
        refusal(lambda words=words: train(tmp_path / "run", words))
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_job_is_what_its_presets_name(tmp_path):
    job = job_of(config("train", "trainer=ddp", "trainer.devices=1", "data=folder", f"data.path={tmp_path}", "layer=12"), tmp_path)
    assert (job.settings.layers.indices, job.settings.trainer.precision, job.settings.trainer.strategy) == ([12], "bf16-mixed", "ddp")
    assert job.trainer.func is pl.Trainer and job.trainer.keywords["max_epochs"] == 1
    assert [type(callback) for callback in job.callbacks] == [ModelCheckpoint, ProgressLines, OwnSignals]
    assert type(job.data(transform=None)) is FolderData and job.data(transform=None).global_batch == 8
    assert job.settings.data["path"] == str(tmp_path) and "trainer:" in job.text
