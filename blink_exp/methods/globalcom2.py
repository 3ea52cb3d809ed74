"""GlobalCom2: Global Compression Commander, plug-and-play compression for high-resolution vision-language models.

The thumbnail commands how the tiles (crops) are compressed. With s the CLS score of patches at the encoder's last layer, averaged over
heads, N patches a view and K tiles:

  1. the thumbnail keeps its N * R best patches;
  2. a tile's weight g_i is the sum of s over its block of the thumbnail. With sigma = softmax(g / T), tile i keeps the share
     R * (1 + sigma_i - mean(sigma)) of its tokens that show the image, at most all: R on average, more where the thumbnail looks;
  3. inside a tile, a token is ranked by its own s plus the thumbnail's s at the place it shows, each scaled to l2 norm 1 over the
     tile's tokens. For the second, the thumbnail's scores are resized to the grid without padding, because the thumbnail is stretched.

What clipping and rounding leave over is not handed to other tiles. R = 1 is not the untouched model: tiles below the mean still lose
tokens. Padding never competes.

    paper       s is attention after the softmax, as the paper writes it. Block sums are below 1 then, so T = 10 keeps the tiles' shares
                close to R; a smaller T tells tiles apart.
    reference   as the authors' code: s is q k / sqrt(head width) before the softmax. Sums over a block are large, so sigma can saturate.
                A newline ends every row of the padded grid. Two things of the code are not reproduced: it emits the thumbnail by
                descending score, which is raster order here; and with padding it writes kept tokens back to wrong places of the grid
                (a bug), where true places are used here. Which tokens are kept is not touched by either.

In both modes blocks split the thumbnail evenly, as if it showed the padded canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection, ViewGeometry
from blink_exp.errors import UserError
from blink_exp.methods.budgets import at_least_one, check_ratio, floor_tolerant, keeps_everything, resolve_newline_policy, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

NEWLINES = {"paper": "valid_rows", "reference": "all_rows"}  # newline policy of each mode


@dataclass(frozen=True)
class GlobalCom2:
    """Tiles compressed under the command of the thumbnail.

    Args:
        ratio: share of tokens to keep (R): exact for the thumbnail, the mean of the tiles' shares.
        temperature: of the softmax over tiles (T, 10). Lower: more tokens go to the tiles that the thumbnail looks at.
        layer: CLIP layer of the scores, 1-based (24 of 24: the last, one behind the layer that makes the features).
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; empty: the mode's own.
    """

    name: ClassVar[str] = "globalcom2"

    ratio: float = 0.25
    temperature: float = 10.0
    layer: int = 24
    mode: str = "paper"
    newline_policy: str = ""

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        if not 0 < self.temperature < math.inf:
            raise UserError(f"globalcom2.temperature={self.temperature} is not a number above 0; use one, e.g. 10")
        object.__setattr__(self, "newline_policy", resolve_newline_policy("globalcom2", self.mode, self.newline_policy, NEWLINES))

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(attention=frozenset({self.layer}))

    def scores(self, encoding: Encoding) -> torch.Tensor:
        """(views, N) float32 CLS scores s: attention in paper mode, its logits in reference mode."""
        if self.mode == "paper":
            return encoding.cls_attention((self.layer,)).float().cpu()
        return encoding.logits[self.layer].float().mean(1)[:, 1:].cpu()  # without the CLS key

    def budgets(self, encoding: Encoding) -> list[int]:
        """(K + 1) token budgets, the thumbnail's first."""
        views, scores = encoding.views, self.scores(encoding)
        floor = floor_tolerant if self.mode == "paper" else int
        out = [floor(views.tokens * self.ratio)]
        if views.tiles:
            # In float64: in float32, equal tiles could miss a whole number of tokens by more than ``floor_tolerant`` allows.
            weights = torch.bincount(views.blocks, weights=scores[0].double(), minlength=views.tiles).tolist()
            shares = tile_shares(weights, self.ratio, self.temperature)
            out += [floor(int(valid.sum()) * share) for valid, share in zip(views.valid[1:], shares, strict=True)]
        at_least_one(f"retention_ratio={self.ratio}", sum(out), views.tokens)
        return out

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept patches of each view, ascending; None where R = 1 leaves the model untouched, which takes an image without tiles."""
        views = encoding.views
        if not views.tiles and keeps_everything(self.ratio, views, self.newline_policy):
            return None
        scores, budgets = self.scores(encoding), self.budgets(encoding)
        chosen = [top(scores[0], budgets[0])]
        if views.tiles:
            guide = thumbnail_guide(views, scores[0])
            for i in range(1, views.count):
                valid = views.valid[i].nonzero()[:, 0]
                ranks = F.normalize(scores[i, valid], dim=0) + F.normalize(guide[i, valid], dim=0)
                chosen.append(valid[top(ranks, budgets[i])])
        return TokenSelection(tuple(chosen))


def tile_shares(weights: Rows[float], ratio: float, temperature: float) -> list[float]:
    """(K,) share of its tokens that each tile keeps, from the tiles' ``weights`` g: R * (1 + sigma - mean(sigma)), at most 1."""
    powers = [math.exp((g - max(weights)) / temperature) for g in weights]
    sigma = [p / (sum(powers) + 1e-8) for p in powers]
    mean = sum(sigma) / len(sigma)
    return [min(1.0, ratio * (1 + s - mean)) for s in sigma]


def thumbnail_guide(views: ViewGeometry, scores: torch.Tensor) -> torch.Tensor:
    """(views, N): the thumbnail's ``scores``, (N,), at the place that each tile token shows; 0 at padding and in the thumbnail's row."""
    out = torch.zeros(views.count * views.tokens)
    if views.unpadded.numel():  # a very long image can be cut to nothing
        grid = scores.view(1, 1, views.side, views.side)
        resized = F.interpolate(grid, size=tuple(views.unpadded.shape), mode="bilinear", align_corners=False)
        out[views.unpadded.flatten()] = resized.flatten()
    return out.view(views.count, views.tokens)


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    temperature: float = 10.0,
    layer: int | None = None,
    mode: str = "paper",
    newline_policy: str | None = None,
) -> Method:
    """GlobalCom2 on ``backbone``. ``tokens``: see ``token_share``; ``layer``: None takes the encoder's last; ``newline_policy``: None
    takes the mode's own."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    layer = depth if layer is None else layer
    check_layers("globalcom2.layer", [layer], depth)
    pruner = GlobalCom2(token_share(backbone, retention_ratio, tokens), temperature, layer, mode, newline_policy or "")
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
