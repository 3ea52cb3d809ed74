"""Mean and standard deviation of each hidden dimension over training features, for losses that no few large dimensions should rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CONSTANT = 1e-6  # a dimension whose deviation is below this share of the largest one carries nothing


@dataclass(frozen=True)
class Standardiser:
    """(x - ``mean``) * ``scale`` over the last dimension. ``scale``: 1 / standard deviation; 0, not inf, where a dimension is constant."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() - self.mean) * self.scale


class Moments:
    """Sums over the tokens of (batch, tokens, width) features of several layers."""

    def __init__(self, layers: int, width: int, device: torch.device | str = "cpu"):
        self.sums = torch.zeros(layers, 1 + 2 * width, dtype=torch.float64, device=device)  # tokens, x, x^2

    def add(self, row: int, features: torch.Tensor) -> None:
        x = features.detach().flatten(0, -2).to(self.sums)
        self.sums[row] += torch.cat([x.new_tensor([len(x)]), x.sum(0), x.square().sum(0)])

    def mean_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(layers, width) float32 each; see ``Standardiser``."""
        tokens, x, squares = self.sums.split([1, *[(self.sums.shape[1] - 1) // 2] * 2], dim=1)
        mean = x / tokens.clamp(min=1)
        deviation = (squares / tokens.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        varies = deviation > CONSTANT * deviation.amax(1, keepdim=True)
        return mean.float(), torch.where(varies, 1 / deviation.where(varies, 1), 0).float()


def of_batch(features: torch.Tensor) -> Standardiser:
    """The standardiser of the features themselves."""
    moments = Moments(1, features.shape[-1], features.device)
    moments.add(0, features)
    mean, scale = moments.mean_and_scale()
    return Standardiser(mean[0], scale[0])
