"""Saliency-guided scanning (Blink, Sec. 3.1): which patch of an image the last text token looks at, and how sharply.

Pure functions on tensors. A scorer gives every visual token a score from ONE query row (or the mean of several), without an
attention matrix; a patch grid sums scores into p x p patches; the saliency ratio is the share of the largest patch.

A scorer declares its inputs (``Scorer.queries``, ``Scorer.raw``), and only those are computed. ``SCORERS`` has them by name, also those of
installed packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from blink_exp import plugins
from blink_exp.errors import UserError, nearest
from blink_exp.plugins import Registry

RANDOM = "random"  # no scorer: patch and action are drawn at random
RANDOM_REGION = "random_region"  # scored by attention, which gives rho; the patch is drawn at random


class ScorerInputs(Protocol):
    """Inputs of a scorer at one layer. ``visible``: (batch, queries, keys) bool; ``text``: (batch, queries) bool,
    false on padding."""

    visible: torch.Tensor
    text: torch.Tensor

    def logits(self, queries: slice) -> torch.Tensor:
        """(batch, heads, queries, keys) float32 products of some of the text queries with all keys, behind norm and RoPE, scaled."""
        ...

    def raw_logits(self) -> torch.Tensor:
        """(batch, heads, keys) float32 products of the last prompt token's query with all keys, without norm, RoPE and scale (Eqs. 1-2 to
        the letter)."""
        ...


@dataclass
class AttentionInputs:
    """``ScorerInputs`` from queries and keys, all with the layer's own projections.

    ``query``: (batch, heads, queries, head_dim) text queries behind norm and RoPE, the last one being the last prompt token;
    ``keys``: (batch, kv_heads, keys, head_dim) of all tokens behind norm and RoPE; ``visible``: (batch, queries, keys) bool;
    ``raw_query``, ``raw_keys``: functions that give the same without norm and RoPE (Eqs. 1-2 to the letter); ``scaling``: the
    layer's 1 / sqrt(head_dim); ``text``: (batch, queries) bool, false on padding.
    """

    query: torch.Tensor
    keys: torch.Tensor
    visible: torch.Tensor
    text: torch.Tensor
    scaling: float
    raw_query: Callable[[], torch.Tensor]
    raw_keys: Callable[[], torch.Tensor]

    def logits(self, queries: slice) -> torch.Tensor:
        return products(self.query[:, :, queries], self.keys).float() * self.scaling

    def raw_logits(self) -> torch.Tensor:
        return products(self.raw_query()[:, :, -1:], self.raw_keys())[:, :, 0].float()

    def row(self, b: int) -> AttentionInputs:
        """One row as a batch of its own."""
        one = slice(b, b + 1)
        return AttentionInputs(
            self.query[one],
            self.keys[one],
            self.visible[one],
            self.text[one],
            self.scaling,
            lambda: self.raw_query()[one],
            lambda: self.raw_keys()[one],
        )


Scores = Callable[[ScorerInputs, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scorer:
    """A scoring function of visual tokens, and the inputs that it reads.

    Args:
        score: (inputs, columns) to (batch, visual) scores >= 0; ``columns``: (visual,) or (batch, visual), the visual keys among all keys.
        queries: ``last``: ``inputs`` holds the query of the last prompt token only; ``text``: those of all text tokens, the last one last.
        raw: whether it reads ``inputs.raw_logits()``.
    """

    score: Scores
    queries: Literal["last", "text"] = "last"
    raw: bool = False

    @property
    def __name__(self) -> str:
        return self.score.__name__

    def __call__(self, inputs: ScorerInputs, columns: torch.Tensor) -> torch.Tensor:
        return self.score(inputs, columns)


def scorer(*, queries: Literal["last", "text"] = "last", raw: bool = False) -> Callable[[Scores], Scorer]:
    """Decorator that makes a function a ``Scorer``."""
    if queries not in ("last", "text"):
        raise ValueError(f"queries={queries!r} is not known; use 'last' or 'text'")
    return lambda score: Scorer(score, queries, raw)


def products(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(batch, heads, queries, keys), a key head serving heads / kv_heads query heads."""
    batch, heads, queries, width = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads * queries, width)
    return (grouped @ keys.mT).reshape(batch, heads, queries, -1)


@scorer()
def attention(inputs: ScorerInputs, columns: torch.Tensor) -> torch.Tensor:
    """Attention of the last text token, softmax over every key that it may see, mean over heads: what Blink's Figs. 2-3 plot.

    ``columns``: (visual,) or (batch, visual), the keys to read out. Returns (batch, visual) scores >= 0.
    """
    return _probabilities(inputs, slice(-1, None)).squeeze(1).gather(1, _rows(columns, inputs))


@scorer()
def attention_visual(inputs: ScorerInputs, columns: torch.Tensor) -> torch.Tensor:
    """As ``attention``, with the softmax over the visual keys only."""
    index = _rows(columns, inputs)
    logits = inputs.logits(slice(-1, None))[:, :, 0]
    picked = logits.gather(2, index[:, None].expand(-1, logits.shape[1], -1))
    return picked.softmax(-1).mean(1)


