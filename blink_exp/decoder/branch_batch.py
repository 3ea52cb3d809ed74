"""A batch of branches on its way through the layers; it is halved where a fork does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from blink_exp.decoder.branches import Branch, LayerPass, Step, Text, steps_of_rows, text_positions
from blink_exp.decoder.layers import LastRun, LastRuns, SegmentRun, fronts_of, segment_runs
from blink_exp.decoder.segments import Front, Segment, shared_kv, starts
from blink_exp.decoder.shared_attention import Masks, SharedKVCache

if TYPE_CHECKING:
    from blink_exp.decoder.branch_decoder import BranchDecoder


@dataclass
class BranchBatch:
    """Branches that have run up to ``layer``; a ``Work``. ``decided``: whether the decisions before ``layer`` have been taken; ``parent``:
    see ``Step``; ``over``: whether its halves continue instead."""

    decoder: BranchDecoder
    layer: int
    branches: list[Branch]
    text: Text
    steps: list[Step] = field(default_factory=list)
    parent: torch.Tensor | None = None
    decided: bool = False
    over: bool = False
    last: LastRuns = field(default_factory=dict)  # of segments
    joint: dict[tuple[int | None, int], LastRun] = field(default_factory=dict)  # of the texts, while their fronts do not change

    def runs(self, i: int) -> Iterator[SegmentRun]:
        decoder, llm = self.decoder, self.decoder.llm
        if not self.decided:
            deciding = decoder.deciding(i, self.branches, drops=False)
            if deciding:
                first: dict[Segment, Front] = {b.front[0]: () for b in self.branches if b.front}  # not changed by decisions
                yield from segment_runs(llm, i, first, self.last, decoder.read, alone=decoder.alone, weights=decoder.weights)
                self.fork(*decoder.decide(i, self.branches, self.text, deciding))
        self.decided = False
        room = decoder.room
        if not decoder.alone:
            room -= decoder.held(self.branches, self.steps, self.text.length)
            if len(self.branches) > 1 and decoder.needed(i, self.branches, self.text.length) > room:
                self.halve(i)
                return
        inputs, dropping = self.text.states, decoder.deciding(i, self.branches, drops=True)
        joined = self.joined(i)
        if joined is None:
            most = max(0, room) / (4 * decoder.work)
            pending = fronts_of([b.front for b in self.branches])
            yield from segment_runs(llm, i, pending, self.last, decoder.read, most, decoder.alone, decoder.weights)
        run = self._run(i, joined)
        yield run
        fronts = [b.front for b in self.branches]
        keys, values = self._split(i, run, joined, read=decoder.ran is None or bool(dropping))
        self.steps.append(Step(fronts, keys, values, self.parent))
        self.parent = None
        ran = LayerPass(i, Text(inputs, self.text.valid), self.text, keys)
        forked = decoder.drop(self.branches, ran, dropping) if dropping else None
        if decoder.ran is not None:
            decoder.ran(i, fronts, run.cache, self.text.valid)
            self.steps.clear()
            for segment in {segment for front in fronts for segment in front}:
                for states_by_layer in (segment.keys, segment.values, segment.inputs):
                    states_by_layer.clear()
        if forked is not None:
            self.fork(*forked)

    def joined(self, i: int) -> int | None:
        """Index of the first segment of the fronts that runs in one piece with the text: one call reads the weights once.

        Only where rows share no segments. None where it is not possible: fronts of different lengths, padded texts."""
        if not self.decoder.alone or self.decoder.padded:
            return None
        patterns = {tuple((s.tokens, s.reached == i) for s in b.front) for b in self.branches}
        if len(patterns) > 1:
            return None
        (pattern,) = patterns
        first = next((n for n, (_, waits) in enumerate(pattern) if waits), len(pattern))
        return first if all(waits for _, waits in pattern[first:]) else None

    def _run(self, i: int, first: int | None) -> SegmentRun:
        """The run of the texts, together with the segments of their fronts from index ``first`` on; None: the texts alone."""
        decoder, text = self.decoder, self.text
        joined = [() if first is None else b.front[first:] for b in self.branches]
        ahead = [b.front[: len(b.front) - len(o)] for b, o in zip(self.branches, joined, strict=True)]
        last_run = self.joint.get((first, len(joined[0])))
        states = text.states
        if joined[0]:
            rows = [s.states for row in joined for s in row]
            if last_run is not None and last_run.rows[-1] is text.states and all(a is b for a, b in zip(last_run.rows, rows, strict=False)):
                states = last_run.states
            else:
                states = torch.cat([torch.stack([torch.cat([s.states for s in row]) for row in joined]), states], dim=1)
        if last_run is not None:
            rope, masks = last_run.rope, last_run.masks
        else:
            positions = text_positions(self.branches, text.valid)
            if joined[0]:
                pieces = [
                    torch.cat([s.positions(start) for s, start in zip(o, starts(b.front)[first:], strict=False)])
                    for o, b in zip(joined, self.branches, strict=True)
                ]
                positions = torch.cat([torch.stack(pieces), positions], dim=1)
            rope, masks = decoder.llm.rotary_emb(states, position_ids=positions), Masks()
        mask = text.mask if decoder.padded else None
        cache = SharedKVCache(shared_kv(i, ahead), mask=mask, alone=decoder.alone, weights=decoder.weights, masks=masks)
        return SegmentRun(states, rope, cache)

    def _split(self, i: int, run: SegmentRun, first: int | None, read: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits the outputs of a run into segments and texts. Returns the texts' keys and values. ``read``: whether the segments' keys and
        values are needed."""
        keys, values = run.cache.own
        before = run.states.shape[1] - self.text.length
        rows: list[torch.Tensor] = []
        if before:
            for b, branch in enumerate(self.branches):
                column = 0
                for segment in branch.front[first:]:
                    cut = slice(column, column + segment.tokens)
                    if read:
                        segment.advance(i, run.states[b, cut], keys[b, :, cut], values[b, :, cut], self.decoder.read)
                    else:
                        segment.pass_on(i, run.states[b, cut], self.decoder.read)
                    column += segment.tokens
                    rows.append(segment.states)
        self.text.states = run.states[:, before:]
        count = 0 if first is None else len(self.branches[0].front) - first
        self.joint = {(first, count): LastRun(run.rope, run.cache.masks, run.states, [*rows, self.text.states])}
        return keys[:, :, before:], values[:, :, before:]

    def fork(self, branches: list[Branch], rows: torch.Tensor | None) -> None:
        """Continues with ``branches``. ``rows``: the row of each one's parent; None: the rows do not change."""
        if any(a is not b for a, b in zip(branches, self.branches, strict=False)) or len(branches) != len(self.branches):
            self.joint.clear()
        self.branches = branches
        if rows is not None:
            self.text = self.text.rows(rows)
            self.parent = rows if self.parent is None else self.parent[rows]

    def halve(self, i: int) -> None:
        """Replaces this batch by two halves, which run one after the other."""
        self.over = True
        for half in torch.arange(len(self.branches), device=self.text.states.device).chunk(2)[::-1]:
            branches = [self.branches[r] for r in half.tolist()]
            rows = half if self.parent is None else self.parent[half]
            steps = steps_of_rows(self.steps, rows)
            self.decoder.waiting.append(BranchBatch(self.decoder, i, branches, self.text.rows(half), steps, rows, decided=True))
