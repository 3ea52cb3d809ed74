"""SparseVLM (Visual Token Sparsification for Efficient Vision-Language Model Inference), as its authors' code runs it (v1).

Which visual tokens matter depends on the question, and only some words of the question concern the image. So

  1. raters: before the first layer, the text tokens whose embeddings match the visual ones best are chosen, once (``text_raters``);
  2. behind layers 2, 6 and 15 a visual token is scored by the attention that the raters paid to it in that layer (softmax over all
     keys, mean over heads and raters), and only the best ones are kept;
  3. recycling: the better 30 % of the pruned tokens are clustered by density (``density_peaks``) to about a tenth of as many tokens, the
     means of the clusters, which follow the kept visual tokens. They can be pruned again at the next layer.

Positions are renumbered without gaps after each pruning, and a generated token follows its layer's cache.

The numbers of kept tokens are a list for the three layers: the authors' lists for LLaVA-1.5 are named by the number of visual tokens that
their layers hold on average ("192 tokens"). For any other number of tokens, so for LLaVA-NeXT, the shape of the first list is scaled
(``scaled_schedule``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blink_exp.core.method import Method, Scan, TokenPolicy
from blink_exp.core.sequence import Retain
from blink_exp.errors import UserError
from blink_exp.methods.blink import relative_layers
from blink_exp.methods.budgets import check_ratio, floor_tolerant, nominal_tokens, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

LAYERS = (2, 6, 15)
TOKENS = 576  # of LLaVA-1.5, which the lists are made for
SCHEDULES = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
RECYCLED, CLUSTERED = 0.3, 0.1  # share of the pruned tokens that is clustered; clusters for each candidate


@dataclass(frozen=True)
class SparseVLMPolicy(TokenPolicy):
    """SparseVLM's decisions. Pure: the same scan always gives the same decision.

    Args:
        layers: layers behind which tokens are pruned, 0-based, ascending.
        schedule: how many visual tokens are kept behind each of them, before recycling.
        shares: instead of ``schedule``: which share of the prompt's visual tokens.
    """

    layers: tuple[int, ...] = LAYERS
    schedule: tuple[int, ...] | None = SCHEDULES[192]
    shares: tuple[float, ...] | None = None

    def raters(self, visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return text_raters(visual, text)

    def kept(self, visual: int) -> list[int]:
        return counts(visual, self.schedule or [max(1, floor_tolerant(share * visual)) for share in self.shares or ()])

    def decide(self, layer: int, scan: Scan) -> Retain:
        assert scan.distances is not None
        step, scores = self.layers.index(layer), torch.tensor(scan.token_scores)
        target = self.schedule[step] if self.schedule else max(1, floor_tolerant(self.shares[step] * scan.visual))  # type: ignore[index]
        keep, candidates, clusters = budgets(len(scores), target)
        indices = top(scores, keep)
        left = torch.ones(len(scores), dtype=torch.bool).index_fill(0, indices, False)
        recycled = top(scores, candidates, left)
        groups = density_peaks(scan.distances(recycled), clusters)
        return Retain(tuple(indices.tolist()), tuple(tuple(recycled[list(group)].tolist()) for group in groups))


def text_raters(visual: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(text,) bool: the text tokens that rate visual tokens, from embeddings (visual, hidden) and (text, hidden).

    Each visual token spreads a weight of 1 over the text tokens by the softmax of their dot products; raters have more than the mean
    weight. If none has, as with a single token, all are.
    """
    weight = (visual.float() @ text.float().T).softmax(1).mean(0)
    chosen = weight > weight.mean()
    return chosen if bool(chosen.any()) else torch.ones_like(chosen)


def budgets(present: int, target: int) -> tuple[int, int, int]:
    """How many of ``present`` visual tokens are kept, how many of the others are candidates for recycling, and to how many clusters they
    are merged. At least one token is always pruned."""
    keep = min(target, present - 1)
    candidates = floor_tolerant(RECYCLED * (present - keep)) + 1
    return keep, candidates, floor_tolerant(CLUSTERED * candidates) + 1


def counts(visual: int, schedule: Rows[int]) -> list[int]:
    """Visual tokens behind each pruning, merged ones included; ``visual``: in the prompt."""
    out = [visual]
    for target in schedule:
        keep, _, clusters = budgets(out[-1], target)
        out.append(keep + clusters)
    return out[1:]


def layer_average(visual: int, behind: Rows[float], layers: Rows[int] = LAYERS, depth: int = 32) -> float:
    """Visual tokens a layer holds on average, counted as the published names of the lists are: as if a pruning layer itself had
    the pruned sequence. The true average is slightly higher (layers 0 to 2 see all tokens)."""
    edges = [0, *layers, depth]
    spans = [b - a for a, b in itertools.pairwise(edges)]
    return sum(n * span for n, span in zip([visual, *behind], spans, strict=True)) / depth


def scaled_schedule(ratio: float, layers: Rows[int] = LAYERS, depth: int = 32) -> tuple[float, ...]:
    """Shares of the visual tokens to keep behind each of ``layers``: the shape of the first list, scaled so that the layer average
    before recycling is ``ratio`` (chosen: SparseVLM itself has no rule for other numbers of tokens). Where a share would
    be more than everything, it is everything and the others are scaled for the rest."""
    shape = [n / TOKENS for n in SCHEDULES[192]]
    for full in range(len(shape)):
        fixed = [1.0] * full + [0.0] * (len(shape) - full)
        part = [0.0] * full + shape[full:]
        scale = (ratio - layer_average(1, fixed, layers, depth)) / layer_average(0, part, layers, depth)
        if scale * shape[full] <= 1:
            break
    if scale <= 0:
        least = layer_average(1, [0.0] * len(shape), layers, depth)
        raise UserError(
            f"retention_ratio={ratio} cannot be met: the layers in front of the first pruning alone make {least}; use more than that"
        )
    return tuple(min(1.0, scale * share) for share in shape)


