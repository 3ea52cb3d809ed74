"""Training losses between expanded tokens and those of the close-up (Blink, Sec. 3.2.1: KL to the crop's hidden states).

All take student and teacher as (batch, tokens, width) and return a scalar. One that also names ``temperature`` or ``standardise`` among its
parameters is given that of the settings: a number, and a function that makes the dimensions of a layer's features comparable. Installed
packages add losses by entry points (``blink_exp.plugins``). The paper gives neither direction, normalisation nor temperature; chosen:
KL(teacher || student), softmax over the hidden dimension of each token, temperature 1, mean over tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from blink_exp import plugins
from blink_exp.errors import UserError, nearest
from blink_exp.plugins import Registry
from blink_exp.training.standardise import of_batch

Standardise = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[..., torch.Tensor]


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher || student) over the hidden dimension, mean over tokens. At a temperature T the states are divided by T and the loss is
    multiplied by T^2, so that gradients keep their size (Hinton et al., 2015)."""
    s, t = (student.float() / temperature).log_softmax(-1), (teacher.float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(s, t, reduction="none", log_target=True).sum(-1).mean()


def kl_spatial(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """As ``kl``, with the softmax over tokens for each channel."""
    return kl(student.mT, teacher.mT, temperature)


def kl_standardised(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, standardise: Standardise | None = None
) -> torch.Tensor:
    """As ``kl``, of standardised states. Raw ones have a few dimensions so large that they hold nearly all of the softmax, and ``kl`` does
    not see the others. ``standardise``: None: by mean and deviation of the teacher's dimensions in this batch."""
    standardise = standardise or of_batch(teacher)
    return kl(standardise(student), standardise(teacher), temperature)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(student.float(), teacher.float())


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity, mean over tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


LOSSES: Registry[Loss] = Registry(plugins.LOSSES, kl, kl_spatial, kl_standardised, mse, cosine)


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum of losses. ``parts``: (loss, weight); ``temperature``: of those that take one."""

    parts: tuple[tuple[Loss, float], ...]
    temperature: float = 1.0

    @property
    def standardises(self) -> bool:
        """Whether a part reads ``standardise``."""
        return any("standardise" in _parameters(loss) for loss, _ in self.parts)

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, standardise: Standardise | None = None) -> torch.Tensor:
        options = {"temperature": self.temperature, "standardise": standardise}
        values = [
            weight * loss(student, teacher, **{name: options[name] for name in options if name in _parameters(loss)})
            for loss, weight in self.parts
        ]
        return torch.stack(values).sum()


@functools.cache
def _parameters(loss: Loss) -> Mapping[str, Any]:
    return inspect.signature(loss).parameters


def weighted(weights: dict[str, float], temperature: float = 1.0) -> WeightedLoss:
    """A weighted sum of losses, e.g. ``{"kl": 1.0, "mse": 0.1}``."""
    for name in weights:
        if name not in LOSSES:
            raise UserError(f"loss.weights.{name} is not a loss; {nearest(name, LOSSES)}")
    chosen = tuple((LOSSES[name], weight) for name, weight in weights.items() if weight)
    if not chosen:
        raise UserError(f"loss.weights={weights} gives every loss the weight 0; give at least one a positive weight")
    return WeightedLoss(chosen, temperature)
