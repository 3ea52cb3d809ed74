"""Losses of TokenSR: standardised KL by hand, constant dimensions, and every loss preset with every architecture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.composing import config
from support.scripts import ROOT
from support.training_runs import train

from blink_exp.commands.train import job_of
from blink_exp.training import losses
from blink_exp.training.feature_cache import Features
from blink_exp.training.losses import weighted
from blink_exp.training.module import TokenSRTraining
from blink_exp.training.standardise import Moments, Standardiser

LOSS_PRESETS = sorted(
    {path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")} - {"answer"}
)  # of features; answer: test_answer_loss.py
TRAINABLE = sorted({path.stem for path in (ROOT / "conf" / "tokensr").glob("*.yaml")} - {"interp", "closeup"})


class Width:
    width, grid, identity = 16, (4, 4), "random"


def features(pairs: int = 2) -> Features:
    torch.manual_seed(1)
    return Features(torch.randn(pairs, 1, 4, 16), torch.randn(pairs, 1, 16, 16))


def test_kl_standardised_is_kl_of_standardised_states_at_its_temperature():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 8) * torch.tensor([100.0] + 7 * [1.0]) + 3
    mean, deviation = teacher.mean((0, 1)), teacher.std((0, 1), unbiased=False)
    s, t = ((x - mean) / deviation / 2 for x in (student, teacher))
    wanted = 4 * (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean()  # 4: temperature^2
    assert losses.kl_standardised(student, teacher, temperature=2.0).item() == pytest.approx(wanted.item(), rel=1e-5)
    by_hand = weighted({"kl_standardised": 1.0}, temperature=2.0)(student, teacher, Standardiser(mean, 1 / deviation))
    assert by_hand.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_standardised_kl_sees_the_dimensions_that_kl_does_not():
    """One dimension 50 times as large as the others holds all of the softmax, as in the scale model's states."""
    torch.manual_seed(0)
    size = torch.tensor([50.0] + 15 * [1.0])
    teacher = torch.randn(1, 400, 16) * size + torch.tensor([200.0] + 15 * [0.0])
    wrong = teacher.clone()
    wrong[..., 1:] = wrong[..., 1:].roll(1, dims=1)  # every small dimension is another token's
    assert losses.kl(wrong, teacher) < 1e-6
    assert losses.kl_standardised(wrong, teacher) > 0.5


def test_moments_are_those_of_all_batches_and_a_constant_dimension_is_left_out():
    torch.manual_seed(0)
    batches = [torch.randn(n, 7, 5) * 3 + 1000 for n in (2, 4)]
    for batch in batches:
        batch[..., 2] = 17.0
    moments = Moments(2, 5)
    for batch in batches:
        moments.add(1, batch)
    mean, scale = moments.mean_and_scale()
    every = torch.cat([b.flatten(0, 1) for b in batches])
    torch.testing.assert_close(mean[1], every.mean(0), rtol=1e-5, atol=1e-3)
    varies = [0, 1, 3, 4]
    torch.testing.assert_close(1 / scale[1, varies], every.std(0, unbiased=False)[varies], rtol=1e-3, atol=1e-3)
    assert scale[1, 2] == 0
    assert scale[0].eq(0).all() and mean[0].isfinite().all()  # no feature at all


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_without_any_deviation_give_neither_nan_nor_gradients_of_nan(value):
    student = torch.randn(1, 4, 8, requires_grad=True)
    loss = losses.kl_standardised(student, torch.full((1, 4, 8), value))
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TRAINABLE)
@pytest.mark.parametrize("loss", LOSS_PRESETS)
def test_every_loss_preset_trains_every_architecture(loss, architecture):
    chosen = job_of(config("train", f"loss={loss}", f"tokensr={architecture}"), Path("run")).settings
    weights = asdict(chosen.loss.weights)
    assert weights.pop("answer") == 0  # a loss of its own (training/answer_module.py)
    whole = weighted(weights, chosen.loss.temperature)
    module = TokenSRTraining(Width(), [0], chosen.tokensr.architecture, whole)  # type: ignore[arg-type]
    batch = features()
    module.take_statistics([batch])
    before = module.losses(batch).sum()
    before.backward()
    gradients = [p.grad for p in module.amplifiers.parameters()]
    assert before.isfinite() and all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients if g is not None)
    with torch.no_grad():
        for parameter in module.amplifiers.parameters():
            parameter -= 1e-3 * parameter.grad  # type: ignore[operator]
        assert module.losses(batch).sum() < before


@pytest.mark.slow
@pytest.mark.parametrize("words", [("loss=kl_standardised",), ("loss=kl_standardised", "loss.standardise=norm"), ("loss=kl_mse",)])
def test_train_py_trains_by_the_new_losses(tmp_path, words):
    train(tmp_path, *words, "loss.statistics_pairs=4")
    row = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["layers"]["1"]
    assert 0 < row["tokensr"] < 100 and 0 < row["interpolation"] < 100
