"""A pair: a pruner before the LLM and a policy inside it, each configured as on its own.

The pruner decides which visual tokens enter; the policy works on the remaining ones:

- FastV, SparseVLM, PyramidDrop and DART drop further tokens. Their ratios and layer averages count from what entered, so the two shares
  multiply.
- Blink scans the tokens of the base view that are left, patch by patch, and expands the most salient patch. Cells of it that were dropped
  take the mean of the nearest tokens that were kept, or, with ``fill="recall"``, the dropped embeddings, which are kept for that.

HERO with Blink is the pair this project is about: HERO takes away what no question is likely to need, Blink brings back resolution where
this question looks. Pairs that make no sense are refused: Blink needs tokens that show one cell of the base view each, which a method that
merges tokens does not leave; and SparseVLM's published schedules are numbers of tokens out of all 576.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blink_exp.core.method import Method
from blink_exp.errors import UserError, nearest
from blink_exp.methods.sparsevlm import SparseVLMPolicy

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

FILLS = ("neighbours", "recall")

Maker = Callable[[Any], Method]


def configure(backbone: Backbone, *, pruner: Maker, policy: Maker, fill: str, name: str | None = None) -> Method:
    """The pair of ``pruner(backbone)`` and ``policy(backbone)``. ``fill``: see above, for Blink."""
    if fill not in FILLS:
        raise UserError(f"fill.policy={fill} is not known; {nearest(str(fill), FILLS)}")
    first, second = pruner(backbone), policy(backbone)
    if first.pruner is None or first.policy is not None:
        raise UserError(f"method/pruner={first.name} drops nothing in front of the LLM; use one of those that do, e.g. hero")
    if second.policy is None or second.pruner is not None:
        known = "blink, blink_interp, fastv, sparsevlm, pyramiddrop or dart"
        raise UserError(f"method/policy={second.name} does nothing inside the LLM; use {known}")
    blinks = not second.drops_inside
    if blinks and first.pruner.merges:
        raise UserError(
            f"method/pruner={first.name} merges tokens, but Blink expands tokens that show one cell each; use a pruner that merges none"
        )
    if isinstance(second.policy, SparseVLMPolicy) and second.policy.schedule:
        raise UserError(
            f"sparsevlm.schedule={list(second.policy.schedule)} counts tokens of a whole image, "
            f"but method/pruner={first.name} leaves fewer; use schedule=null with a retention_ratio"
        )
    return replace(second, name=name or f"{first.name}+{second.name}", pruner=first.pruner, restore_dropped=blinks and fill == "recall")
