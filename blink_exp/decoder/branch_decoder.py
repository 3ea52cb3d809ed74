"""Runs the texts of many questions under many methods through the layers, with their scans and decisions.

At a selected layer each branch is scanned once for each scorer. Its points decide; points that decide alike stay in one branch. A fork
copies the states of the text, a few dozen tokens; segments in front of the text are shared by reference. All branches run as one batch.
Where memory does not suffice for all branches, each half of them runs through the remaining layers separately.

The smallest case is one question under one method: Hugging Face's forward and generate() (``blink_exp.decoder.attach``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import torch

from blink_exp.core.method import Method, Record, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Decision, Expand, State, transition
from blink_exp.decoder.branches import (
    Branch,
    FinalBranches,
    LayerPass,
    MemoryEstimate,
    QuestionInputs,
    Step,
    Text,
    forked,
    read_layers,
    steps_of_rows,
    text_positions,
)
from blink_exp.decoder.closeups import expand_closeups
from blink_exp.decoder.layers import LastRun, LastRuns, SegmentRun, fronts_of, run_layers, segment_runs
from blink_exp.decoder.scan import PatchScanner
from blink_exp.decoder.segments import ExpansionKey, Front, Segment, expand, length, retain, shared_kv, starts
from blink_exp.decoder.shared_attention import Masks, SharedKVCache
from blink_exp.decoder.token_scans import TokenScanner


class BranchDecoder:
    """The texts of ``questions`` under ``methods``.

    Args:
        room: memory limit for the texts and the expanded segments, in units of one token's keys and values in one layer. A single branch
            runs even where it needs more.
        alone: whether rows share no segments, so that each may run in one piece.
        answer: generated tokens at the end of each text, where all is recomputed without a cache; scans read the last prompt token.
        weights: whether attention modules return their weights, as the eager kernel does.
        depth: layers that run; None: all.
        ran: called behind each layer with its index, the fronts, the cache and the valid mask; the layer's keys and values are then freed.
        records: {(question, point): decisions}, filled as layers run.
    """

    def __init__(
        self,
        llm: Any,
        questions: Rows[QuestionInputs],
        methods: Rows[Method],
        grids: Rows[PatchGrid | None],
        room: float = float("inf"),
        *,
        alone: bool = False,
        answer: int = 0,
        weights: bool = False,
        depth: int | None = None,
        ran: Callable[[int, list[Front], SharedKVCache, torch.Tensor], None] | None = None,
    ):
        self.llm, self.questions, self.methods, self.grids, self.room = llm, questions, methods, grids, room
        self.alone, self.answer, self.weights, self.ran = alone, answer, weights, ran
        self.depth = len(llm.layers) if depth is None else depth
        self.records: dict[tuple[int, int], list[Record]] = {(q, p): [] for q, question in enumerate(questions) for p in question.points}
        self.padded = False  # whether texts are
        self.read = frozenset(layer for method in methods for layer in read_layers(method))
        self.waiting: list[BranchBatch] = []
        self.patch_scanner = PatchScanner(llm, questions, methods, grids, answer)
        self.memory = MemoryEstimate.of(llm, self.read)

    @functools.cached_property
    def token_scanner(self) -> TokenScanner:
        """Only of methods that drop tokens between layers."""
        return TokenScanner(self.llm, self.questions, self.methods, self.answer)

    def run(self, finish: Callable[[FinalBranches], None]) -> None:
        """Runs all layers. ``finish`` is called with the branches behind the last layer, once for each batch of them."""
        first: dict[int, int] = {}  # questions with one prefix are neighbours; otherwise input order
        for q, question in enumerate(self.questions):
            first.setdefault(id(question.blocks[0]) if question.blocks else -q, q)
        order = sorted(range(len(self.questions)), key=lambda q: first[id(b[0]) if (b := self.questions[q].blocks) else -q])
        branches = [Branch(q, b.blocks, ((),) * len(b.blocks), b.points) for q in order for b in [self.questions[q]]]
        text = Text.of([self.questions[q].text for q in order], None if self.alone else len(order) if self.stay_together(branches) else 1)
        self.padded = not bool(text.valid.all())
        self.waiting = [BranchBatch(self, 0, branches, text)]
        del branches
        while self.waiting:  # one batch at a time through all layers, so that its memory is freed before the next
            part = self.waiting.pop()
            run_layers(self.llm, part, part.layer, self.depth)
            if not part.over:
                finish(FinalBranches(part.branches, part.steps, part.text))

    def stay_together(self, branches: Rows[Branch]) -> bool:
        """Whether branches never fork and fit in memory, so that they are one batch through all layers."""
        text = max(len(self.questions[branch.question].text) for branch in branches)
        return all(m.policy is None for m in self.methods) and self.memory.needed(0, branches, text, self.room) <= self.room

    # --- decisions --------------------------------------------------------------------------------------------------------------------

    def deciding(self, i: int, branches: Rows[Branch], drops: bool) -> list[tuple[int, int]]:
        """(row, point) pairs that decide at layer i: before it, or behind it for policies that drop visual tokens (``drops``)."""
        points = {p for p, m in enumerate(self.methods) if m.policy is not None and m.policy.drops == drops and i in m.policy.layers}
        if not points:
            return []
        return [(r, p) for r, branch in enumerate(branches) for p in branch.points if p in points and branch.visual]

    def decide(
        self, i: int, branches: list[Branch], text: Text, deciding: list[tuple[int, int]]
    ) -> tuple[list[Branch], torch.Tensor | None]:
        """Takes the decisions before layer i. Returns the new branches and the row of each one's parent; see ``BranchBatch.fork``."""
        scans = self.patch_scanner.scan(i, branches, text, deciding)
        states: dict[tuple[int, int], State[int, Any]] = {}
        decisions: list[tuple[tuple[int, int], Scan, Decision]] = []
        for (r, p), image_scans in scans.items():
            policy: Any = self.methods[p].policy
            state: State[int, Segment | ExpansionKey] = State(tuple(range(b.visual) for b in branches[r].blocks), branches[r].expanded)
            for image_scan in image_scans:
                decision = policy.decide(i, image_scan)
                key = functools.partial(self._key, i, branches[r], p, image_scan.image, decision)
                state = transition(state, decision, image_scan.image, expand=key)
                decisions.append(((r, p), image_scan, decision))
            states[r, p] = state
        new = list(dict.fromkeys(part for state in states.values() for parts in state.expanded for part in parts if _is_key(part)))
        segment_of = self._expanded(new)  # referenced by the branches only, so unused ones are freed
        fronts = {
            pair: (branches[pair[0]].blocks, tuple(tuple(segment_of.get(part, part) for part in parts) for parts in state.expanded))
            for pair, state in states.items()
        }
        for (r, p), image_scan, decision in decisions:
            blocks, expanded = fronts[r, p]
            tokens = blocks[image_scan.image].visual + length(expanded[image_scan.image])
            self.records[branches[r].question, p].append(Record(branches[r].question, image_scan, decision, tokens))
        return forked(branches, fronts, text.states.device)

    def drop(self, branches: list[Branch], ran: LayerPass, deciding: list[tuple[int, int]]) -> tuple[list[Branch], torch.Tensor | None]:
        """Takes the decisions behind a layer; returns as ``decide``."""
        i = ran.layer
        retained: dict[tuple[Any, ...], Front] = {}
        fronts: dict[tuple[int, int], tuple[Front, tuple[Front, ...]]] = {}
        for (r, p), row_scan in self.token_scanner.scan(branches, ran, deciding).items():
            policy: Any = self.methods[p].policy
            decision = policy.decide(i, row_scan)
            blocks = branches[r].blocks
            inherit = self.methods[p].inherits_positions
            key = (blocks, decision, inherit)
            if key not in retained:
                retained[key] = retain(blocks, decision, i + 1, inherit)
            fronts[r, p] = retained[key], branches[r].expanded
            tokens = sum(block.visual for block in retained[key])
            self.records[branches[r].question, p].append(Record(branches[r].question, row_scan.recorded(), decision, tokens))
        return forked(branches, fronts, ran.keys.device)

    def _key(self, i: int, branch: Branch, point: int, image: int, decision: Expand, before: Front) -> ExpansionKey:
        """Key of the expanded segment that a point's decision needs."""
        method, question, grid, block = self.methods[point], self.questions[branch.question], self.grids[point], branch.blocks[image]
        policy: Any = method.policy
        assert grid is not None
        module = method.amplifiers[str(i)] if decision.amplify and method.amplifiers is not None else None
        base_map = question.base_maps[image]
        start = starts(branch.front)[branch.front.index(block)] + block.tokens - block.visual
        restore_dropped = base_map is not None and base_map.dropped_embeddings is not None
        regions = question.regions[image] if method.closeup and decision.amplify else None
        return ExpansionKey(
            *(block, start, i, decision.region, grid, policy.interpolate, policy.inherit_positions, module, before),
            *(base_map, restore_dropped, regions),
        )

    def _expanded(self, keys: list[ExpansionKey]) -> dict[Any, Segment]:
        """{key: its expanded segment}, for keys of one layer."""
        closeups = [key for key in keys if key.regions is not None]
        enlarged = [key for key in keys if key.regions is None]
        out: dict[Any, Segment] = dict(zip(enlarged, expand(enlarged), strict=True))
        return out | dict(zip(closeups, expand_closeups(closeups, self.read) if closeups else (), strict=True))


