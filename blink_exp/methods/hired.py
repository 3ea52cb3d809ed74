"""HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models.

A token budget for the whole image, spent where the thumbnail says the content is, in two phases that read CLS attention at the two ends
of the CLIP encoder (averaged over heads):

  1. distribution: the thumbnail gets the share alpha of the budget. The rest goes to the tiles: the thumbnail's 1 - alpha most attended
     tokens of an early layer are marked, and a tile gets tokens in proportion to how many marks lie in its area of the thumbnail.
     Only their number counts, not how strongly they are attended;
  2. selection: each view keeps its budget of tokens with the largest attention of a late layer.

What rounding and the cap of N tokens a tile leave over is not handed to other tiles, and a tile may get nothing.

    paper       the area of a tile is its block of the thumbnail; padding is never kept, so a tile with fewer tokens of the image than
                its budget keeps those; rows end with a newline; R = 1 is the untouched model.
    reference   as the authors' code: a tile's area is a horizontal band of the thumbnail, the flat raster cut into K equal parts, which
                is its block only on one-column grids; padding competes and is cut away after the selection, which wastes budget; there
                are no newlines; R = 1 keeps everything but the newlines; LLaVA-NeXT's single view is left whole. The code's transposed
                stitching of grids that are not square, a bug of the transformers version it ships, is not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, ViewGeometry, all_tokens
from blink_exp.errors import UserError
from blink_exp.methods.budgets import at_least_one, check_ratio, floor_tolerant, keeps_everything, resolve_newline_policy, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

NEWLINES = {"paper": "valid_rows", "reference": "none"}  # newline policy of each mode


@dataclass(frozen=True)
class HiRED:
    """A budget for the image, distributed over its views by an early layer and spent in each by a late one.

    Args:
        ratio: share of all (K + 1) * N tokens to keep (R).
        alpha: the thumbnail's share of the budget. Higher: more of the overview, and fewer marks to tell the tiles apart. At 1 there
            are no marks, and tiles share equally what the thumbnail cannot take (the authors' code divides by zero).
        allocation_layer: CLIP layer that marks thumbnail tokens, 1-based (1; the authors call it the top layer).
        selection_layer: CLIP layer that selects, 1-based (23 of 24; the authors call it the bottom layer).
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; empty: the mode's own.
    """

    name: ClassVar[str] = "hired"

    ratio: float = 0.2
    alpha: float = 0.5
    allocation_layer: int = 1
    selection_layer: int = 23
    mode: str = "paper"
    newline_policy: str = ""

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"hired.alpha={self.alpha} is outside [0, 1]; it is the thumbnail's share of the budget, e.g. 0.5")
        object.__setattr__(self, "newline_policy", resolve_newline_policy("hired", self.mode, self.newline_policy, NEWLINES))

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(attention=frozenset({self.allocation_layer, self.selection_layer}))

    def budgets(self, encoding: Encoding) -> list[int]:
        """(K + 1) token budgets, the thumbnail's first. Without tiles the one view gets all."""
        views, floor = encoding.views, self._floor
        n, k = views.tokens, views.tiles
        total = at_least_one(f"retention_ratio={self.ratio}", floor(views.count * n * self.ratio), views.count * n)
        if not k:
            return [total]
        thumbnail = min(floor(total * self.alpha), n)
        attention = encoding.cls_attention((self.allocation_layer,))[0].cpu()
        marked = top(attention, floor(n * (1 - self.alpha)))
        counts = torch.bincount(self._areas(views)[marked], minlength=k).tolist()
        return [thumbnail, *tile_budgets(counts, min(total - thumbnail, k * n), n)]

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept patches of each view, ascending; None where R = 1 leaves the model untouched."""
        views, reference = encoding.views, self.mode == "reference"
        if keeps_everything(self.ratio, views, self.newline_policy):
            return None
        if self.ratio == 1 or (reference and views.newline and not views.tiles):
            return all_tokens(views)
        scores = encoding.cls_attention((self.selection_layer,)).cpu()  # (views, N)
        chosen = []
        for score, budget, valid in zip(scores, self.budgets(encoding), views.valid, strict=True):
            index = top(score, budget, None if reference else valid)
            chosen.append(index[valid[index]])
        if not any(map(len, chosen)):  # a budget of a few tokens can be lost to rounding or padding as a whole
            chosen[0] = top(scores[0], 1)
        return TokenSelection(tuple(chosen))

    @property
    def _floor(self) -> Callable[[float], int]:
        return floor_tolerant if self.mode == "paper" else int

    def _areas(self, views: ViewGeometry) -> torch.Tensor:
        """(N,): the tile whose area each thumbnail patch counts for."""
        if self.mode == "paper":
            return views.blocks
        return (torch.arange(views.tokens) // (views.tokens // views.tiles)).clamp(max=views.tiles - 1)


def tile_budgets(counts: list[int], total: int, limit: int) -> list[int]:
    """(K,) budgets out of ``total`` in proportion to marked tokens ``counts``, rounded down and at most ``limit``; equal without marks."""
    counts = counts if any(counts) else [1] * len(counts)
    marked = sum(counts)
    return [min(total * c // marked, limit) for c in counts]  # in integers: c / marked * total can fall just short of a whole number


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    alpha: float = 0.5,
    allocation_layer: int | None = None,
    selection_layer: int | None = None,
    mode: str = "paper",
    newline_policy: str | None = None,
) -> Method:
    """HiRED on ``backbone``. Layers left at None are the encoder's first and last but one; ``newline_policy``: None, the mode's own.
    ``tokens``: see ``token_share``."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    allocation_layer = 1 if allocation_layer is None else allocation_layer
    selection_layer = max(1, depth - 1) if selection_layer is None else selection_layer
    check_layers("hired.allocation_layer", [allocation_layer], depth)
    check_layers("hired.selection_layer", [selection_layer], depth)
    ratio = token_share(backbone, retention_ratio, tokens)
    pruner = HiRED(ratio, alpha, allocation_layer, selection_layer, mode, newline_policy or "")
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
