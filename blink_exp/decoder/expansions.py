"""Expanded segments, each made and run once, however many texts stand behind it.

An expanded segment depends on the image, its layer, its region and its module, and on nothing that comes behind it. It is run layer by
layer, as far as a text still needs it: where every point has dropped or replaced it, it stops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from blink_exp.core.base_view import Shown
from blink_exp.core.saliency import PatchGrid
from blink_exp.decoder.decode import enlarge
from blink_exp.decoder.prefixes import Prefix
from blink_exp.decoder.shared_attention import Part, Parts

Chain = tuple["Expansion", ...]  # the expanded segments that stand in front of a text, in their order


@dataclass(frozen=True)
class Wish:
    """All that an expansion depends on. ``before``: what it stands behind besides the prefix (``on_reexpand=append``); ``module``: its
    TokenSR module, or None; ``recalls``: whether it gets back what a pruner dropped."""

    prefix: Prefix
    layer: int
    region: int
    grid: PatchGrid
    interpolate: bool
    inherit: bool
    module: nn.Module | None
    before: Chain
    shown: Shown | None = field(compare=False, default=None)
    recalls: bool = False


@dataclass(eq=False)
class Expansion:
    """An expanded segment at work. ``states``: (tokens, hidden) at the input of layer ``reached``; ``places``: (tokens,) fractional raster
    indices of what its tokens show; ``keys``, ``values``: {layer: (kv_heads, tokens, head_dim)} of the layers that it has run through;
    ``inputs``: its states at the input of those that may be scanned."""

    wish: Wish
    states: torch.Tensor
    places: torch.Tensor
    reached: int
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return len(self.states)

    def at(self, layer: int) -> torch.Tensor:
        """(tokens, hidden) states at the input of a layer, also of one that it has run through for other texts."""
        return self.states if self.reached == layer else self.inputs[layer]

    def positions(self) -> torch.Tensor:
        """(tokens,): numbers of their own behind all that stands before, or those of the places that they show."""
        prefix = self.wish.prefix
        if self.wish.inherit:
            return self.places + prefix.tokens - prefix.visual
        return torch.arange(self.tokens, device=self.states.device) + prefix.tokens + length(self.wish.before)


def length(chain: Chain) -> int:
    return sum(expansion.tokens for expansion in chain)


def ahead_of(prefix: Prefix, chain: Chain) -> int:
    """The number of the first token behind them. Expanded tokens with the numbers of what they show take none away."""
    return prefix.tokens + sum(e.tokens for e in chain if not e.wish.inherit)


def make(wishes: Rows[Wish]) -> list[Expansion]:
    """The expansions of some wishes, those with one module as one batch. Blink, Eqs. (4)-(5)."""
    made: dict[int, Expansion] = {}
    numbers = sorted(range(len(wishes)), key=lambda n: _kind(wishes[n]))
    for _, same in itertools.groupby(numbers, key=lambda n: _kind(wishes[n])):
        group = list(same)
        first = wishes[group[0]]
        grid, (h, w) = first.grid, first.grid.patch
        patches = torch.stack([_base_view(wishes[n])[grid.indices(wishes[n].region)] for n in group]).mT.unflatten(2, (h, w))
        if first.interpolate:
            patches = enlarge(patches, (grid.height, grid.width))
        if first.module is not None:
            patches = first.module(patches)
        size = (patches.shape[-2], patches.shape[-1])
        for n, tokens in zip(group, patches.flatten(2).mT, strict=True):
            places = grid.places(wishes[n].region, size).to(tokens.device)
            made[n] = Expansion(wishes[n], tokens, places, wishes[n].layer)
    return [made[n] for n in range(len(wishes))]


def _kind(wish: Wish) -> tuple[int, int, bool]:
    return id(wish.module), wish.grid.p, wish.interpolate


def _base_view(wish: Wish) -> torch.Tensor:
    """(H * W, hidden) states of the base view at the layer's input, from before its norm (Blink, Alg. 1)."""
    states = wish.prefix.states[wish.layer]
    if wish.shown is None:
        return states[-wish.grid.height * wish.grid.width :]
    return wish.shown.grid(states, wish.grid.height, wish.grid.width)


def advance(llm: Any, i: int, expansions: Iterable[Expansion], scanned: Collection[int] = (), most: float = math.inf) -> None:
    """Runs those expansions through layer i that have not been, with what they stand behind before them. ``scanned``: layers that may be
    scanned; ``most``: tokens that run at once, one segment's at least."""
    waiting = [e for e in expansions if e.reached == i]
    waiting.sort(key=lambda e: (*_shape(e), id(e.wish.prefix)))
    for group in _batches(waiting, most):
        states = torch.stack([e.states for e in group])
        rope = llm.rotary_emb(states, position_ids=torch.stack([e.positions() for e in group]))
        parts = Parts(front(i, [(e.wish.prefix, e.wish.before) for e in group]))
        states = llm.layers[i](
            states, attention_mask=None, position_embeddings=rope, position_ids=None, past_key_values=parts, use_cache=True
        )
        for e, row, keys, values in zip(group, states, *parts.own, strict=True):
            if i in scanned:
                e.inputs[i] = e.states
            e.states, e.keys[i], e.values[i], e.reached = row, keys, values, i + 1


def _batches(waiting: list[Expansion], most: float) -> Iterator[list[Expansion]]:
    """Neighbours of one shape, which need no padding, ``most`` tokens at once."""
    for _, same in itertools.groupby(waiting, key=_shape):
        group = list(same)
        count = int(max(1, min(len(group), most // max(1, group[0].tokens))))
        yield from (group[start : start + count] for start in range(0, len(group), count))


def _shape(e: Expansion) -> tuple[int, int]:
    return length(e.wish.before), e.tokens  # what stands before goes first


class Keyed(Protocol):
    """Whatever has keys and values of a layer: a prefix, an expanded segment."""

    keys: Any
    values: Any


def front(i: int, rows: Rows[tuple[Keyed, Rows[Keyed]]]) -> list[Part]:
    """What stands in front of each row at layer i, (prefix, expanded segments); neighbours that have it in common have one part."""
    depth = 1 + max(len(chain) for _, chain in rows)
    out = []
    for place in range(depth):  # the prefixes, then the first segment of every chain, then the second
        start = 0
        for held, same in itertools.groupby((prefix, *chain)[place] if place <= len(chain) else None for prefix, chain in rows):
            stop = start + len(list(same))
            if held is not None:
                out.append(Part(start, stop, held.keys[i], held.values[i], place))
            start = stop
    return out
