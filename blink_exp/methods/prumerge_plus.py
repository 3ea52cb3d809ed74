"""LLaVA-PruMerge+: keep what CLIP's CLS token singles out, add a coarse grid, and fold what is dropped into what is kept.

How many tokens stay is read off the image. A picture of one object has few patches that CLS attends to far more than to the rest, a
crowded one has many. For each view on its own:

  1. count: a patch is an outlier where its CLS attention a lies more than 1.5 interquartile ranges above the third quartile. Their
     share of the patches is r, and those patches are kept (PruMerge);
  2. fill in: every step-th patch is kept as well, with step = int(int(1 / r) / 3), so that no region goes unseen (the "+");
  3. merge: each kept patch takes in its 32 nearest patches, kept or not, by cosine similarity of their keys, weighted by a;
  4. the rest: one extra token holds the sum of all dropped patches, weighted by a.

So the budget cannot be set: above r = 1/6 the step is 1 and nearly everything stays, merged.

The attention of step 1 is not the tower's own: it takes queries and keys of the last layer as one head over the full width. That layer's
output is unused by LLaVA, but it reads the very features that are kept here.

The paper and the authors' code differ. ``mode=paper`` is the default; ``reference`` is the code, for comparison with published numbers:

                     paper                                        reference
    merging          average: weights a over the patch itself     x_i + sum a_j x_j with raw weights of about 1 / N each, which
                     and its neighbours, scaled to sum to 1       barely moves x_i
    extra token      average of the dropped patches               sum a_j x_j, nearly zero
    order            raster order, with newlines                  view after view: outliers by falling score, grid, extra; no newline
    padding          never looked at                              treated like any patch

The paper is silent on tiles, padding and the extra token; the left column there is this project's reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, check_newline_policy
from blink_exp.errors import UserError, nearest

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")


@dataclass(frozen=True)
class PruMergePlus:
    """PruMerge+'s choice of tokens.

    Args:
        layer: CLIP layer (1-based) whose query and keys are read; the last one in the paper (24 of 24).
        neighbours: patches that each kept one takes in; 0 merges nothing. Cut to what a view has.
        iqr_factor: interquartile ranges above Q3 from which on a patch is an outlier; higher keeps fewer.
        densify: divides the grid's step; higher keeps more, at most the patches of a view. 3 stands in the authors' code only; the
            paper's text, a grid as sparse as r, is 1. Default 3 in both modes, as published numbers used it.
        mode: ``paper`` or ``reference``, see the module.
        newline_policy: see ``core.views.pack``; without effect in ``reference``.
    """

    layer: int
    neighbours: int = 32
    iqr_factor: float = 1.5
    densify: int = 3
    mode: str = "paper"
    newline_policy: str = "valid_rows"
    name: str = "prumerge_plus"

    merges = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"prumerge_plus.mode={self.mode} is not known; {nearest(str(self.mode), MODES)}")
        for key, least in (("layer", 1), ("neighbours", 0), ("iqr_factor", 0), ("densify", 1)):
            if not getattr(self, key) >= least:
                raise UserError(f"prumerge_plus.{key}={getattr(self, key)} is too small; use at least {least}")
        check_newline_policy(self.newline_policy)

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(keys=frozenset({self.layer}))

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """Kept patches of each view with merged features, and one extra token a view. The question is not looked at."""
        patches = encoding.views.tokens
        if self.densify > patches:
            raise UserError(f"prumerge_plus.densify={self.densify} is more than the {patches} patches of a view; use at most {patches}")
        views = [self._view(encoding, v) for v in range(encoding.views.count)]
        indices, merged, extra = (tuple(parts) for parts in zip(*views, strict=True))
        reference = self.mode == "reference"
        return TokenSelection(indices, merged, extra, by_view=reference, padding=reference)

    def _view(self, encoding: Encoding, view: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(kept,) indices, (kept, C) merged features and the (1, C) extra token of one view; all empty where it is padding only."""
        paper = self.mode == "paper"
        valid = encoding.views.valid[view]
        candidates = (valid if paper else torch.ones_like(valid)).nonzero()[:, 0]  # on the CPU, where ``pack`` wants indices
        if not len(candidates):
            return candidates, encoding.hidden[view, :0], encoding.hidden[view, :0]
        keys = encoding.keys[self.layer][view]
        scores = single_head_attention(encoding.queries[self.layer][view], keys)[candidates]
        chosen = choose(scores.cpu(), self.iqr_factor, self.densify)
        if paper:
            chosen = chosen.sort().values
        features = encoding.hidden[view, candidates]
        merged, extra = merge(features.float(), keys[1:][candidates], scores, chosen, self.neighbours, average=paper)
        return candidates[chosen], merged.to(features.dtype), extra.to(features.dtype)


