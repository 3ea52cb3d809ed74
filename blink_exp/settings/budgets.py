"""The settings that set a token budget: ``tokens``, ``retention_ratio``, and the config group ``budget``, whose presets set ``tokens``."""

from __future__ import annotations

from collections.abc import Sequence

from blink_exp.errors import UserError

GROUP = "budget"
ROOT_SETTINGS = ("tokens", "retention_ratio", GROUP)
TOKENS, RATIO = ("tokens", "tokens_per_view"), ("retention_ratio", "ratio")
NOTHING = ("null", "default", "")


def check_budget(words: Sequence[str]) -> None:
    """Raises UserError if the overrides ``words`` set the budget twice. A ratio of one half of a pair may stand beside that of the pair."""
    budgets = [budget for word in words if (budget := _budget(word)) is not None]
    null_tokens = [
        word for word in words if word.startswith("method.tokens=null")
    ]  # a matched point: the method's own ratio stands instead
    for n, (first, scope, kind) in enumerate(budgets):
        for second, other, kind_of_other in budgets[n + 1 :]:
            if null_tokens and "" in (scope, other) and scope != other:
                continue
            nested = f"{scope}.".startswith(f"{other}.") or f"{other}.".startswith(f"{scope}.") or "" in (scope, other)
            halves = kind == kind_of_other == RATIO and scope != other
            if nested and not halves and _key(first) != _key(second):
                raise UserError(f"{first} and {second} both set the budget; give one of them")


def displaced(words: Sequence[str], by: Sequence[str]) -> list[str]:
    """``words`` without those that set the budget, where the overrides ``by``, which come after them, set another."""
    return [word for word in words if _key(word) not in ROOT_SETTINGS] if any(_key(word) in ROOT_SETTINGS for word in by) else list(words)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _budget(word: str) -> tuple[str, str, tuple[str, ...]] | None:
    """(the override, what it concerns: "" for all methods, which kind of budget) of an override that sets one, else None."""
    key, equals, value = word.lstrip("+").partition("=")
    scope, _, name = key.rpartition(".")
    if not equals or value.strip("'\"") in NOTHING or (scope not in ("", "hero") and not key.startswith("method.")):
        return None
    if key == GROUP:
        return word, "", TOKENS
    kind = next((kind for kind in (TOKENS, RATIO) if name in kind), None)
    return None if kind is None else (word, "" if scope == "hero" else scope, kind)
