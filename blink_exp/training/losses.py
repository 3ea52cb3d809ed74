"""Training losses between expanded tokens and those of the close-up (Blink, Sec. 3.2.1: KL to the crop's hidden states).

All take student and teacher as (batch, tokens, width) and return a scalar. Installed packages add losses by entry points
(``blink_exp.plugins``). The paper gives neither direction, normalisation nor temperature; chosen: KL(teacher || student), softmax over the
hidden dimension of each token, temperature 1, mean over tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from blink_exp import plugins
from blink_exp.errors import UserError, nearest
from blink_exp.plugins import Registry

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) over the hidden dimension, mean over tokens."""
    s, t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(s, t, reduction="none", log_target=True).sum(-1).mean()


def kl_spatial(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """As ``kl``, with the softmax over tokens for each channel."""
    return kl(student.mT, teacher.mT)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(student.float(), teacher.float())


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity, mean over tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


LOSSES: Registry[Loss] = Registry(plugins.LOSSES, kl, kl_spatial, mse, cosine)


def weighted(weights: dict[str, float]) -> Loss:
    """A weighted sum of losses, e.g. ``{"kl": 1.0, "mse": 0.1}``."""
    for name in weights:
        if name not in LOSSES:
            raise UserError(f"loss.weights.{name} is not a loss; {nearest(name, LOSSES)}")
    chosen = [(LOSSES[name], weight) for name, weight in weights.items() if weight]
    if not chosen:
        raise UserError(f"loss.weights={weights} gives every loss the weight 0; give at least one a positive weight")

    def total(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight * loss(student, teacher) for loss, weight in chosen]).sum()

    return total
