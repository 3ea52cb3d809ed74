"""FastV (An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models).

Behind the first few layers of the LLM an image receives very little attention, so most of its tokens can go. FastV runs the first K
layers on the whole prompt. Then it asks layer K - 1, the last of them: how much did the last prompt token attend to each visual token
(softmax over all keys, mean over heads)? The share R of visual tokens with the most attention goes on, in their old order; the others
are gone for all later layers. Text is never dropped.

    layers 0 .. K - 1    system | all visual tokens | text          their caches hold the full prompt
    layers K ..          system | R of the visual tokens | text     their caches hold this

Tokens keep the positions that they have in the full prompt, so gaps stay where tokens were dropped, and an answer goes on behind the
full prompt's length at every layer. The choice is made once, on the prompt. Nothing is trained and nothing is merged.

LLaVA-NeXT's thumbnail, tiles and newlines, and all images of a prompt, are one range of candidates.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blink_exp.core.method import Method, Scan, TokenPolicy
from blink_exp.core.sequence import Retain
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import check_ratio, floor_tolerant, nominal_tokens, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")


@dataclass(frozen=True)
class FastVPolicy(TokenPolicy):
    """FastV's decision. Pure: the same scan always gives the same decision.

    Args:
        full_layers: layers that see every token (K; 2 in the paper's main setting, with R = 0.5). Their last one does the choosing.
        retention_ratio: share of the visual tokens that is KEPT behind them (R; the paper's own ratio is the share removed). At 1 there
            is nothing to decide and the model is left alone.
        mode: ``paper`` rounds the number of kept tokens down, ``reference`` to the nearest, halves to even, as the authors' port to
            Hugging Face does. At least one token stays; a ratio that rounds to none is logged.
    """

    full_layers: int = 2
    retention_ratio: float = 0.5
    mode: str = "paper"

    inherit_positions = True

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.retention_ratio)
        if self.full_layers < 1:
            raise UserError(f"full_layers={self.full_layers} leaves no layer to choose by; use 1 or more")
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode} is not known; {nearest(self.mode, MODES)}")

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self.retention_ratio == 1 else (self.full_layers - 1,)

    def budget(self, visual: int) -> int:
        """How many of ``visual`` tokens are kept."""
        share = visual * self.retention_ratio
        budget = floor_tolerant(share) if self.mode == "paper" else round(share)
        if budget < 1 <= visual:
            _warn_of_one_token(self.retention_ratio, visual)
        return max(1, budget)

    def kept(self, visual: int) -> list[int]:
        return [self.budget(visual)] * len(self.layers)

    def decide(self, layer: int, scan: Scan) -> Retain:
        indices = top(torch.tensor(scan.token_scores), self.budget(len(scan.token_scores)))
        return Retain(tuple(indices.tolist()))


@functools.cache  # once per process
def _warn_of_one_token(ratio: float, visual: int) -> None:
    logging.getLogger(__name__).warning("retention_ratio=%s rounds to no token of %d visual ones; fastv keeps one", ratio, visual)


def tokens_behind(tokens: int, visual: int, full_layers: int, depth: int) -> int:
    """How many of ``visual`` tokens stay behind ``full_layers`` of ``depth`` layers, so that a layer holds ``tokens`` on average, to the
    nearest: (visual * full_layers + n * (depth - full_layers)) / depth."""
    remaining = math.floor((tokens * depth - visual * full_layers) / (depth - full_layers) + 0.5)
    if remaining < 1:
        least = math.ceil((visual * full_layers + depth - full_layers) / depth)
        raise UserError(
            f"tokens={tokens} is less than fastv can reach: {full_layers} full layers of {visual} visual tokens alone make"
            f" {visual * full_layers / depth:.1f} a layer; use tokens={least} or more, or a smaller method.full_layers"
        )
    return remaining


def configure(
    backbone: Backbone,
    *,
    full_layers: int = 2,
    retention_ratio: float = 0.5,
    tokens: int | None = None,
    mode: str = "paper",
    relative: bool = True,
) -> Method:
    """FastV on ``backbone``. ``tokens``: instead of ``retention_ratio``, visual tokens a layer, averaged over all layers; ``relative``:
    ``full_layers`` is written for an LLM of 32 layers and scaled to the backbone's depth."""
    depth = backbone.depth
    layers = max(1, round(full_layers * depth / 32)) if relative and full_layers >= 1 else full_layers
    if layers >= depth:
        raise UserError(f"full_layers={full_layers} is {layers} layers of a backbone of {depth}, so none would be saved; use fewer")
    if tokens is not None:
        token_share(backbone, retention_ratio, tokens)  # refuses what no method can keep
        visual = nominal_tokens(backbone)
        retention_ratio = tokens_behind(tokens, visual, layers, depth) / visual
    return Method(FastVPolicy(layers, retention_ratio, mode), name="fastv")