@scorer(queries="text")
def text_mean(inputs: ScorerInputs, columns: torch.Tensor) -> torch.Tensor:
    """As ``attention``, averaged over all text queries behind the image instead of the last one."""
    weight = inputs.text.to(torch.float32)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    return (_probabilities(inputs, slice(None)) * weight[..., None]).sum(1).gather(1, _rows(columns, inputs))


@scorer(raw=True)
def dot_product(inputs: ScorerInputs, columns: torch.Tensor) -> torch.Tensor:
    """Eqs. (1)-(2) read literally: q . k without norm, RoPE, scale or softmax, summed over heads.

    Such scores can be negative, which would make the ratio meaningless, so the smallest one is subtracted from all.
    """
    scores = inputs.raw_logits().sum(1)
    scores = scores.gather(1, _rows(columns, inputs))
    return scores - scores.amin(1, keepdim=True)


def _probabilities(inputs: ScorerInputs, queries: slice) -> torch.Tensor:
    """(batch, queries, keys) attention, mean over heads; only for ``queries``."""
    logits = inputs.logits(queries)
    logits = logits.masked_fill(~inputs.visible[:, None, queries], float("-inf"))
    return logits.softmax(-1).nan_to_num(0.0).mean(1)  # a padded query sees nothing: its row is 0, not nan


def _rows(columns: torch.Tensor, inputs: ScorerInputs) -> torch.Tensor:
    return columns.expand(len(inputs.visible), -1)


SCORERS: Registry[Scorer] = Registry(plugins.SCORERS, attention, attention_visual, dot_product, text_mean)


def find_scorer(name: str) -> Scorer:
    """The scorer of a name. Raises UserError where it is unknown, cannot be imported or is none."""
    if name not in SCORERS:
        raise UserError(f"saliency={name} is not known; {nearest(name, (*SCORERS, RANDOM, RANDOM_REGION))}")
    if not isinstance(SCORERS[name], Scorer):
        raise UserError(f"saliency={name}: what the installed package calls so is no scorer; put @blink_exp.core.saliency.scorer() on it")
    return SCORERS[name]


@dataclass(frozen=True)
class PatchGrid:
    """The p x p partition of an image's H x W visual tokens (Sec. 3.1)."""

    p: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.p < 1 or self.height % self.p or self.width % self.p:
            common = [d for d in range(1, min(self.height, self.width) + 1) if self.height % d == 0 and self.width % d == 0]
            raise UserError(
                f"grid.p={self.p} does not divide the {self.height} x {self.width} visual tokens; use one of {', '.join(map(str, common))}"
            )

    @property
    def patch(self) -> tuple[int, int]:
        """(h, w) tokens of a patch."""
        return self.height // self.p, self.width // self.p

    def sums(self, scores: torch.Tensor) -> torch.Tensor:
        """(..., H * W) token scores to (..., p * p) patch scores, patches in raster order."""
        h, w = self.patch
        cells: torch.Tensor = scores.unflatten(-1, (self.p, h, self.p, w))
        return cells.sum((-3, -1)).flatten(-2)

    def sums_at(self, scores: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """(p * p,) patch scores from (tokens,) scores of tokens at (tokens,) raster indices ``cells``."""
        h, w = self.patch
        cells = cells.to(scores.device, non_blocking=True)
        patch = cells // self.width // h * self.p + cells % self.width // w
        return scores.new_zeros(self.p**2).index_add(0, patch, scores)

    def indices(self, region: int) -> torch.Tensor:
        """(h * w,) raster indices of a patch's tokens."""
        h, w = self.patch
        r, c = divmod(region, self.p)
        grid = torch.arange(self.height * self.width).view(self.height, self.width)
        return grid[r * h : (r + 1) * h, c * w : (c + 1) * w].flatten()

    def places(self, region: int, out: tuple[int, int]) -> torch.Tensor:
        """(out_h * out_w,) fractional raster indices of the points that an ``out``-sized copy of a patch samples."""
        h, w = self.patch
        r, c = divmod(region, self.p)
        y = r * h + (torch.arange(out[0]) + 0.5) * h / out[0] - 0.5
        x = c * w + (torch.arange(out[1]) + 0.5) * w / out[1] - 0.5
        return (y[:, None] * self.width + x).flatten()

    def box(self, region: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom as fractions of the image."""
        r, c = divmod(region, self.p)
        return (c / self.p, r / self.p, (c + 1) / self.p, (r + 1) / self.p)


def saliency_ratio(patch_scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """rho (Eq. 3) and the most salient patch of (..., patches) scores: two (...) tensors.

    rho is in [1 / patches, 1] for non-negative scores. Where all scores are 0, rho is 1 / patches.
    """
    total = patch_scores.sum(-1)
    best, region = patch_scores.max(-1)
    return torch.where(total > 0, best / total.clamp(min=torch.finfo(total.dtype).tiny), 1 / patch_scores.shape[-1]), region
