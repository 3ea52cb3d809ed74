"""The loop over the decoder's layers, for everything that runs through them: prefixes, prompts, generated tokens, training features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from blink_exp.decoder.segments import Front, Segment, shared_kv, starts
from blink_exp.decoder.shared_attention import Masks, SharedKVCache, shared, stacked
from blink_exp.decoder.tiles import independent, whole

NEAR = 1.15  # segments whose lengths are within this factor are padded to one batch

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
                    past_key_values=run.cache,
                    use_cache=True,
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

    Segments of similar lengths are one batch, padded on the right, where causal attention never sees the padding. ``last``: runs of the
    layer before, replaced by this layer's; ``read``: see ``Segment.advance``; ``most``: tokens of a batch, at least one segment.
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
    tokens = whole(max(map(len, rows)), rows[0])
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
