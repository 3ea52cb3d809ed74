"""DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (https://arxiv.org/abs/2503.02175).

Tokens are worth keeping for what the others do not say. DivPrune looks at no attention and no question: it spreads its budget over the
projected visual tokens, those that the LLM would read, so that the smallest distance between two kept tokens is as large as a greedy
choice makes it (the max-min diversity problem). With d(i, j) = 1 - cos(i, j) over V tokens:

  1. the first token is the one whose nearest other token is farthest away;
  2. every further one is the token whose nearest kept token is farthest away, until there are T = round(R * V), half to even.

Ties go to the lower index. A kept token is struck out, so that T different ones are kept whatever their distances; the authors' code takes
one twice where fewer than T directions are different. The loop keeps each token's distance to the nearest kept one, so that a step reads
one row of the V x V matrix and costs O(V).

    paper       all tokens that show the image compete, those of all views of LLaVA-NeXT at once. Newlines are not counted, and rows end
                with one. Distances in float32.
    reference   as the authors' code: the packed sequence of LLaVA-NeXT competes, newline tokens included. They count in V, and as all are
                one direction, at most one of them is kept before everything else is. Distances in the model's dtype: in half precision
                many are equal, and ties decide.

On LLaVA-1.5 the modes differ in the dtype only. The paper keeps 0.098 of 576 tokens, 56. Its numbers were measured with the kept tokens in
the order of their choice (``order=selection``), the published code sorts them (``order=sorted``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.views import NEWLINE, TokenSelection, all_tokens, check_newline_policy, pack
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import at_least_one, check_ratio, keeps_everything, token_share

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MODES = ("paper", "reference")
ORDERS = ("sorted", "selection")


@dataclass(frozen=True)
class DivPrune:
    """The tokens of an image that are spread the widest.

    Args:
        ratio: share of the image's tokens to keep (R).
        order: ``sorted``: as in the image; ``selection``: as they were chosen, without newlines of their own.
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; without effect in ``reference`` and with ``order="selection"``.
    """

    name: ClassVar[str] = "divprune"

    ratio: float
    order: str = "sorted"
    mode: str = "paper"
    newline_policy: str = "valid_rows"

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        for key, words in (("order", ORDERS), ("mode", MODES)):
            if getattr(self, key) not in words:
                raise UserError(f"divprune.{key}={getattr(self, key)} is not known; {nearest(str(getattr(self, key)), words)}")
        check_newline_policy(self.newline_policy)

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(llm_features=True)

    def budget(self, tokens: int) -> int:
        """T of V ``tokens``."""
        return at_least_one(f"retention_ratio={self.ratio}", round(tokens * self.ratio), tokens)

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept tokens; None where R = 1 leaves the model untouched."""
        views, reference, ordered = encoding.views, self.mode == "reference", self.order == "sorted"
        if ordered and keeps_everything(self.ratio, views, "valid_rows" if reference else self.newline_policy):
            return None
        candidates = pack(views, all_tokens(views), "valid_rows" if reference else "none")  # (V,) sources
        features = token_features(encoding, candidates)
        chosen = farthest(distances(features if reference else features.float()), self.budget(len(candidates))).cpu()
        selection = TokenSelection.of_sequence(views, candidates[chosen.sort().values if ordered else chosen])
        return TokenSelection(selection.indices) if ordered and not reference else selection


def token_features(encoding: Encoding, sources: torch.Tensor) -> torch.Tensor:
    """(tokens, width) features of the tokens with these ``sources``, patches or newlines, as the LLM reads them."""
    assert encoding.llm_features is not None
    rows = encoding.llm_features.flatten(0, 1)[sources.clamp(min=0).to(encoding.llm_features.device)]
    if bool((sources == NEWLINE).any()):
        assert encoding.newline is not None
        rows[(sources == NEWLINE).to(rows.device)] = encoding.newline.to(rows)
    return rows


def distances(features: torch.Tensor) -> torch.Tensor:
    """(V, V) distances 1 - cosine of (V, width) ``features``, in their dtype."""
    length = features.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)
    unit: torch.Tensor = features / length
    return 1 - unit @ unit.T


def farthest(distance: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) indices in the order of a greedy max-min choice from (V, V) distances, on their device. Each is taken once.

    Nothing in the loop waits for the device, and no step looks at more than one row. The distance to the nearest other token is the second
    smallest of a column, as in the authors' code: the diagonal is 0 up to rounding, and between near copies rounding decides.
    """
    second = distance.topk(min(2, len(distance)), dim=0, largest=False).values[-1]
    pick = second.argmax(0, keepdim=True)
    nearest_kept = torch.full_like(distance[0], torch.inf)
    order = [pick]
    for _ in range(count - 1):
        torch.minimum(nearest_kept, distance.index_select(0, pick)[0], out=nearest_kept)
        nearest_kept.index_fill_(0, pick, -torch.inf)  # struck out: below every distance, for good
        pick = nearest_kept.argmax(0, keepdim=True)
        order.append(pick)
    return torch.cat(order)


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    order: str = "sorted",
    mode: str = "paper",
    newline_policy: str = "valid_rows",
) -> Method:
    """DivPrune on ``backbone``. ``tokens``: instead of ``retention_ratio``, see ``token_share``."""
    pruner = DivPrune(token_share(backbone, retention_ratio, tokens), order, mode, newline_policy)
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
