"""The loop over the decoder's layers, for everything that runs through them: prefixes, prompts, generated tokens, training features.

A prefix, `system | visual` of an image, runs once for all questions and decisions.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from blink_exp.backbone.cache_name import CACHE
from blink_exp.core.views import BaseViewMap, OriginalPositions
from blink_exp.decoder.segments import Front, Segment, numbered, shared_kv, starts
from blink_exp.decoder.shared_attention import Masks, SharedKVCache, shared, stacked
from blink_exp.decoder.tiles import independent, whole

NEAR = 1.15  # segments whose lengths are within this factor are padded to one batch, except on a CPU (``tiles``)

Rope = tuple[torch.Tensor, torch.Tensor]


@dataclass
class SegmentRun:
    """One call of a layer: (rows, tokens, hidden) ``states``, its input and then its output; RoPE's cos and sin; the cache of the keys in
    front, which receives the rows' own."""

    states: torch.Tensor
    rope: Rope
    cache: SharedKVCache


class Work(Protocol):
    """Tokens that run through the layers."""

    def runs(self, i: int) -> Iterator[SegmentRun]:
        """The calls of layer i, in order. Each has been run when the iterator resumes, so that decisions can be taken in between."""
        ...

    @property
    def over(self) -> bool:
        """Whether to stop before the next layer."""
        ...


def run_layers(llm: Any, work: Work, first: int, last: int) -> None:
    """Runs ``work`` through layers ``first`` to ``last`` - 1 of a decoder, whose layer modules are not modified."""
    with shared(llm):
        for i in range(first, last):
            for run in work.runs(i):
                run.states = llm.layers[i](
                    run.states,
                    attention_mask=None,
                    position_embeddings=run.rope,
                    position_ids=None,
                    use_cache=True,
                    **{CACHE: run.cache},
                )
            if work.over:
                return


@dataclass
class LastRun:
    """Reusable tensors of segments that ran together: RoPE, masks, and the batched states, valid while ``rows``, its parts, are
    unchanged."""

    rope: Rope
    masks: Masks
    states: torch.Tensor
    rows: list[torch.Tensor]


LastRuns = dict[tuple[Segment, ...], LastRun]


def segment_runs(
    llm: Any,
    i: int,
    pending: dict[Segment, Front],
    last: LastRuns,
    read: Collection[int] = (),
    most: float = math.inf,
    alone: bool = False,
    weights: bool = False,
) -> Iterator[SegmentRun]:
    """Runs of the ``pending`` segments {segment: its front} that have reached layer i, those in front first.

    Segments of similar lengths, on a CPU of equal ones, are one batch, padded on the right: causal attention never sees that.
    ``last``: runs of the layer before, replaced by this layer's; ``read``: see ``Segment.advance``; ``most``: tokens of a batch, at least
    one segment.
    """
    before = dict(last)
    last.clear()
    order = {segment: number for number, segment in enumerate(dict.fromkeys(front[0] for front in pending.values() if front))}
    waiting = [(s, front) for s, front in pending.items() if s.reached == i and s.tokens]
    waiting.sort(key=lambda pair: (len(pair[1]), pair[0].tokens, order[pair[1][0]] if pair[1] else 0))
    for group in _batches(waiting, most):
        segments, fronts = [s for s, _ in group], [front for _, front in group]
        last_run = before.pop(tuple(segments), None)
        if last_run is not None and all(s.states is row for s, row in zip(segments, last_run.rows, strict=True)):
            states = last_run.states
        else:
            states = _padded([s.states for s in segments])
        if last_run is None:
            positions = _padded([s.positions(starts(front)[-1]) for s, front in group])
            rope, masks = llm.rotary_emb(states, position_ids=positions), Masks()
        else:
            rope, masks = last_run.rope, last_run.masks
        run = SegmentRun(states, rope, SharedKVCache(shared_kv(i, fronts), alone=alone, weights=weights, masks=masks))
        del states, last_run
        yield run
        for segment, row, keys, values in zip(segments, run.states, *run.cache.own, strict=True):
            n = segment.tokens
            if n < run.states.shape[1]:
                row, keys, values = row[:n], keys[:, :n], values[:, :n]
            segment.advance(i, row, keys, values, read)
        last[tuple(segments)] = LastRun(rope, masks, run.states, [s.states for s in segments])


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    """(rows, tokens, ...), zeros on the right."""
    tokens = whole(max(map(len, rows)), len(rows), rows[0])
    if len(rows) == 1 and len(rows[0]) == tokens:
        return rows[0][None]
    if all(len(row) == tokens and row.dtype == rows[0].dtype for row in rows):
        return stacked(rows)
    dtype = next((row.dtype for row in rows if row.is_floating_point()), rows[0].dtype)  # position numbers may be fractional
    return torch.stack([torch.cat([row.to(dtype), row.new_zeros(tokens - len(row), *row.shape[1:], dtype=dtype)]) for row in rows])


def _batches(waiting: Rows[tuple[Segment, Front]], most: float) -> Iterator[list[tuple[Segment, Front]]]:
    """Batches of segments with equally long fronts and similar lengths, equal ones where rows are kept ``independent``; ``most`` tokens
    each."""
    for _, same in itertools.groupby(waiting, key=lambda pair: len(pair[1])):
        group: list[tuple[Segment, Front]] = []
        for pair in same:  # from the shortest to the longest
            tokens = pair[0].tokens
            near = 1 if independent(pair[0].states) else NEAR
            if group and (tokens > near * group[0][0].tokens or (len(group) + 1) * tokens > most):
                yield group
                group = []
            group.append(pair)
        if group:
            yield group


def fronts_of(chains: Rows[Front]) -> dict[Segment, Front]:
    """{segment: the segments in front of it} for all segments of some fronts."""
    return {segment: chain[:n] for chain in chains for n, segment in enumerate(chain)}


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