def single_head_attention(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(N,) attention of the CLS query (C,) on the patches of (N + 1, C) keys, as one head of width C; the softmax includes the CLS key."""
    attention: torch.Tensor = (keys.float() @ query.float() * query.shape[-1] ** -0.5).softmax(0)
    return attention[1:]


def outliers(scores: torch.Tensor, iqr_factor: float = 1.5) -> int:
    """How many of (N,) scores lie strictly above Q3 + iqr_factor * (Q3 - Q1). Flat scores have none; they count as one (r = 1 / N), as
    the authors' code divides by r."""
    q1, q3 = torch.quantile(scores.float(), torch.tensor([0.25, 0.75]))
    return max(1, int((scores > q3 + iqr_factor * (q3 - q1)).sum()))


def grid(tokens: int, ratio: float, densify: int = 3) -> torch.Tensor:
    """Every step-th of ``tokens`` patches, ascending, without the last one (a quirk kept for comparability: 575 of 576 at step 1)."""
    step = max(1, int(int(1 / ratio) / densify))
    return torch.arange(0, tokens - 1, step)


def choose(scores: torch.Tensor, iqr_factor: float = 1.5, densify: int = 3) -> torch.Tensor:
    """(kept,) indices into (N,) scores: the outliers by falling score (ties: lower index first), then grid patches that are none."""
    count = outliers(scores, iqr_factor)
    best = torch.sort(scores, descending=True, stable=True).indices[:count]
    regular = grid(len(scores), count / len(scores), densify)
    return torch.cat([best, regular[~torch.isin(regular, best)]])


def merge(
    features: torch.Tensor, keys: torch.Tensor, scores: torch.Tensor, chosen: torch.Tensor, neighbours: int = 32, average: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(kept, C) features of ``chosen`` with their neighbours folded in, and the (1, C) extra token made of all others.

    Always of the original features: a merged patch is never merged again. Nothing left over gives an extra token of zeros, as in the
    authors' code, so that a view has one whatever its scores.

    Args:
        features: (N, C); keys: (N, C'); scores: (N,) the weights a.
        chosen: (kept,) indices.
        neighbours: nearest other patches by cosine similarity of keys, at most N - 1.
        average: scale the weights to sum to 1, for a kept patch over itself and its neighbours.
    """
    chosen = chosen.to(features.device)
    unit = F.normalize(keys.float(), dim=-1)
    similar = unit[chosen] @ unit.T
    similar[torch.arange(len(chosen)), chosen] = -torch.inf  # no patch is its own neighbour
    near = similar.sort(dim=-1, descending=True, stable=True).indices[:, : min(neighbours, len(features) - 1)]
    chosen_scores, weights = scores[chosen], torch.zeros_like(similar)
    weights.scatter_(1, near, scores[near])
    folded = weights @ features
    left = scores.clone()
    left[chosen] = 0
    extra = left[None] @ features
    if not average:
        return features[chosen] + folded, extra
    total = (chosen_scores + weights.sum(1))[:, None]
    # Weights that underflow to 0 say nothing about the neighbours: the patch stays as it is.
    mean = torch.where(total > 0, (chosen_scores[:, None] * features[chosen] + folded) / total, features[chosen])
    return mean, extra / left.sum() if left.sum() > 0 else extra


def configure(
    backbone: Backbone,
    *,
    tokens: int | None = None,
    layer: int | None = None,
    neighbours: int = 32,
    iqr_factor: float = 1.5,
    densify: int = 3,
    mode: str = "paper",
    newline_policy: str = "valid_rows",
) -> Method:
    """PruMerge+ on ``backbone``. ``layer`` (1-based): None is the encoder's last. Raises UserError for a budget in ``tokens``."""
    if tokens is not None:
        raise UserError(
            f"tokens={tokens} is no setting of prumerge_plus, which keeps as many tokens as an image has outliers; use tokens=null and"
            " method.iqr_factor, which a table searches for the budget (match: method.iqr_factor, as in table=hero_table4_matched)"
        )
    depth = backbone.model.config.vision_config.num_hidden_layers
    (chosen,) = check_layers("prumerge_plus.layer", [depth if layer is None else layer], depth)
    pruner = PruMergePlus(chosen, neighbours, iqr_factor, densify, mode, newline_policy)
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
