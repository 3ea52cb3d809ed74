"""Token budgets of pruners: retention ratios, rounding, top-k, and caps of tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence as Rows
from fractions import Fraction
from typing import Any

import torch

from blink_exp.core.views import ViewGeometry, check_newline_policy
from blink_exp.errors import UserError, nearest

NOMINAL_TILES = (2, 2)  # rows and columns of LLaVA-NeXT's tiles (672 x 672 pixels) that budgets are stated for, beside the thumbnail
NOMINAL_VIEWS = 5


def check_ratio(name: str, ratio: float) -> float:
    """A retention ratio: the share of visual tokens that is kept."""
    if not 0 < ratio <= 1:
        raise UserError(f"{name}={ratio} is outside (0, 1]; it is the share of visual tokens to keep, e.g. 0.2")
    return float(ratio)


def nominal_views(backbone: Any) -> int:
    """Views of an image that budgets in tokens are stated for."""
    return NOMINAL_VIEWS if hasattr(backbone.model.config, "image_grid_pinpoints") else 1


def nominal_tokens(backbone: Any) -> int:
    """Visual tokens of an image that budgets in tokens are stated for: 576 of LLaVA-1.5, 5 x 576 of LLaVA-NeXT."""
    tokens: int = backbone.grid[0] * backbone.grid[1] * nominal_views(backbone)
    return tokens


def whole_tokens(backbone: Any, tokens: int | str | None) -> int | None:
    """A budget as a number: itself, or of a share such as "1/3" of ``nominal_tokens`` the nearest whole number."""
    if not isinstance(tokens, str):
        return tokens
    return max(1, math.floor(Fraction(tokens) * nominal_tokens(backbone) + Fraction(1, 2)))


def token_share(backbone: Any, retention_ratio: float, tokens: int | None) -> float:
    """The share of an image's visual tokens to keep: ``retention_ratio``, or, where it is not None, ``tokens`` over all of them.

    ``tokens`` are stated as in the literature: visual tokens a layer, averaged over the LLM's layers. For LLaVA-NeXT they are stated for a
    thumbnail and four tiles (640: 128 of each view's 576), whatever the number of views of an image. Rounded down, the share of a whole
    image is ``tokens`` exactly, and that of a view its whole part.
    """
    if tokens is None:
        return check_ratio("retention_ratio", retention_ratio)
    views, most = nominal_views(backbone), nominal_tokens(backbone)
    if not views <= tokens <= most:
        of = f"{views} views of {most // views}, at least one of each" if views > 1 else "the image"
        raise UserError(f"tokens={tokens} is outside {views} to {most}, the visual tokens of {of}; use a value inside, or budget=third")
    share = tokens / most
    while int(most * share) < int(tokens) or int(most // views * share) < int(tokens) // views:  # 49 * (1 / 49) is below 1
        share = math.nextafter(share, 2)
    return share


def layer_average(by_layer: Rows[int]) -> float:
    """Visual tokens a layer, averaged: the "equivalent tokens" of the literature."""
    return sum(by_layer) / len(by_layer)


def schedule_text(by_layer: Rows[int]) -> str:
    """Visual tokens by layer in words: "576 in layers 0-1, 166 in 2-31, on average 191.6"."""
    runs: list[str] = []
    first = 0
    for n, same in itertools.groupby(by_layer):
        last = first + len(list(same)) - 1
        runs.append(f"{n} in {'' if runs else 'layers '}{first}-{last}" if last > first else f"{n} in {'' if runs else 'layer '}{first}")
        first = last + 1
    return f"{', '.join(runs)}, on average {layer_average(by_layer):.1f}"


def resolve_newline_policy(method: str, mode: str, policy: str, of_mode: dict[str, str]) -> str:
    """The newline policy of a pruner with modes: ``policy``, or where that is empty the mode's own in ``of_mode``. Raises UserError for
    unknown words."""
    if mode not in of_mode:
        raise UserError(f"{method}.mode={mode} is not known; {nearest(str(mode), of_mode)}")
    return check_newline_policy(policy or of_mode[mode])


def keeps_everything(ratio: float, views: ViewGeometry, newline_policy: str, padding: bool = False) -> bool:
    """Whether keeping ``ratio`` of the tokens under a newline policy is the stock sequence. ``padding``: whether tokens of tiles that show
    padding are kept, which the stock sequence leaves out."""
    return ratio == 1 and (newline_policy == "valid_rows" or not views.newline) and not (padding and views.tiles)


def view_budget(ratio: float, tokens: int) -> int:
    """k = floor(N * R) of a view of ``tokens`` patches. Raises UserError where that is none."""
    return at_least_one(f"retention_ratio={ratio}", floor_tolerant(tokens * ratio), tokens)


def floor_tolerant(x: float) -> int:
    """floor(x) with a tolerance for rounding errors: 2880 * 0.7 is 2016 here, not 2015."""
    return math.floor(x + 1e-9)


def at_least_one(name: str, budget: int, of: int) -> int:
    if budget < 1:
        raise UserError(f"{name} rounds to no token of {of}; use at least {math.ceil(1e4 / of) / 1e4}")
    return budget


def top(scores: torch.Tensor, k: int, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """(k,) indices of the largest of (N,) ``scores``, ascending; ties go to the lower index. ``allowed``: (N,) bool, others are never
    taken, so fewer than k may be returned."""
    order = torch.sort(scores.float().cpu(), descending=True, stable=True).indices
    if allowed is not None:
        order = order[allowed[order]]
    return order[: max(0, k)].sort().values


def cap_and_redistribute(budgets: Rows[int], limits: Rows[int], shares: Rows[float], redistribute: bool) -> list[int]:
    """Budgets cut to what each tile can keep. With ``redistribute`` the excess goes to the others in proportion to ``shares`` (rounded
    down, the rest to the largest fractions, lower index first) until it is spent or all are full."""
    out = [min(b, m) for b, m in zip(budgets, limits, strict=True)]
    excess = sum(budgets) - sum(out)
    while redistribute and excess > 0:
        free = [i for i in range(len(out)) if out[i] < limits[i]]
        weight = sum(shares[i] for i in free)
        if not free:
            break
        exact = [excess * (shares[i] / weight if weight > 0 else 1 / len(free)) for i in free]
        added = [min(floor_tolerant(w), limits[i] - out[i]) for i, w in zip(free, exact, strict=True)]
        if not any(added):
            order = sorted(range(len(free)), key=lambda j: (-(exact[j] - math.floor(exact[j])), free[j]))
            for j in order[:excess]:
                added[j] = 1
        for i, g in zip(free, added, strict=True):
            out[i] += g
        excess -= sum(added)
    return out
