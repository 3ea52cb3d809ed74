"""The token budget of a point in words and numbers: what was asked for, and the schedule by which the LLM's layers keep to it."""

from __future__ import annotations

from typing import Any

from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method
from blink_exp.documents.runs import TokenBudget
from blink_exp.methods.budgets import layer_average, nominal_tokens, schedule_text, whole_tokens
from blink_exp.settings.roots import PointSettings


def budget_of(settings: PointSettings, backbone: Backbone, method: Method) -> TokenBudget | None:
    """The budget of a method that drops visual tokens; None for one that drops none.

    ``tokens``, ``retention_ratio``: as set (the former goes before the latter), None where the method has none.
    ``nominal``: visual tokens of an image of nominal size, for which ``by_layer`` and its mean ``average`` hold: those of methods that drop
    inside the LLM, None for others and where the prompt decides.
    """
    if not method.drops:
        return None
    nominal = nominal_tokens(backbone)
    by_layer = None
    if method.policy is not None and method.drops_inside and (method.pruner is None or method.entering is not None):
        by_layer = method.policy.layer_tokens(method.entering or nominal, backbone.depth)
    return {
        "tokens": whole_tokens(backbone, settings.tokens) if _takes(settings.method, "tokens") else None,
        "retention_ratio": settings.retention_ratio if _takes(settings.method, "retention_ratio", "ratio") else None,
        "nominal": nominal,
        "by_layer": by_layer,
        "average": layer_average(by_layer) if by_layer else None,
    }


def _takes(node: dict[str, Any], *names: str) -> bool:
    """Whether a method, or a half of a pair, has one of these settings."""
    return any(name in node for name in names) or any(_takes(half, *names) for half in node.values() if isinstance(half, dict))


def budget_line(name: str, budget: TokenBudget) -> str | None:
    """The schedule of a budget as a sentence; None where there is none to state."""
    if budget["by_layer"] is None:
        return None
    ratio = "" if budget["retention_ratio"] is None else f", retention_ratio={budget['retention_ratio']:g}"
    of = f", tokens={budget['tokens']}" if budget["tokens"] is not None else ratio
    return f"{name}{of}: of {budget['nominal']} visual tokens {schedule_text(budget['by_layer'])}"
