"""The thumbnail with one tile or none: how much a single tile adds, and whether the best-ranked one adds most (HERO, Table I).

HERO's pilot study keeps the thumbnail whole and beside it exactly one tile, whole: the k-th of the image's tiles by CLIPscore or by CLSsim.
It is not cumulative: rank 2 is the second tile without the first. Both metrics are those of HERO's budgets (``blink_exp.methods.hero``).

Newlines are those of ``core.views.pack``, as for every pruner here: under ``valid_rows`` a row of tiles ends with one also where none
of its tokens stays. ``newline_policy=none`` leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, check_newline_policy
from blink_exp.errors import UserError, nearest
from blink_exp.methods.hero import OPTIONS, clip_score, cls_similarity

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

METRICS = ("clip_score", "cls_similarity")
FEWER = ("thumbnail", "last")
RANKS = 4  # tiles of LLaVA-NeXT's largest grid


@dataclass(frozen=True)
class OneTile:
    """Keeps the thumbnail and at most one tile, both whole; padding is never kept. A backbone without tiles is left untouched.

    Args:
        rank: k, 1 for the tile that scores best (the lower index among equals); None keeps no tile at all.
        metric: what ranks the tiles: ``clip_score`` or ``cls_similarity``.
        fewer: images with fewer than k tiles. The paper does not say. Chosen: ``thumbnail``, there is no k-th tile, so none is added;
            ``last`` adds the last-ranked one. Tiles that show padding only have no rank.
        cls_source: see ``Hero.cls_source``.
        newline_policy: see ``core.views.pack``.
    """

    rank: int | None = None
    metric: str = "clip_score"
    fewer: str = "thumbnail"
    cls_source: str = "pooled"
    newline_policy: str = "valid_rows"

    merges = False

    def __post_init__(self) -> None:
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= RANKS):
            raise UserError(f"method.rank={self.rank} is no rank of a tile; use a whole number from 1 (the best) to {RANKS}")
        for name, choices in (("metric", METRICS), ("fewer", FEWER), ("cls_source", OPTIONS["cls_source"])):
            if getattr(self, name) not in choices:
                raise UserError(f"method.{name}={getattr(self, name)} is not known; {nearest(str(getattr(self, name)), choices)}")
        check_newline_policy(self.newline_policy)

    @property
    def name(self) -> str:
        return "thumbnail" if self.rank is None else "thumbnail_plus_tile"

    @property
    def needs(self) -> EncoderRequirements:
        if self.rank is None:
            return EncoderRequirements()
        projected = self.metric == "clip_score" or self.cls_source == "projected"
        return EncoderRequirements(cls=self.metric == "cls_similarity", text=projected)

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        views = encoding.views
        if not views.tiles:
            return None
        chosen = {0, self.tile(encoding, question)}
        return TokenSelection(tuple((valid & (v in chosen)).nonzero()[:, 0] for v, valid in enumerate(views.valid)))

    def tile(self, encoding: Encoding, question: str) -> int | None:
        """The view (1 to K) of the tile that stays; None where none does."""
        ranked = self.ranked(encoding, question) if self.rank is not None else []
        if self.rank is None or not ranked or (self.rank > len(ranked) and self.fewer == "thumbnail"):
            return None
        return ranked[min(self.rank, len(ranked)) - 1]

    def ranked(self, encoding: Encoding, question: str) -> list[int]:
        """The tiles that show some of the image, as views 1 to K, best first."""
        scores = clip_score(encoding, question) if self.metric == "clip_score" else cls_similarity(encoding, self.cls_source)
        order = torch.sort(scores.cpu(), descending=True, stable=True).indices.tolist()
        return [tile + 1 for tile in order if bool(encoding.views.valid[tile + 1].any())]


def thumbnail(backbone: Backbone, *, newline_policy: str) -> Method:
    """The thumbnail alone."""
    return Method(name="thumbnail", pruner=OneTile(newline_policy=newline_policy))


def thumbnail_plus_tile(backbone: Backbone, **settings: Any) -> Method:
    """The thumbnail and one tile on ``backbone``; settings are those of ``OneTile``."""
    pruner = OneTile(**settings)
    if pruner.rank is None:
        raise UserError("method.rank=null names no tile; use 1 to 4, or method=thumbnail")
    backbone.check(pruner.needs)
    return Method(name="thumbnail_plus_tile", pruner=pruner)
