"""TokenSR: the trained amplifier that refines an enlarged patch of visual tokens (Blink, Sec. 3.2.1 and App. A).

An architecture is a function of the width; installed packages add some by entry points (``blink_exp.plugins``). Each maps
(batch, width, H, W) to the same shape and works on any H and W, so a module trained on quadrants also serves 3 x 3 and 4 x 4 patches and
Table 7's "w/o interp".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from blink_exp import plugins
from blink_exp.errors import UserError, nearest
from blink_exp.plugins import Registry


def conv(width: int) -> nn.Sequential:
    """The paper's module: 5x5 d -> d/2, ReLU, 3x3 d/2 -> d/4, ReLU, 1x1 d/4 -> d, same padding."""
    return nn.Sequential(
        nn.Conv2d(width, width // 2, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width // 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width // 4, width, 1),
    )


def last_zero(body: nn.Sequential) -> nn.Sequential:
    """``body`` with its last layer, a convolution, initialised to zero."""
    nn.init.zeros_(body[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(body[-1].bias)  # type: ignore[arg-type]
    return body


class Residual(nn.Module):
    """x + body(x), with the body's last layer initialised to zero, so that training starts at plain interpolation."""

    def __init__(self, body: nn.Sequential):
        super().__init__()
        self.body = last_zero(body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.body(x)
        return x + change


def residual_conv(width: int) -> nn.Module:
    """``conv`` around a skip connection."""
    return Residual(conv(width))


def mlp(width: int) -> nn.Module:
    """Token by token, the paper's future work (App. G): two layers with a skip connection."""
    return Residual(nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.Conv2d(width, width, 1)))


def depthwise(width: int) -> nn.Module:
    """A light module: 5x5 per channel, then two 1x1 over a quarter of the width, around a skip connection."""
    return Residual(
        nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.Conv2d(width, width // 4, 1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width, 1),
        )
    )


class PixelShuffle(nn.Module):
    """Sub-pixel convolution: works at half the resolution, predicts four tokens for each, and adds them to its input.

    Odd sides are padded by repeating the last row and column, and cropped again.
    """

    def __init__(self, width: int):
        super().__init__()
        self.body = last_zero(nn.Sequential(nn.Conv2d(4 * width, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, 4 * width, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2:]
        even = nn.functional.pad(x, (0, w % 2, 0, h % 2), mode="replicate")
        fine = nn.functional.pixel_shuffle(self.body(nn.functional.pixel_unshuffle(even, 2)), 2)
        return x + fine[..., :h, :w]


def pixel_shuffle(width: int) -> nn.Module:
    return PixelShuffle(width)


def interp(width: int) -> nn.Module:
    """No parameters: the interpolated patch itself (Blink-interp)."""
    return nn.Identity()


ARCHITECTURES: Registry[Callable[[int], nn.Module]] = Registry(
    plugins.ARCHITECTURES, conv, residual_conv, mlp, depthwise, pixel_shuffle, interp
)


def build(architecture: str, width: int) -> nn.Module:
    if architecture not in ARCHITECTURES:
        raise UserError(f"tokensr.architecture={architecture} is not known; {nearest(architecture, ARCHITECTURES)}")
    return ARCHITECTURES[architecture](width)


def build_all(architecture: str, width: int, layers: Iterable[int]) -> nn.ModuleDict:
    """A module for each layer, keyed by the layer's index."""
    return nn.ModuleDict({str(layer): build(architecture, width) for layer in layers})
