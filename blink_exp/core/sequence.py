"""The token sequence of a prompt, the decisions that change it, and the one rule by which they do (``transition``).

    block 0 (system | visual) | expanded 0 | [block 1 (text | visual) | expanded 1 | ...] | text

Attention is causal, so putting a segment in front of the text or taking it away changes nothing that stands before it. Visual tokens are
the last ones of their block, also where some of them have been dropped (``Retain``). Nothing here knows a model; what carries decisions
out on states is ``blink_exp.decoder``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from blink_exp.core.base_view import BaseViewMap


# What a policy can decide for one image at one layer. Small and hashable: decisions are recorded, compared and replayed.
@dataclass(frozen=True)
class Keep:
    """Leave the sequence as it is."""


@dataclass(frozen=True)
class Drop:
    """Remove the expanded segment, if there is one (Blink, Sec. 3.2.2)."""


@dataclass(frozen=True)
class Expand:
    """Put an enlarged copy of patch ``region`` between visual and text tokens (Blink, Sec. 3.2.1).

    ``on_reexpand``: what becomes of an expanded segment that is already there: replace, keep (this decision has no effect) or
    append (both stay). ``amplify``: whether the layer's TokenSR module refines the copy.
    """

    region: int
    on_reexpand: str = "replace"
    amplify: bool = True


@dataclass(frozen=True)
class Retain:
    """Go on with some of a row's visual tokens (FastV, SparseVLM); every other token of the prompt stays.

    ``indices``: which of the visual tokens that are present stay, ascending, counted through all images of the row. ``clusters``: groups
    of visual tokens, counted alike, whose means are put behind the last visual token that stays, in this order.
    """

    indices: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...] = ()


Decision = Keep | Drop | Expand | Retain

V = TypeVar("V")  # a visual token
E = TypeVar("E")  # a part of an expanded segment


@dataclass(frozen=True)
class Origin:
    """Where a part of an expanded segment comes from: the layer that made it, the patch, and how many tokens it has."""

    layer: int
    region: int
    tokens: int


@dataclass(frozen=True)
class State(Generic[V, E]):
    """What of a row's images a layer works on. ``visual[k]``: the visual tokens of image k, in order; ``expanded[k]``: the parts of the
    expanded segment behind them."""

    visual: tuple[Rows[V], ...]
    expanded: tuple[tuple[E, ...], ...]

    @classmethod
    def of(cls, *visual: Rows[V]) -> State[V, E]:
        """Images of these visual tokens, with nothing expanded."""
        return cls(visual, ((),) * len(visual))


def transition(
    state: State[V, E],
    decision: Decision,
    image: int = 0,
    *,
    expand: Callable[[tuple[E, ...]], E] | None = None,
    merge: Callable[[tuple[V, ...]], V] | None = None,
) -> State[V, E]:
    """The state behind a decision, the one rule that everything that carries out or replays decisions goes by. Pure.

    Args:
        image: which image is expanded or dropped; ``Retain`` is about all of them.
        expand: the part that an expansion makes, given the parts that it stands behind. Called only if there is one to make.
        merge: the token that some visual tokens are merged to.
    """
    if isinstance(decision, Keep):
        return state
    if isinstance(decision, Retain):
        return replace(state, visual=_retained(state.visual, decision, merge))
    parts = state.expanded[image]
    if isinstance(decision, Drop):
        parts = ()
    elif not (parts and decision.on_reexpand == "keep"):
        assert expand is not None
        before = parts if decision.on_reexpand == "append" else ()
        parts = (*before, expand(before))
    return replace(state, expanded=(*state.expanded[:image], parts, *state.expanded[image + 1 :]))


def _retained(visual: tuple[Rows[V], ...], decision: Retain, merge: Callable[[tuple[V, ...]], V] | None) -> tuple[Rows[V], ...]:
    all_tokens = list(itertools.chain.from_iterable(visual))
    merged: list[V] = []
    if decision.clusters:
        assert merge is not None
        merged = [merge(tuple(all_tokens[i] for i in cluster)) for cluster in decision.clusters]
    last = max((k for k, tokens in enumerate(visual) if len(tokens)), default=0)  # merged tokens stand behind the last image
    ends = [0, *itertools.accumulate(map(len, visual))]
    retained = [[all_tokens[i] for i in decision.indices if first <= i < end] for first, end in itertools.pairwise(ends)]
    return tuple(tuple(visual_tokens + merged) if k == last else tuple(visual_tokens) for k, visual_tokens in enumerate(retained))


@dataclass
class Layout:
    """Where the tokens of a prompt stand, row by row. Segments of a row are the block of each image (the text before it and its visual
    tokens) and, last, the text.

    ``index[row][k]``: (tokens,) positions in the prompt of segment k's tokens; ``visual[row][image]``: visual tokens of each image;
    ``base_maps[row][image]``: cells that the visual tokens show; None where every image has the H x W tokens of one view.
    """

    index: list[list[torch.Tensor]]
    visual: list[list[int]]
    base_maps: list[list[BaseViewMap]] | None = None

    @classmethod
    def of(cls, image_mask: torch.Tensor, attention_mask: torch.Tensor | None, visual: int | None) -> Layout:
        """``image_mask``: (batch, tokens), true on visual tokens; ``attention_mask``: the same shape, false on padding; ``visual``:
        tokens of every image, or None where images differ: then each run of visual tokens counts as one image."""
        real = torch.ones_like(image_mask) if attention_mask is None else attention_mask.bool()
        index: list[list[torch.Tensor]] = []
        for mask, valid in zip(image_mask, real, strict=True):
            tokens = valid.nonzero()[:, 0]
            if visual is None:
                ends = (mask & ~torch.cat([mask[1:], mask.new_zeros(1)])).nonzero()[:, 0]
            else:
                ends = mask.nonzero()[:, 0][visual - 1 :: visual]  # the last visual token of each image
                assert int(mask.sum()) == visual * len(ends), "the number of image tokens is no multiple of an image's"
            edges = [-1, *ends.tolist()]
            row = [tokens[(tokens > a) & (tokens <= b)] for a, b in itertools.pairwise(edges)]
            index.append([*row, tokens[tokens > edges[-1]]])
        counts = [[int(mask[block].sum()) for block in row[:-1]] for mask, row in zip(image_mask, index, strict=True)]
        return cls(index, counts)
