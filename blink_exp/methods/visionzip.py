"""VisionZip: Longer is Better but Not Necessary in Vision Language Models (https://arxiv.org/abs/2412.04467).

Late in the CLIP encoder a few tokens hold most of the attention and, with it, most of what the encoder has gathered. Each view of the
image keeps those as they are and folds the other ones into a handful. With L the layer that makes the features which LLaVA reads:

  1. dominant: the CLS token itself, and the ``dominant`` - 1 patches with the largest CLS attention at L, summed over heads. LLaVA's
     own selection of features drops CLS; here it enters the LLM in front of its view's patches;
  2. targets: of the n remaining patches, in raster order, every step-th one, step = max(1, floor(n / contextual)), and of those the
     first ``contextual``;
  3. contextual: every other remaining patch joins the target with the most similar key at L (keys averaged over heads, scaled to length
     1). A contextual token is the target's feature plus the mean of the features that joined it: a sum, and not an average of all of
     them. A target that nobody joins stays as it is.

The question has no say. Budget: k tokens a view, CLS and contextual tokens among them. The authors publish pairs (dominant, contextual):
162 + 30, 108 + 20 and 54 + 10 of 576, and 27 + 5 for a view of LLaVA-NeXT. All of them have contextual = 5 / 32 k, which is the rule for
every other k, rounded (half to even).

    paper       padding is neither kept nor merged, so a view with fewer tokens of the image than its budget has fewer, and a tile of
                padding alone has none, CLS included. Thumbnail: CLS, dominant patches, contextual tokens. Then the kept patches of the
                tiles in raster order over the image, whose rows end with a newline, the tiles' CLS tokens, their contextual tokens.
    reference   the same as the authors' code packs LLaVA-NeXT: tokens that show padding compete and stay, there are no newlines, and a
                single view ends with one.

Two cases in which the authors' code raises have a rule in both modes: with fewer remaining patches than ``contextual`` each of them is
a contextual token, and ``contextual=0`` drops what is not dominant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import EXTRA, TokenSelection, check_newline_policy, pack
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import at_least_one, check_ratio, floor_tolerant, keeps_everything, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")


@dataclass(frozen=True)
class VisionZip:
    """The dominant tokens of every view, and the remaining ones merged into contextual tokens.

    Args:
        ratio: k as a share of a view's patches, k = floor(N * ratio). Without effect where both of the next two are given.
        layer: CLIP layer whose attention and keys are read, 1-based (23 of 24: the last but one).
        dominant: dominant tokens of a view, CLS among them; None: k less the contextual ones.
        contextual: contextual tokens of a view; None: k less the dominant ones, or 5 / 32 k where both are None.
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; without effect in ``reference``.
    """

    name: ClassVar[str] = "visionzip"

    ratio: float
    layer: int = 23
    dominant: int | None = None
    contextual: int | None = None
    mode: str = "paper"
    newline_policy: str = "valid_rows"

    merges = True

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        if self.mode not in MODES:
            raise UserError(f"visionzip.mode={self.mode} is not known; {nearest(str(self.mode), MODES)}")
        for key, least in (("dominant", 1), ("contextual", 0)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"visionzip.{key}={value} is too small; use at least {least}")
        check_newline_policy(self.newline_policy)

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(attention=frozenset({self.layer}), keys=frozenset({self.layer}), cls=True)

    def budget(self, patches: int) -> tuple[int, int]:
        """(dominant, contextual) tokens of a view of N ``patches``. Raises UserError where they are no split of the budget, or more than
        the patches and CLS."""
        dominant, contextual = self.dominant, self.contextual
        if dominant is None or contextual is None:
            k = at_least_one(f"retention_ratio={self.ratio}", floor_tolerant(patches * self.ratio), patches)
            given, value = ("dominant", dominant) if dominant is not None else ("contextual", contextual)
            most = k - (given == "contextual")
            if value is not None and value > most:
                raise UserError(
                    f"visionzip.{given}={value} is more than a budget of {k} tokens a view has room for; use at most {most}, or give both"
                    " dominant and contextual"
                )
            contextual = contextual if contextual is not None else contextual_share(k) if dominant is None else k - dominant
            dominant = k - contextual
        if dominant + contextual > patches + 1:
            raise UserError(
                f"visionzip.dominant={dominant} and contextual={contextual} are more than the {patches} patches of a view and CLS;"
                f" use at most {patches + 1} in all"
            )
        return dominant, contextual

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The dominant patches as they are, CLS and contextual tokens as added ones; None where R = 1 leaves the model untouched."""
        views, reference = encoding.views, self.mode == "reference"
        whole = self.dominant is None and self.contextual is None and keeps_everything(self.ratio, views, self.newline_policy)
        if whole and not reference:
            return None
        dominant, contextual = self.budget(views.tokens)
        assert encoding.hidden_cls is not None
        allowed = views.candidates(reference)
        scores = encoding.attention(self.layer).sum(1).cpu()  # (views, N)
        heads = encoding.logits[self.layer].shape[1]
        indices, classes, merged = [], [], []
        for v in range(views.count):
            kept = top(scores[v], dominant - 1, allowed[v])
            remaining = allowed[v].clone()
            remaining[kept] = False
            features, keys = encoding.hidden[v], mean_keys(encoding.keys[self.layer][v, 1:], heads)
            remaining = remaining.nonzero()[:, 0].to(features.device)
            indices.append(kept)
            classes.append(encoding.hidden_cls[v : v + 1] if bool(allowed[v].any()) else features[:0])
            merged.append(contextual_tokens(features[remaining], keys[remaining], contextual))
        policy = self.newline_policy if not reference else "none" if views.tiles else "valid_rows"
        patches = pack(views, TokenSelection(tuple(indices), padding=reference), policy)
        sequence = around(patches, len(indices[0]), [len(c) for c in classes], [len(m) for m in merged])
        return TokenSelection.of_sequence(views, sequence, (classes[0], merged[0], *classes[1:], *merged[1:]))


