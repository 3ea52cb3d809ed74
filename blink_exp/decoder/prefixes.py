"""Prefixes: `system | visual` of an image, run through the layers once for all questions and decisions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from blink_exp.core.base_view import BaseViewMap
from blink_exp.core.views import OriginalPositions
from blink_exp.decoder.layers import NEAR, LastRuns, SegmentRun, run_layers, segment_runs
from blink_exp.decoder.segments import Segment, numbered


@dataclass(frozen=True)
class PrefixInputs:
    """Inputs of a prefix. ``ids``: (before,) token ids before the image; ``features``: (visual, hidden); ``base_map``: cells
    of the base view that these show; None: all of one view; ``positions``: their numbers; None: consecutive."""

    ids: torch.Tensor
    features: torch.Tensor
    base_map: BaseViewMap | None = None
    positions: OriginalPositions | None = None

    def digest(self) -> str:
        """A hash of the content: points that keep the same tokens share one prefix."""
        cells = self.ids if self.base_map is None else self.base_map.cells
        numbers = self.ids[:0] if self.positions is None else self.positions.numbers
        length = None if self.positions is None else self.positions.length
        digest = hashlib.sha256(repr((self.features.dtype, len(self.ids), len(cells), self.base_map is None, length)).encode())
        for part in (self.ids, cells, numbers, self.features):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(eq=False)
class Prefix(Segment):
    """The first segment of a sequence, cached for other questions. It owns its memory, one allocation for each kind of tensor, so that
    evicting it leaves no gaps.

    ``depth``: layers that it runs through; ``read``: layers whose inputs are kept.
    """

    depth: int = 0
    read: tuple[int, ...] = ()
    held: list[torch.Tensor] = field(default_factory=list)

    stored = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read = tuple(sorted(layer for layer in self.read if layer <= self.depth))
        self.held.append(self.states.new_empty(len(self.read), *self.states.shape))
        self._keep(0)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.held)

    def _keep(self, layer: int) -> None:
        if layer in self.read:
            buffer = self.held[0][self.read.index(layer)]
            buffer.copy_(self.states)
            self.inputs[layer] = buffer

    def advance(self, i: int, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, read: Collection[int]) -> None:
        if i == 0:
            self.held.append(keys.new_empty(2, self.depth, *keys.shape))
        buffer = self.held[1]
        buffer[0, i], buffer[1, i] = keys, values
        self.keys[i], self.values[i], self.states, self.reached = buffer[0, i], buffer[1, i], states, i + 1
        self._keep(i + 1)
        if self.reached == self.depth:
            self.states = self.inputs.get(self.depth, states.new_empty(0))  # read only by policies that drop tokens


@dataclass
class PrefixBatch:
    """Prefixes that run through the layers as one batch; a ``Work``."""

    llm: Any
    prefixes: Rows[Segment]
    read: Collection[int] = ()
    last: LastRuns = field(default_factory=dict)

    over = False

    def runs(self, i: int) -> Iterator[SegmentRun]:
        return segment_runs(self.llm, i, dict.fromkeys(self.prefixes, ()), self.last, self.read)


def run_prefixes(
    llm: Any,
    embeds: Rows[torch.Tensor],
    visual: Rows[int],
    layers: Collection[int],
    depths: Rows[int],
    at_once: int,
    positions: Rows[OriginalPositions | None] | None = None,
) -> list[Prefix]:
    """Prefixes of (tokens, hidden) ``embeds``, which end with ``visual`` visual tokens. ``layers``: whose inputs are kept; ``depths``:
    layers that each runs through; ``at_once``: prefixes of a batch; ``positions``: of the visual tokens, see ``PrefixInputs``."""
    out: dict[int, Prefix] = {}
    order = sorted(range(len(embeds)), key=lambda r: (depths[r], len(embeds[r])))
    for depth, same in itertools.groupby(order, key=lambda r: depths[r]):
        rows = list(same)
        while rows:  # of near lengths, as many as fit
            first = len(embeds[rows[0]])
            batch = [r for r in rows[:at_once] if len(embeds[r]) <= NEAR * first]
            rows = rows[len(batch) :]
            prefixes = {}
            for r in batch:
                numbers, takes = numbered(len(embeds[r]) - visual[r], positions[r] if positions is not None else None, embeds[r].device)
                prefixes[r] = Prefix(embeds[r], visual[r], numbers, takes, depth=depth, read=tuple(layers))
            run_layers(llm, PrefixBatch(llm, list(prefixes.values())), 0, depth)
            out |= prefixes
    return [out[r] for r in range(len(embeds))]


T = TypeVar("T")


def chunks(items: Rows[T], size: int) -> Iterator[Rows[T]]:
    """``items`` in order, at most ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
