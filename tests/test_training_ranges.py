"""Values of `trainer=`, `data=`, `loss=` and paths that cannot be: refused by value, limit and cure, before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from refusals import refusal
from training_runs import composed, train

from blink_exp.experiments import recipe, results
from blink_exp.experiments.train import make_trainer
from blink_exp.tokensr import data, losses

TRAINER = [
    ("epochs", 0, "use 1 or more"),
    ("epochs", -1, "use 1 or more"),
    ("epochs", 1.5, "is no whole number"),
    ("epochs", True, "trainer.epochs=true is no whole number"),
    ("lr", -1e-4, "use a number above 0"),
    ("lr", 0, "use a number above 0"),
    ("lr", float("nan"), "out of range"),
    ("lr", float("inf"), "out of range"),
    ("lr", "fast", "is no number"),
    ("warmup", 2, "use a number from 0 to 1"),
    ("warmup", -0.1, "use a number from 0 to 1"),
    ("weight_decay", -1, "use a number from 0"),
    ("checkpoint_every", 0, "use 1 or more"),
    ("checkpoint_every", -5, "use 1 or more"),
    ("log_every", 0, "use 1 or more"),
    ("log_every", "often", "is no whole number"),
    ("global_batch", 0, "use 1 or more"),
    ("global_batch", "8x", "is no whole number"),
    ("num_nodes", 0, "use 1 or more"),
    ("sequence_length", 0, "use 1 or more"),
    ("devices", 0, "use 1 or more, or auto"),
    ("devices", -1, "use 1 or more, or auto"),
    ("devices", "all", "is no number of devices"),
    ("devices", [], "names no GPU"),
    ("devices", [0, 0], "one twice"),
    ("devices", [-1], "out of range"),
    ("devices", None, "trainer.devices=null"),
    ("accelerator", "cup", "did you mean cpu"),
    ("accelerator", None, "trainer.accelerator=null is not known"),
    ("precision", "bf16-mix", "did you mean bf16-mixed"),
    ("precision", 8, "is not known"),
    ("checkpoint_activations", "maybe", "is neither true nor false"),
    ("channels_last", 1, "is neither true nor false"),
]


@pytest.mark.parametrize(("name", "value", "message"), TRAINER)
def test_a_value_of_the_recipe_that_cannot_be(name, value, message):
    known = {k: v for k, v in results.plain(composed("train", "trainer=paper"))["trainer"].items()}
    recipe.check_recipe(known)
    line = refusal(lambda: recipe.check_recipe(known | {name: value}))
    assert line.startswith(f"trainer.{name}=") and message in line


def test_every_preset_of_the_recipe_passes():
    for path in sorted((Path(recipe.__file__).parent.parent.parent / "conf" / "trainer").glob("*.yaml")):
        recipe.check_recipe(results.plain(composed("train", f"trainer={path.stem}"))["trainer"])


def test_float16_autocast_needs_a_gpu():
    """Lightning would take bfloat16 instead."""
    for word in ("16-mixed", 16):
        assert "needs a GPU; on a CPU use" in refusal(lambda word=word: recipe.check_recipe({"accelerator": "cpu", "precision": word}))
    recipe.check_recipe({"accelerator": "gpu", "precision": "16-mixed"})


@pytest.mark.parametrize("words", [("trainer.precision=64-true", "trainer.strategy=deepspeed_zero2"), ("trainer.accelerator=mps",)])
def test_what_lightning_refuses_is_one_line(tmp_path, words):
    settings = results.plain(composed("train", *words))
    assert "trainer.accelerator=" in refusal(lambda: make_trainer(settings, tmp_path))


DATA = [
    ("train_size", 0, "use 1 or more, or null"),
    ("train_size", -1, "use 1 or more"),
    ("train_size", "many", "is no whole number"),
    ("held_out_size", -1, "use 1 or more"),
    ("held_out_size", 0, "use 1 or more"),
    ("batch_size", 0, "use 1 or more"),
    ("batch_size", "abc", "is no whole number"),
    ("workers", -1, "use 0 or more"),
    ("workers", 0.5, "is no whole number"),
    ("pad", "abc", "data.pad=abc is neither true nor false"),
    ("pad", None, "data.pad=null is neither"),
    ("cache_features", "maybe", "is neither true nor false"),
    ("held_out_share", float("nan"), "out of range"),
    ("held_out_share", 1, "outside (0, 1)"),
    ("held_out_share", "half", "is no number"),
    ("quadrants", "two", "data.quadrants=two is not known"),
    ("cache_path", " ", "data.cache_path is empty"),
    ("cache_dtype", "float16", "data.cache_dtype=float16 is not known"),
]


@pytest.mark.parametrize(("name", "value", "message"), DATA)
def test_a_value_of_the_data_that_cannot_be(name, value, message):
    line = refusal(lambda: data.PairedCrops(lambda image: image, **{name: value}))
    assert line.startswith(f"data.{name}") and message in line


@pytest.mark.parametrize(
    ("source", "words", "name"),
    [
        ("folder", {"path": ""}, "path="),
        ("folder", {"path": " "}, "path= "),
        ("folder", {}, "path=null"),
        ("llava_665k", {"json": "", "images": "x"}, "json="),
        ("llava_665k", {"json": "x.json", "images": ""}, "images="),
    ],
)
def test_an_empty_path_is_not_the_working_folder(source, words, name):
    assert refusal(lambda: data.PairedCrops(lambda image: image, source, **words)).startswith(f"data.{name} names nothing to train on")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "much", None, True])
def test_a_loss_weight_that_cannot_be(weight):
    assert refusal(lambda: losses.weighted({"mse": 1.0, "kl": weight})).startswith("loss.weights.kl=")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "x", None])
def test_a_seed_that_cannot_be(seed):
    assert refusal(lambda: recipe.check_seed(seed)).startswith("seed=")


def test_modules_that_could_not_be_written_are_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for words, message in (
        (f"output={tmp_path / 'file'}", "is a file; give another"),
        (f"output={tmp_path / 'file' / 'below'}", "is a file; give another"),
        ("output=", "output= is empty"),
    ):
        assert message in refusal(lambda words=words: train(tmp_path / "run", words))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "no permission" in refusal(lambda: recipe.check_paths({"output": str(tmp_path / "x")}, tmp_path))


def test_refusals_come_before_the_model_is_loaded(tmp_path, monkeypatch):
    import hydra.utils

    monkeypatch.setattr(hydra.utils, "instantiate", lambda *a, **k: pytest.fail("the model was loaded"))
    for words in (
        "trainer.epochs=0",
        "data.workers=-1",
        "loss.weights.kl=-1",
        "data.batch_size=abc",
        "tokensr.architecture=cnv",
        "seed=-1",
    ):
        refusal(lambda words=words: train(tmp_path / "run", words))
    assert not list(tmp_path.rglob("config.yaml"))
