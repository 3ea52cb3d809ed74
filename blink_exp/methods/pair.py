"""A pair: a pruner before the LLM and a policy inside it, each configured as on its own.

The pruner decides which visual tokens enter; the policy works on the remaining ones:

- FastV, SparseVLM, PyramidDrop and DART drop further tokens. Their ratios and layer averages count from what entered, so the two shares
  multiply.
- Blink scans the tokens of the base view that are left, patch by patch, and expands the most salient patch. Cells of it that were dropped
  take the mean of the nearest tokens that were kept, or, with ``fill="recall"``, the dropped embeddings, which are kept for that.

A budget in ``tokens`` is the whole pair's: the visual tokens a layer holds, averaged over all layers, of an image of nominal size. A pruner
and a policy that drops share it evenly: the pruner lets in the share sqrt(tokens / V) of the V tokens, and the policy leaves the same share
of those, averaged over layers, so that both together leave ``tokens`` (to the nearest that whole tokens allow). With Blink, which drops
nothing, the pruner lets in ``tokens``; what Blink expands comes on top and depends on the question.

HERO with Blink is the pair this project is about: HERO takes away what no question is likely to need, Blink brings back resolution where
this question looks. Pairs that make no sense are refused: Blink needs tokens that show one cell of the base view each, which a method that
merges tokens does not leave; and SparseVLM's published schedules are numbers of tokens out of all 576.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blink_exp.core.method import Method
from blink_exp.errors import UserError, nearest
from blink_exp.methods.budgets import layer_average, nominal_tokens, nominal_views, token_share
from blink_exp.methods.sparsevlm import SparseVLMPolicy

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

FILLS = ("neighbours", "recall")
MISSING = object()  # no such setting
STEP = 9  # tokens more and fewer that a policy is asked to leave, beside the exact number: DART keeps eight more or less at a time

Maker = Callable[..., Method]  # of a backbone, and of ``tokens`` where it has such a setting


def configure(backbone: Backbone, *, pruner: Maker, policy: Maker, fill: str, tokens: int | None = None, name: str | None = None) -> Method:
    """The pair of ``pruner(backbone)`` and ``policy(backbone)``. ``fill``: see above, for Blink; ``tokens``: of the whole pair, instead
    of the budgets of its halves."""
    if fill not in FILLS:
        raise UserError(f"fill.policy={fill} is not known; {nearest(str(fill), FILLS)}")
    entering = None
    if tokens is None:
        first, second = pruner(backbone), policy(backbone)
    else:
        entering, first, second = _shared_budget(backbone, pruner, policy, tokens)
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
    return replace(
        second,
        name=name or f"{first.name}+{second.name}",
        pruner=first.pruner,
        restore_dropped=blinks and fill == "recall",
        entering=entering,
    )


def _shared_budget(backbone: Any, pruner: Maker, policy: Maker, tokens: int) -> tuple[int, Method, Method]:
    """(tokens that the pruner lets in, the pruner, the policy), so that a layer of the pair holds ``tokens`` on average. Raises UserError
    where a half takes no budget, has one of its own, or cannot reach its share."""
    budget = {half: _budget(maker) for half, maker in (("pruner", pruner), ("policy", policy))}
    for half, half_budget in budget.items():
        if half_budget not in (None, tokens, MISSING):
            raise UserError(f"tokens={tokens} and method.{half}.tokens={half_budget} both set the pair's budget; give one of them")
    if budget["pruner"] is MISSING:
        raise UserError(f"tokens={tokens} is no setting of method/pruner={pruner(backbone).name}, which has no budget; use another pruner")
    token_share(backbone, 1.0, tokens)  # refuses what no method can keep
    pruner(backbone, tokens=tokens)  # refuses any budget, where it takes none
    if budget["policy"] is MISSING:  # drops nothing
        return tokens, pruner(backbone, tokens=tokens), policy(backbone)
    visual, views = nominal_tokens(backbone), nominal_views(backbone)
    entering = min(visual, max(tokens, views * round(math.sqrt(tokens * visual) / views)))
    left = round(tokens * visual / entering)  # of ``visual``: the policy states its own as if all entered
    first = pruner(backbone, tokens=entering)
    reached: dict[float, Method] = {}
    refused: UserError | None = None
    step = math.ceil(STEP * visual / entering)
    for n in range(max(left - step, 1), min(left + step, visual) + 1):
        try:
            method = policy(backbone, tokens=n)
        except UserError as error:
            refused = error
        else:
            reached.setdefault(_average(method, entering, backbone.depth), method)
    if not reached:
        raise UserError(
            f"tokens={tokens} of a pair lets {entering} in and leaves the share {tokens / entering:.3f} of them: {refused}"
        ) from None
    average = min(reached, key=lambda average: abs(average - tokens))
    second = reached[average]
    if not min(reached) - 1 <= tokens <= max(reached) + 1:
        raise UserError(f"tokens={tokens} cannot be met: {first.name}+{second.name} holds {average:.1f} a layer; use about {average:.0f}")
    return entering, first, second


def _budget(maker: Maker) -> Any:
    """The ``tokens`` that a half is configured with; MISSING where it has no such setting."""
    return getattr(maker, "keywords", {}).get("tokens", MISSING)


def _average(method: Method, entering: int, depth: int) -> float:
    assert method.policy is not None
    by_layer = method.policy.layer_tokens(entering, depth)
    assert by_layer is not None
    return layer_average(by_layer)
