"""VisPruner: Beyond Text-Visual Attention, exploiting visual cues for effective token pruning in VLMs (ICCV 2025, arXiv 2412.01818).

What the CLIP encoder's CLS token looks at is important, but all of it may lie in one corner. So each view keeps its k = N * R tokens in two
parts, without a look at the question:

  1. important: the int(k r) tokens with the largest CLS attention of the last but one layer, averaged over heads (r = 0.5);
  2. diverse: of the others, in order of falling attention, those that are most like another one are taken out, round by round, until as
     many are left as the budget has. A round compares the tokens at even places (a) with those at odd places (b): a token of a is as
     redundant as its largest cosine with one of b, by the features that enter the projector, and the 8 most redundant go (fewer in the
     last round). The rest of a, by falling redundancy, and then b, in its order, are the list of the next round.

Which tokens are compared hangs on the parity of their places, so one bit of a feature can change many of the diverse tokens. In float16 the
choice differs from that in float32, and between devices.

    paper       the backbone's own views; padding has no part in anything; rows end with a newline.
    reference   as the authors' code has it: every image of LLaVA-NeXT is fitted into 2 x 2 tiles, whatever its shape, and published numbers
                are for that. Padding competes, and there are no newlines.

The authors' code fails on a list of odd length, and where a round would take more than a has. Here the last place of an odd list is in a,
which then has one token more than b, and a round takes at most all of a. Where their code runs, the choice is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection
from blink_exp.errors import UserError
from blink_exp.methods.budgets import (
    NOMINAL_TILES,
    check_ratio,
    keeps_everything,
    resolve_newline_policy,
    token_share,
    view_budget,
)

NEWLINES = {"paper": "valid_rows", "reference": "none"}  # newline policy of each mode
A_ROUND = 8  # tokens that a round takes out


@dataclass(frozen=True)
class VisPruner:
    """Of every view the patches with the largest CLS attention, and others that are unlike one another.

    Args:
        ratio: share of each view's tokens to keep (R); k = floor(N * R). The authors give k itself: 128, 64, 32.
        important_ratio: share of these that attention chooses (r); the others are chosen to be diverse.
        layer: CLIP layer whose attention is read, 1-based (23 of 24: the last but one).
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; empty: the mode's own.
    """

    name: ClassVar[str] = "vispruner"

    ratio: float
    important_ratio: float = 0.5
    layer: int = 23
    mode: str = "paper"
    newline_policy: str = ""

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        if not 0 <= self.important_ratio <= 1:
            raise UserError(
                f"vispruner.important_ratio={self.important_ratio} is outside [0, 1]; it is a share of the kept tokens, e.g. 0.5"
            )
        object.__setattr__(self, "newline_policy", resolve_newline_policy("vispruner", self.mode, self.newline_policy, NEWLINES))

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(attention=frozenset({self.layer}), tile_grid=NOMINAL_TILES if self.mode == "reference" else None)

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept patches of each view, ascending; None where R = 1 leaves the model untouched."""
        views = encoding.views
        pads = self.mode == "reference"
        if keeps_everything(self.ratio, views, self.newline_policy, pads):
            return None
        scores, k = encoding.cls_attention((self.layer,)), view_budget(self.ratio, views.tokens)
        kept = [torch.zeros(0, dtype=torch.long)] * views.count
        for same, candidates in alike(views.candidates(pads)):
            rows, columns = same[:, None].to(scores.device), candidates.to(scores.device)
            chosen = important_and_diverse(scores[rows, columns], encoding.hidden[rows, columns], k, self.important_ratio).cpu()
            for view, indices in zip(same.tolist(), candidates.gather(1, chosen), strict=True):
                kept[view] = indices
        return TokenSelection(tuple(kept), padding=pads)


def alike(allowed: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """((V,) views, (V, n) indices of their ``allowed`` patches), of views with equally many; ``allowed``: (views, N) bool."""
    counts = allowed.sum(1)
    for count in counts.unique().tolist():
        same = (counts == count).nonzero()[:, 0]
        yield same, allowed[same].nonzero()[:, 1].view(len(same), count)


def important_and_diverse(scores: torch.Tensor, features: torch.Tensor, count: int, important_ratio: float) -> torch.Tensor:
    """(V, count) ascending indices of the kept tokens of V views; all N where there are no more than ``count``.

    Args:
        scores: (V, N) CLS attention; of equal ones the lower index ranks higher.
        features: (V, N, C).
        important_ratio: share of ``count``, rounded down, that goes by ``scores`` alone.
    """
    order = scores.sort(descending=True, stable=True).indices
    important = int(count * important_ratio)
    rest = order[:, important:]
    diverse = rest.gather(1, most_diverse(features[_rows(rest), rest], count - important))
    return torch.cat([order[:, :important], diverse], dim=1).sort().values


def most_diverse(features: torch.Tensor, count: int) -> torch.Tensor:
    """(V, count) places of (V, R, C) ``features`` that remain, in the order that the rounds leave; all R where R is at most ``count``.

    Views in one batch and every second row of one tensor, as in the authors' code: otherwise products may differ in the last bit."""
    unit = F.normalize(features, dim=-1)
    places = torch.arange(features.shape[1], device=features.device).expand(len(features), -1)
    if count == 0:
        return places[:, :0]
    while places.shape[1] > count:
        a, b = places[:, ::2], places[:, 1::2]
        ordered = unit[_rows(places), places]
        redundant = (ordered[:, ::2] @ ordered[:, 1::2].transpose(1, 2)).amax(-1)
        dropped = min(A_ROUND, places.shape[1] - count, a.shape[1])
        left = redundant.sort(descending=True, stable=True).indices[:, dropped:]
        places = torch.cat([a.gather(1, left), b], dim=1)
    return places


def _rows(indices: torch.Tensor) -> torch.Tensor:
    """(V, 1) row numbers beside (V, n) indices."""
    return torch.arange(len(indices), device=indices.device)[:, None]


def configure(
    backbone: Any,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    important_ratio: float = 0.5,
    layer: int | None = None,
    mode: str = "paper",
    newline_policy: str | None = None,
) -> Method:
    """VisPruner on ``backbone``.

    ``tokens``: instead of the ratio, see ``token_share``; ``layer``: None takes the encoder's last but one; ``newline_policy``: None takes
    the mode's own."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    layer = max(1, depth - 1) if layer is None else layer
    check_layers("vispruner.layer", [layer], depth)
    pruner = VisPruner(token_share(backbone, retention_ratio, tokens), important_ratio, layer, mode, newline_policy or "")
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
