"""PyramidDrop (PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction).

In its first layers an LLM needs all of an image; the deeper the layer, the fewer visual tokens matter. So tokens are dropped in stages: in
front of layers 8, 16 and 24 of 32, only a half, a quarter and an eighth of the image's visual tokens go on.

    layers  0 ..  7    system | V visual tokens | text
    layers  8 .. 15    system | V / 2           | text
    layers 16 .. 23    system | V / 4           | text
    layers 24 .. 31    system | V / 8           | text          on average 0.47 V a layer

Which ones is asked anew at each stage, of the layer that comes: its input norm, query and key projections and RoPE are applied to the
states that reach it, and the last prompt token's attention (one row: softmax over all keys, mean over heads) ranks the visual tokens
that are left. int(share * V) of them stay, in their old order, V being those of the prompt. Positions are renumbered without gaps, so a
generated token's position is another one in the layers of each stage. No attention matrix is made, whatever the kernel.

Any other budget needs another schedule, for which the paper has no rule (GQA at 128 tokens is published as 57.1 and as 51.6). Ours is
``pyramid``: one factor pulls the layers to the front and makes the shares smaller. LLaVA-NeXT's thumbnail, tiles and newlines are one range
of candidates, and

    paper       all images of a prompt are, too.
    reference   tokens of the first image only are dropped, as in the authors' code. On prompts with one image it is the same.
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
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import check_ratio, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")
LAYERS = (8, 16, 24)  # of an LLM of 32: the first layer of each stage
RATIOS = (0.5, 0.25, 0.125)  # share of the prompt's visual tokens in each stage
PUBLISHED = 0.46875  # of the visual tokens, averaged over 32 layers: 270 of 576


@dataclass(frozen=True)
class PyramidDropPolicy(TokenPolicy):
    """PyramidDrop's decisions. Pure: the same scan always gives the same decision.

    Args:
        layers: layers behind which tokens are dropped, 0-based, ascending: each is the last one of a stage.
        ratios: share of the prompt's visual tokens that stays behind each of them.
        schedule: instead of ``ratios``: how many.
        mode: ``paper`` or ``reference``, see above.
    """

    layers: tuple[int, ...] = (7, 15, 23)
    ratios: tuple[float, ...] | None = RATIOS
    schedule: tuple[int, ...] | None = None
    mode: str = "paper"

    reads = "next_attention"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode} is not known; {nearest(str(self.mode), MODES)}")
        for ratio in self.ratios or ():
            check_ratio("ratios", ratio)
        if min(self.schedule or (1,)) < 1:
            raise UserError(f"schedule={list(self.schedule or ())} keeps no token in a stage; use 1 or more")

    def kept(self, visual: int) -> list[int]:
        """At least one token stays, and no stage has more than the one before."""
        wanted = self.schedule or [int(ratio * visual) for ratio in self.ratios or ()]
        return list(itertools.accumulate((max(1, count) for count in wanted), min, initial=visual))[1:]

    def decide(self, layer: int, scan: Scan) -> Retain:
        left = len(scan.token_scores)
        ranked = scan.image_tokens[0] if self.mode == "reference" and scan.image_tokens else left
        count = self.kept(scan.visual - (left - ranked))[self.layers.index(layer)]
        indices = top(torch.tensor(scan.token_scores[:ranked]), count)
        return Retain((*indices.tolist(), *range(ranked, left)))


def layer_average(shares: Rows[float], layers: Rows[int], depth: int) -> float:
    """Share of the visual tokens that a layer holds on average, with ``shares`` from each of ``layers`` on."""
    edges = [0, *layers, depth]
    return sum(share * (b - a) for share, (a, b) in zip([1.0, *shares], itertools.pairwise(edges), strict=True)) / depth


def scaled_ratios(share: float, ratios: Rows[float], layers: Rows[int], depth: int) -> tuple[float, ...]:
    """``ratios`` times one factor, so that the layer average is ``share``, which is more than the layers in front of the first stage make.
    Where one would be more than everything, it is everything and the others are scaled for the rest."""
    for full in range(len(ratios)):
        fixed, others = [1.0] * full, [0.0] * (len(ratios) - full)
        base = layer_average([*fixed, *others], layers, depth)
        factor = (share - base) / (layer_average([*fixed, *ratios[full:]], layers, depth) - base)
        if factor * ratios[full] <= 1:
            break
    return tuple(min(1.0, ratio) for ratio in (*fixed, *(factor * ratio for ratio in ratios[full:])))


def pyramid(share: float, depth: int, relative: bool = True) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(first layer of each stage, share of the visual tokens in it) whose layer average is ``share``.

    At ``PUBLISHED`` the published schedule, scaled to the depth. Below it one factor t scales both its layers and its ratios: (t 8, t 16,
    t 24) and (t / 2, t / 4, t / 8). Layers are rounded, each stage at least one layer long; then the ratios are scaled together so that the
    average is met. Above it the layers stay and the ratios grow.
    """
    layers = stages(LAYERS, depth, relative)
    if share == PUBLISHED:  # also where the rounded layers of another depth give a slightly different average
        return layers, RATIOS
    if share < layer_average(RATIOS, layers, depth):
        # average(t) = (a t^2 + b t) / depth
        gaps = [b - a for a, b in itertools.pairwise(layers)]
        a = sum(ratio * gap for ratio, gap in zip(RATIOS, gaps, strict=False)) - RATIOS[-1] * layers[-1]
        b = layers[0] + RATIOS[-1] * depth
        t = 2 * depth * share / (b + math.sqrt(b * b + 4 * a * depth * share))
        nearest_layers = (round(t * layer) for layer in layers)
        layers = tuple(itertools.accumulate(nearest_layers, lambda before, layer: max(before + 1, layer), initial=0))[1:]
    return layers, scaled_ratios(share, RATIOS, layers, depth)


