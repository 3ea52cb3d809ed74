"""The group optim: the rates of the shipped schedule step by step, Table 4's recipe in effect, and optimizers by _target_."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.composing import config
from support.refusals import refusal

from blink_exp.commands.train import job_of
from blink_exp.training.optimization import Optimization, cosine


def optimization(*words: str) -> Optimization:
    return job_of(config("train", *words), Path("run")).optimization


def built(chosen: Optimization, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    return chosen.build([torch.nn.Parameter(torch.zeros(1))], steps)


def rates(chosen: Optimization, steps: int) -> list[float]:
    """The learning rate of each step, and the one behind the last."""
    optimizer, schedule = built(chosen, steps)
    out = []
    for _ in range(steps + 1):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


@pytest.mark.parametrize("steps", [1, 2, 3, 33, 34, 100, 200])
def test_the_rate_of_every_step_is_that_of_the_formula(steps):
    """(s + 1) / warm in the warm-up, half a cosine to 0 behind it: the first step trains, and a training of one step has the whole rate."""
    warm = max(1, round(0.03 * steps))
    wanted = [(s + 1) / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / max(1, steps - warm))) for s in range(steps + 1)]
    learning_rates = rates(Optimization(lr=2.0), steps)
    assert learning_rates == pytest.approx([2 * rate for rate in wanted], abs=1e-12)
    assert learning_rates[0] > 0


def test_a_schedule_that_is_restored_goes_on_where_it_stopped():
    whole = rates(Optimization(), 100)
    optimizer, schedule = built(Optimization(), 100)
    for _ in range(40):
        optimizer.step()
        schedule.step()
    other, again = built(Optimization(), 100)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    for step in range(40, 100):
        assert other.param_groups[0]["lr"] == pytest.approx(whole[step], rel=1e-9)
        other.step()
        again.step()


@pytest.mark.parametrize(("words", "lr"), [((), 3e-3), (("trainer=paper",), 1e-4), (("trainer=gpu",), 1e-4), (("optim=paper",), 1e-4)])
def test_presets_of_gpus_bring_table_4_s_optimizer(words, lr):
    chosen = optimization(*words)
    optimizer, _ = built(chosen, 200)
    assert type(optimizer) is torch.optim.AdamW and chosen.schedule.func is cosine  # type: ignore[attr-defined]
    assert (chosen.lr, chosen.warmup, optimizer.defaults["weight_decay"]) == (lr, 0.03, 0.0)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_a_preset_of_a_trainer_leaves_the_user_s_choice():
    assert optimization("trainer=paper", "optim=adamw_cosine").lr == optimization("optim=adamw_cosine", "trainer=gpu").lr == 3e-3
    assert optimization("trainer=paper", "optim.lr=7e-4").lr == 7e-4


def test_any_optimizer_and_schedule_by_target():
    words = ("optim.optimizer._target_=torch.optim.SGD", "+optim.optimizer.momentum=0.5", "optim.betas=null", "optim.eps=null")
    optimizer, _ = built(optimization(*words), 10)
    assert type(optimizer) is torch.optim.SGD and optimizer.defaults["momentum"] == 0.5 and optimizer.defaults["lr"] == 3e-3
    assert rates(optimization("optim=adamw_linear", "optim.warmup=0.2"), 10)[:4] == pytest.approx([0, 1.5e-3, 3e-3, 3e-3 * 7 / 8])
    line = refusal(lambda: built(optimization(words[0]), 10))
    assert "optim.optimizer does not take these values" in line and "betas" in line
    line = refusal(lambda: built(optimization("optim.schedule._target_=torch.optim.lr_scheduler.StepLR"), 10))
    assert "optim.schedule cannot be made" in line and "num_warmup_steps" in line