def shares_for(tokens: int, visual: int, layers: Rows[int] = LAYERS, depth: int = 32) -> tuple[float, ...]:
    """Shares as of ``scaled_schedule`` with which a layer holds ``tokens`` of ``visual`` tokens on average, to the nearest: the true
    average, with merged tokens, and with pruning layers that see all that reaches them."""

    def average(ratio: float) -> float:
        policy = SparseVLMPolicy(tuple(layers), None, scaled_schedule(ratio, layers, depth))
        return sum(policy.layer_tokens(visual, depth)) / depth

    below, above = layer_average(1, [0.0] * len(layers), layers, depth) + 1e-6, 1.0
    least = average(below)
    if tokens < math.floor(least):
        raise UserError(
            f"tokens={tokens} is less than sparsevlm can reach: what stands in front of the first pruning, and what is merged, make"
            f" {least:.1f} of {visual} visual tokens a layer; use tokens={math.ceil(least)} or more, or earlier method.layers"
        )
    for _ in range(40):
        middle = (below + above) / 2
        below, above = (middle, above) if average(middle) < tokens else (below, middle)
    return scaled_schedule(min(below, above, key=lambda ratio: abs(average(ratio) - tokens)), layers, depth)


def _check_spread(layers: Rows[int], budget: str) -> None:
    if len(layers) != len(LAYERS):
        raise UserError(f"layers={list(layers)}: {budget} is spread over {len(LAYERS)} layers; give a schedule")


def density_peaks(distances: torch.Tensor, clusters: int) -> list[tuple[int, ...]]:
    """Clusters of n tokens by their (n, n) ``distances``: tuples of indices, each ascending, that hold every token once.

    A token's density is exp(-mean squared distance to its ``clusters`` nearest, itself among them), its separation the distance to the
    nearest denser token (for the densest: the largest distance there is). Centres have the largest product of both, in whose order the
    clusters come; every other token joins its nearest centre. On equal density the lower index counts as denser, where the authors
    add random noise instead.
    """
    tokens = torch.arange(len(distances))
    density = (-distances.topk(clusters, largest=False).values.square().mean(1)).exp()
    denser = (density > density[:, None]) | ((density == density[:, None]) & (tokens < tokens[:, None]))
    separation = distances.masked_fill(~denser, float("inf")).amin(1)
    separation = torch.where(denser.any(1), separation, distances.max())
    centres = torch.sort(density * separation, descending=True, stable=True).indices[:clusters]
    nearest = distances[:, centres].argmin(1)
    nearest[centres] = torch.arange(clusters)  # a centre joins itself, also where another one is 0 away
    members: list[list[int]] = [[] for _ in range(clusters)]
    for token, c in enumerate(nearest.tolist()):
        members[c].append(token)
    return [tuple(group) for group in members]


def configure(
    backbone: Backbone,
    *,
    schedule: int | list[int] | None = 192,
    retention_ratio: float | None = None,
    tokens: int | None = None,
    layers: Rows[int] = LAYERS,
    relative: bool = True,
) -> Method:
    """SparseVLM on ``backbone``.

    ``schedule``: 192, 128, 96 or 64 for the authors' lists, or a list of the tokens to keep behind each of ``layers``;
    ``retention_ratio``: instead, the layer average to aim at, as a share of the visual tokens; ``tokens``: instead, the true layer average
    for an image of nominal size, merged tokens included (``shares_for``); ``relative``: ``layers`` are written for an
    LLM of 32 layers and scaled to the backbone's depth.
    """
    chosen = relative_layers(layers, backbone.depth, relative=relative)
    if len(chosen) != len(layers):
        raise UserError(f"layers={list(layers)} fall together in the backbone's {backbone.depth} layers, {list(chosen)}; spread them")
    if tokens is not None:
        if schedule is not None:
            raise UserError(
                f"tokens={tokens} and sparsevlm.schedule={schedule} both set the budget; give one of them and null for the other"
            )
        _check_spread(layers, f"tokens={tokens}")
        token_share(backbone, 1.0, tokens)  # refuses what no method can keep
        return Method(SparseVLMPolicy(chosen, None, shares_for(tokens, nominal_tokens(backbone), chosen, backbone.depth)), name="sparsevlm")
    if (schedule is None) == (retention_ratio is None):
        raise UserError(f"schedule={schedule} and retention_ratio={retention_ratio}: give one of them and null for the other")
    if retention_ratio is not None:
        check_ratio("retention_ratio", retention_ratio)
        _check_spread(layers, f"retention_ratio={retention_ratio}")
        return Method(SparseVLMPolicy(chosen, None, scaled_schedule(retention_ratio, chosen, backbone.depth)), name="sparsevlm")
    if isinstance(schedule, int):
        if schedule not in SCHEDULES:
            raise UserError(f"schedule={schedule} has no list; use one of {', '.join(map(str, SCHEDULES))}, or a list of your own")
        schedule = list(SCHEDULES[schedule])
    assert schedule is not None
    if len(schedule) != len(layers) or min(schedule) < 1:
        raise UserError(f"schedule={schedule} needs a number of at least 1 for each of the layers {list(layers)}")
    return Method(SparseVLMPolicy(chosen, tuple(schedule)), name="sparsevlm")
