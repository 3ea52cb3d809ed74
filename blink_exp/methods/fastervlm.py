"""FasterVLM: [CLS] Attention is All You Need for Training-Free Visual Token Pruning.

A token that the CLIP encoder's CLS token looks at late in the encoder is worth keeping. Each view of the image keeps its own k = N * R
tokens with the largest CLS attention, averaged over heads, of the last but one layer: the layer that made the features which LLaVA reads.
Neither the question nor the other views have a say, so k is the same for every view.

    paper       padding is never kept, so a view with fewer than k tokens of the image keeps those, and rows end with a newline.
    reference   as the authors' code packs LLaVA-NeXT: tokens that show padding compete and stay, and there are no newlines, which makes
                even R = 1 differ from the untouched model. The code also picks its grid of tiles by a rule of its own; both modes take
                the backbone's, so token counts for one image can differ from the authors'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.method import Method
from blink_exp.core.views import TokenSelection
from blink_exp.methods.budgets import at_least_one, check_ratio, floor_tolerant, keeps_everything, resolve_newline_policy, token_share, top

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

NEWLINES = {"paper": "valid_rows", "reference": "none"}  # newline policy of each mode


@dataclass(frozen=True)
class FasterVLM:
    """The k patches of every view with the largest CLS attention.

    Args:
        ratio: share of each view's tokens to keep (R); k = floor(N * R). The authors give k itself, e.g. 144 of 576 for R = 0.25.
        layer: CLIP layer whose attention is read, 1-based (23 of 24: the last but one).
        mode: ``paper`` or ``reference``, see above.
        newline_policy: see ``blink_exp.core.views.pack``; empty: the mode's own.
    """

    name: ClassVar[str] = "fastervlm"

    ratio: float
    layer: int = 23
    mode: str = "paper"
    newline_policy: str = ""

    merges = False

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.ratio)
        object.__setattr__(self, "newline_policy", resolve_newline_policy("fastervlm", self.mode, self.newline_policy, NEWLINES))

    @property
    def needs(self) -> EncoderRequirements:
        return EncoderRequirements(attention=frozenset({self.layer}))

    def budget(self, tokens: int) -> int:
        """k of a view of ``tokens`` patches."""
        k = floor_tolerant(tokens * self.ratio) if self.mode == "paper" else int(tokens * self.ratio)
        return at_least_one(f"retention_ratio={self.ratio}", k, tokens)

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept patches of each view, ascending; None where R = 1 leaves the model untouched."""
        views = encoding.views
        pads = self.mode == "reference"
        if keeps_everything(self.ratio, views, self.newline_policy, pads):
            return None
        scores = encoding.cls_attention((self.layer,)).cpu()  # (views, N)
        allowed = views.candidates(pads)
        k = self.budget(views.tokens)
        return TokenSelection(tuple(top(s, k, a) for s, a in zip(scores, allowed, strict=True)), padding=pads)


def configure(
    backbone: Backbone,
    *,
    retention_ratio: float,
    tokens: int | None = None,
    layer: int | None = None,
    mode: str = "paper",
    newline_policy: str | None = None,
) -> Method:
    """FasterVLM on ``backbone``. ``tokens``: see ``token_share``; ``layer``: None takes the encoder's last but one; ``newline_policy``:
    None takes the mode's own."""
    depth = backbone.model.config.vision_config.num_hidden_layers
    layer = max(1, depth - 1) if layer is None else layer
    check_layers("fastervlm.layer", [layer], depth)
    pruner = FasterVLM(token_share(backbone, retention_ratio, tokens), layer, mode, newline_policy or "")
    backbone.check(pruner.needs)
    return Method(name=pruner.name, pruner=pruner)
