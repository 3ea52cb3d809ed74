"""DART (Stop Looking for "Important Tokens" in Multimodal Language Models: Duplication Matters More).

A token that looks like one that is kept adds nothing, however much attention it gets. DART asks no attention. Behind the first K layers of
the LLM it takes a few pivots, and keeps the visual tokens that resemble them least:

  1. pivots: the 4 visual tokens, and the 4 text tokens behind the image, whose keys in layer K - 1 have the largest L1 norm;
  2. each pivot in turn takes the n visual tokens that are left with the LOWEST cosine similarity to it. Compared are the outputs of layer
     K - 1 behind the LLM's FINAL norm. What is taken is no longer there for the next pivot;
  3. the visual pivots and what was taken stay, in their old order; text pivots only guide.

    layers 0 .. K - 1    system | all visual tokens | text
    layers K ..          system | 4 + 8 n of them   | text

n = floor(budget / 8), so a budget of 128 keeps 132. Tokens keep the positions that they have in the full prompt, and an answer goes on
behind the full prompt's length at every layer. LLaVA-NeXT's thumbnail, tiles and newlines, and all images of a prompt, are one range of
candidates. Where the authors' code raises there is a rule: a budget of more than the pool holds is cut to it; fewer than four text tokens,
or visual ones, are as many pivots, and the 8 n tokens are spread over the pivots that there are, the first ones taking one more.

    paper       pivots take turns in order of their positions; products are rounded down with a tolerance for rounding errors.
    reference   in the order of the authors' code: that in which CPython walks a set of the pivots' positions, which mixes visual and text
                ones; products are cut as the double precision gives them. Up to 21 kept tokens differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blink_exp.core.method import KeyScan, Method, Scan, TokenPolicy
from blink_exp.core.sequence import Retain
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import check_ratio, floor_tolerant, nominal_tokens, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")


@dataclass(frozen=True)
class DARTPolicy(TokenPolicy):
    """DART's decision. Pure: the same scan always gives the same decision.

    Args:
        full_layers: layers that see every token (K). The last one's keys and outputs are read.
        retention_ratio: the budget as a share of the visual tokens (1 - the paper's reduction ratio, 0.778). At 1 the model is left alone.
        truncation: instead of it, the budget in tokens.
        visual_pivots, text_pivots: how many tokens are pivots.
        mode: ``paper`` or ``reference``, see above.
    """

    full_layers: int = 2
    retention_ratio: float = 0.222
    truncation: int | None = None
    visual_pivots: int = 4
    text_pivots: int = 4
    mode: str = "paper"

    reads = "keys"
    inherit_positions = True

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.retention_ratio)
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode} is not known; {nearest(self.mode, MODES)}")
        for name, low in (("full_layers", 1), ("truncation", 1), ("visual_pivots", 1), ("text_pivots", 0)):
            if (value := getattr(self, name)) is not None and value < low:
                raise UserError(f"{name}={value} is below {low}; use {low} or more")

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self.retention_ratio == 1 and self.truncation is None else (self.full_layers - 1,)

    def taken(self, visual: int) -> int:
        """How many of ``visual`` tokens are taken for their difference, by all pivots together: 8 n."""
        pivots = self.visual_pivots + self.text_pivots
        if self.truncation is not None:
            each = self.truncation // pivots
        else:
            each = (floor_tolerant if self.mode == "paper" else int)(visual * self.retention_ratio / pivots)
        pool = max(0, visual - self.visual_pivots)
        return pivots * min(each, pool // pivots)

    def kept(self, visual: int) -> list[int]:
        return [min(self.visual_pivots, visual) + self.taken(visual)] * len(self.layers)

    def decide(self, layer: int, scan: Scan) -> Retain:
        keys = scan.keys
        assert keys is not None
        visual = sum(scan.image_tokens)
        norms = torch.tensor(keys.norms)
        pivots = strongest(norms[:visual], self.visual_pivots), [visual + t for t in strongest(norms[visual:], self.text_pivots)]
        order = visiting_order(*pivots, keys, self.mode)
        taken = most_different(keys.similarities(torch.tensor(order)), pivots[0], shares(self.taken(visual), len(order)))
        return Retain(tuple(sorted([*pivots[0], *taken])))


def strongest(norms: torch.Tensor, count: int) -> list[int]:
    """Indices of the ``count`` largest of (tokens,) ``norms``, largest first; ties go to the lower index."""
    return torch.sort(norms, descending=True, stable=True).indices[:count].tolist()


def visiting_order(visual: Rows[int], text: Rows[int], keys: KeyScan, mode: str) -> list[int]:
    """The pivots in the order in which they take tokens. ``visual``, ``text``: by falling norm."""
    by_place = {keys.places[token]: token for token in (*visual, *text)}
    places = list(set(list(by_place))) if mode == "reference" else sorted(by_place)
    return [by_place[place] for place in places]


def shares(total: int, pivots: int) -> list[int]:
    """``total`` tokens over ``pivots``, as evenly as it goes, the first ones taking one more."""
    each, more = divmod(total, pivots)
    return [each + (n < more) for n in range(pivots)]


def most_different(similarities: torch.Tensor, pivots: Rows[int], counts: Rows[int]) -> list[int]:
    """Visual tokens that pivots take one after the other: row n of (pivots, visual) ``similarities`` takes the ``counts[n]`` lowest that
    are left; ties go to the lower index. ``pivots``: visual tokens that cannot be taken."""
    left = torch.ones(similarities.shape[1], dtype=torch.bool)
    left[list(pivots)] = False
    out: list[int] = []
    for row, count in zip(similarities, counts, strict=True):
        lowest = top(-row, count, left)
        left[lowest] = False
        out += lowest.tolist()
    return out


def configure(
    backbone: Backbone,
    *,
    full_layers: int = 2,
    retention_ratio: float = 0.222,
    tokens: int | None = None,
    truncation: int | None = None,
    visual_pivots: int = 4,
    text_pivots: int = 4,
    mode: str = "paper",
    relative: bool = True,
) -> Method:
    """DART on ``backbone``.

    ``tokens``: the layer average to meet, the full layers counted; ``truncation``: the budget in tokens behind them, as the authors'
    scripts give it, instead of ``retention_ratio``; ``relative``: ``full_layers`` is written for an LLM of 32 layers and scaled to the
    backbone's depth.
    """
    depth = backbone.depth
    layers = max(1, round(full_layers * depth / 32)) if relative and full_layers >= 1 else full_layers
    if layers >= depth:
        raise UserError(f"full_layers={full_layers} is {layers} layers of a backbone of {depth}, so none would be saved; use fewer")
    if tokens is not None and truncation is not None:
        raise UserError(f"tokens={tokens} and truncation={truncation}: give one of them and null for the other")
    share = token_share(backbone, retention_ratio, tokens)
    if tokens is not None:
        behind = (share * depth - layers) / (depth - layers)
        if behind <= 0:
            full = layers / depth * tokens / share
            raise UserError(f"tokens={tokens} cannot be met: the {layers} full layers alone make {full:.4g} a layer; use more than that")
        share = behind
        visual, pivots = nominal_tokens(backbone), visual_pivots + text_pivots
        while int(visual * share / pivots) < floor_tolerant(visual * behind / pivots):  # of 576 tokens 0.30555 * 576 is below 176
            share = math.nextafter(share, 2)
    return Method(DARTPolicy(layers, share, truncation, visual_pivots, text_pivots, mode), name="dart")