def _is_key(part: Segment | ExpansionKey) -> bool:
    return isinstance(part, ExpansionKey)


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
            waiting = [(batch.branches, batch.steps) for batch in decoder.waiting]
            room -= decoder.memory.held(self.branches, self.steps, self.text.length, waiting)
            if len(self.branches) > 1 and decoder.memory.needed(i, self.branches, self.text.length, decoder.room) > room:
                self.halve(i)
                return
        inputs, dropping = self.text.states, decoder.deciding(i, self.branches, drops=True)
        joined = self.joined(i)
        if joined is None:
            most = max(0, room) / (4 * decoder.memory.work)
            pending = fronts_of([b.front for b in self.branches])
            yield from segment_runs(llm, i, pending, self.last, decoder.read, most, decoder.alone, decoder.weights)
        run = self._run(i, joined)
        yield run
        fronts = [b.front for b in self.branches]
        keys, values = self._split(i, run, joined, read=decoder.ran is None or bool(dropping))
        self.steps.append(Step(fronts, keys, values, self.parent))
        self.parent = None
        ran = LayerPass(i, Text(inputs, self.text.valid), self.text, keys)
        dropped = decoder.drop(self.branches, ran, dropping) if dropping else None
        if decoder.ran is not None:
            decoder.ran(i, fronts, run.cache, self.text.valid)
            self.steps.clear()
            for segment in {segment for front in fronts for segment in front}:
                for states_by_layer in (segment.keys, segment.values, segment.inputs):
                    states_by_layer.clear()
        if dropped is not None:
            self.fork(*dropped)

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
