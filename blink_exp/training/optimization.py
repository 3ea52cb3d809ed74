"""The optimizer and the learning-rate schedule of a training, as set in conf/optim."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from blink_exp.errors import UserError, flat


def cosine(optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int) -> SequentialLR:
    """Linear up to the optimizer's rate, which step ``num_warmup_steps`` - 1 has, then half a cosine to 0.

    The signature is that of the schedules of transformers. Step s of the warm-up has (s + 1) / num_warmup_steps of the rate; that of
    transformers has s / num_warmup_steps, so that its first step trains nothing, which is all of a training of one step.
    """
    warmup = LinearLR(optimizer, 1 / num_warmup_steps, total_iters=num_warmup_steps - 1)
    decay = CosineAnnealingLR(optimizer, max(1, num_training_steps - num_warmup_steps))
    return SequentialLR(optimizer, [warmup, decay], milestones=[num_warmup_steps])


@dataclass(frozen=True)
class Optimization:
    """How weights are optimized. Defaults: Blink's recipe (App. A, Table 4).

    Args:
        lr: peak of the learning rate.
        weight_decay: not given in the paper; chosen: LLaVA-1.5's.
        betas, eps: None: the optimizer's own.
        warmup: share of the steps, at least one step.
        optimizer: called with the weights and the values above.
        schedule: called as ``cosine``.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    eps: float | None = None
    warmup: float = 0.03
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW
    schedule: Callable[..., LRScheduler] = cosine

    def build(self, weights: Iterable[torch.nn.Parameter], steps: int) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of ``weights`` and its schedule over ``steps`` optimizer steps. Raises UserError for invalid values."""
        values: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "betas": self.betas, "eps": self.eps}
        try:
            optimizer = self.optimizer(list(weights), **{name: value for name, value in values.items() if value is not None})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optim.optimizer does not take these values ({flat(error, 200)}); null leaves optim.betas and optim.eps away"
            ) from error
        try:
            return optimizer, self.schedule(optimizer, num_warmup_steps=max(1, round(self.warmup * steps)), num_training_steps=steps)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"optim.schedule cannot be made ({flat(error, 200)}); it is called with optimizer, num_warmup_steps and num_training_steps"
            ) from error