def stages(layers: Rows[int], depth: int, relative: bool = True) -> tuple[int, ...]:
    """The first layer of each stage, ``layers`` being written for an LLM of 32 layers (``relative``) or for this one."""
    scaled = tuple(round(layer * depth / 32) if relative else layer for layer in layers)
    if list(scaled) != sorted(set(scaled)):
        raise UserError(
            f"layers={list(layers)} do not ascend one by one in the backbone's {depth} layers, {list(scaled)}; spread them or sort them"
        )
    if not 1 <= scaled[0] <= scaled[-1] < depth:
        raise UserError(f"layers={list(layers)} are stages from layers {list(scaled)} of a backbone of {depth}; use 1 to {depth - 1}")
    return scaled


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float = PUBLISHED,
    tokens: int | None = None,
    layers: list[int] | None = None,
    ratios: list[float] | None = None,
    schedule: list[int] | None = None,
    mode: str = "paper",
    relative: bool = True,
) -> Method:
    """PyramidDrop on ``backbone``.

    ``retention_ratio``, ``tokens``: the layer average to meet; ``layers``: first layer of each stage, instead of those that the budget
    gives; ``ratios`` or ``schedule``: share or number of the visual tokens in each stage, instead of a budget; ``relative``: layers are
    written for an LLM of 32 layers and scaled to the backbone's depth.
    """
    depth, given = backbone.depth, {"ratios": ratios, "schedule": schedule, "tokens": tokens}
    several = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise UserError(f"{' and '.join(several)}: one of them sets the schedule; use null for the other")
    if ratios is None and schedule is None:
        share = token_share(backbone, retention_ratio, tokens)
        if layers is None:
            chosen, shares = pyramid(share, depth, relative)
        else:
            chosen = stages(layers, depth, relative)
            shares = scaled_ratios(share, [0.5 ** (n + 1) for n in range(len(chosen))], chosen, depth)
        budget, unit = (f"retention_ratio={retention_ratio}", 1.0) if tokens is None else (f"tokens={tokens}", tokens / share)
        if share <= chosen[0] / depth:
            least = chosen[0] / depth * unit
            raise UserError(f"{budget} cannot be met: the layers before the first stage ({chosen[0]}) make {least:.4g}; use more than that")
        dropping = [(layer - 1, ratio) for layer, ratio in zip(chosen, shares, strict=True) if ratio < 1]
        policy = PyramidDropPolicy(tuple(layer for layer, _ in dropping), tuple(ratio for _, ratio in dropping), None, mode)
    else:
        chosen = stages(LAYERS if layers is None else layers, depth, relative)
        if len(ratios or schedule or ()) != len(chosen):
            raise UserError(f"{several[0]} needs one number for each of the stages from layers {list(chosen)}")
        behind, counts = tuple(layer - 1 for layer in chosen), None if schedule is None else tuple(schedule)
        policy = PyramidDropPolicy(behind, None if ratios is None else tuple(ratios), counts, mode)
    return Method(policy, name="pyramiddrop")