def contextual_share(k: int) -> int:
    """Contextual tokens among ``k``: 30 of 192, 20 of 128, 10 of 64, 5 of 32, and in proportion."""
    return round(5 * k / 32)


def mean_keys(keys: torch.Tensor, heads: int) -> torch.Tensor:
    """(N, C / heads) mean over heads of (N, C) keys. Merging by full keys would group patches otherwise."""
    by_head: torch.Tensor = keys.unflatten(-1, (heads, -1))
    return by_head.mean(-2)


def contextual_tokens(features: torch.Tensor, keys: torch.Tensor, contextual: int) -> torch.Tensor:
    """(min(contextual, n), C) contextual tokens from the (n, C) ``features`` and (n, D) ``keys`` of the remaining patches, in raster
    order. Equally similar targets: the first."""
    n = len(features)
    count = min(contextual, n)
    if not count:
        return features[:0]
    is_target = torch.zeros(n, dtype=torch.bool, device=features.device)
    step = max(1, n // contextual)
    is_target[: step * count : step] = True
    unit = F.normalize(keys.float(), dim=-1)
    joined = F.one_hot((unit[~is_target] @ unit[is_target].T).argmax(-1), count).to(unit)  # (n - count, count)
    means = joined.T @ features[~is_target].float() / joined.sum(0).clamp(min=1)[:, None]
    return (features[is_target].float() + means).to(features.dtype)


def around(patches: torch.Tensor, thumbnail: int, classes: list[int], merged: list[int]) -> torch.Tensor:
    """The sources of packed ``patches``, of which the first ``thumbnail`` are view 0's, with the added tokens at their places.
    ``classes``, ``merged``: number of CLS and of contextual tokens by view."""

    def added(count: int) -> torch.Tensor:
        return torch.full((count,), EXTRA)

    first, tiles = patches[:thumbnail], patches[thumbnail:]
    return torch.cat([added(classes[0]), first, added(merged[0]), tiles, added(sum(classes[1:])), added(sum(merged[1:]))])


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    dominant: int | None = None,
    contextual: int | None = None,
    layer: int | None = None,
    mode: str = "paper",
    newline_policy: str = "valid_rows",
) -> Method:
    """VisionZip on ``backbone``. ``tokens``: instead of ``retention_ratio``, see ``token_share``; ``layer``: None takes the encoder's last
    but one."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    layer = max(1, depth - 1) if layer is None else layer
    check_layers("visionzip.layer", [layer], depth)
    share = token_share(backbone, retention_ratio, tokens)
    pruner = VisionZip(share, layer, dominant, contextual, mode, newline_policy)
    patches = backbone.grid[0] * backbone.grid[1]
    split = pruner.budget(patches)
    if tokens is not None and sum(split) != floor_tolerant(patches * share):
        raise UserError(
            f"tokens={tokens} is {floor_tolerant(patches * share)} of a view, but visionzip.dominant={dominant} and"
            f" contextual={contextual} are {sum(split)}; leave one of them null"
        )
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
