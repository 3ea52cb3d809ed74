"""The token sequence of a prompt, the decisions that change it, and their effect (``transition``).

    block 0 (system | visual) | expanded 0 | [block 1 (text | visual) | expanded 1 | ...] | text

Attention is causal, so inserting or removing a segment before the text changes no earlier state. Visual tokens are the last tokens of
their block, also after some have been dropped (``Retain``). This module is independent of models; ``blink_exp.decoder`` applies decisions
to hidden states.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from blink_exp.core.views import BaseViewMap


# Decisions of a policy for one image at one layer. Hashable, as they are recorded, compared and replayed.
@dataclass(frozen=True)
class Keep:
    """Leave the sequence as it is."""


@dataclass(frozen=True)
class Drop:
    """Remove the expanded segment, if there is one (Blink, Sec. 3.2.2)."""


@dataclass(frozen=True)
class Expand:
    """Insert an enlarged copy of patch ``region`` between visual and text tokens (Blink, Sec. 3.2.1).

    ``on_reexpand``: effect on an existing expanded segment: replace, keep (no effect of this decision) or append (both
    remain). ``amplify``: whether the layer's TokenSR module refines the copy.
    """

    region: int
    on_reexpand: str = "replace"
    amplify: bool = True


@dataclass(frozen=True)
class Retain:
    """Keep some of a row's visual tokens (policies that drop inside the LLM); other tokens of the prompt are not affected.

    ``indices``: the remaining visual tokens that are kept, ascending, counted over all images of the row. ``clusters``: groups of visual
    tokens, counted alike, whose means are inserted behind the last kept visual token, in this order.
    """

    indices: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...] = ()


Decision = Keep | Drop | Expand | Retain

V = TypeVar("V")  # a visual token
E = TypeVar("E")  # a part of an expanded segment


@dataclass(frozen=True)
class Origin:
    """Origin of a part of an expanded segment: the layer that added it, the patch, and its number of tokens."""

    layer: int
    region: int
    tokens: int


@dataclass(frozen=True)
class State(Generic[V, E]):
    """The tokens of a row's images in one layer. ``visual[k]``: the visual tokens of image k, in order; ``expanded[k]``: the parts of the
    expanded segment behind them."""

    visual: tuple[Rows[V], ...]
    expanded: tuple[tuple[E, ...], ...]

    @classmethod
    def of(cls, *visual: Rows[V]) -> State[V, E]:
        """Images with these visual tokens and no expanded segments."""
        return cls(visual, ((),) * len(visual))


def transition(
    state: State[V, E],
    decision: Decision,
    image: int = 0,
    *,
    expand: Callable[[tuple[E, ...]], E] | None = None,
    merge: Callable[[tuple[V, ...]], V] | None = None,
) -> State[V, E]:
    """The state after a decision; used wherever decisions are applied or replayed. Pure.

    Args:
        image: index of the image; ``Retain`` concerns all images.
        expand: makes the new part, given the parts in front of it. Called only if a part is added.
        merge: makes the merged token of a cluster.
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
    """Positions of a prompt's tokens, row by row. Segments of a row are the block of each image (the text before it and its visual
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
