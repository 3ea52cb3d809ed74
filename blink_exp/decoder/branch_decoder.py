"""Texts behind segments: the layers, the scans and the decisions of many questions and many points at once.

A branch is one question's text under the decisions taken so far. At a selected layer it is scanned once for each scorer; each of its
points decides, and points that decide alike stay together. What forks copies the text's states, a few dozen tokens; everything in front
of the text is only pointed at. All branches run as one batch. Where there are more of them than memory allows, the layers behind are run
for one half and then for the other.

One question under one method is the smallest case: that is how Hugging Face's forward and generate() run (``blink_exp.decoder.attach``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import Any

import torch

from blink_exp.core.method import Method, Record, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Decision, Expand, State, transition
from blink_exp.decoder.branch_batch import BranchBatch
from blink_exp.decoder.branch_scans import BranchScanner
from blink_exp.decoder.branches import Branch, FinalBranches, QuestionInputs, Step, Text, read_layers, unstored_segments
from blink_exp.decoder.layers import run_layers
from blink_exp.decoder.segments import ExpansionKey, Front, Segment, expand, length, retain, starts
from blink_exp.decoder.shared_attention import SharedKVCache


class BranchDecoder:
    """The texts of ``questions`` under ``methods``.

    Args:
        room: what may be held for texts, and for the segments in front of them that are made here, in bytes of a token's keys and values in
            a layer; one branch runs even where it needs more.
        alone: whether rows share nothing, so that each may run as one piece.
        answer: tokens at the end of each text that were generated already, when everything is recomputed without a cache: scans look from
            the last prompt token, not from them.
        weights: whether attention modules return weights, as the eager kernel does.
        ran: is told of every layer that has run, what it ran behind, and its keys and values; then nothing of it is kept here.
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
        ran: Callable[[int, list[Front], SharedKVCache, torch.Tensor], None] | None = None,
    ):
        self.llm, self.questions, self.methods, self.grids, self.room = llm, questions, methods, grids, room
        self.alone, self.weights, self.ran = alone, weights, ran
        self.records: dict[tuple[int, int], list[Record]] = {(q, p): [] for q, question in enumerate(questions) for p in question.points}
        self.padded = len({len(question.text) for question in questions}) > 1
        self.read = frozenset(layer for method in methods for layer in read_layers(method))
        self.waiting: list[BranchBatch] = []
        self.scanner = BranchScanner(llm, questions, methods, grids, answer)
        config, width = llm.config, llm.layers[0].self_attn.head_dim
        pair = 2 * config.num_key_value_heads * width  # numbers of a token's keys and values in a layer
        self.state = config.hidden_size / pair
        self.work = (3 * config.intermediate_size + 4 * config.hidden_size) / pair  # of a token inside a layer: an MLP's widest moment

    def run(self, finish: Callable[[FinalBranches], None]) -> None:
        """Runs all layers; ``finish`` takes the branches behind the last one, in parts where they are too many."""
        first: dict[int, int] = {}  # questions of one prefix side by side, else in their order
        for q, question in enumerate(self.questions):
            first.setdefault(id(question.blocks[0]) if question.blocks else -q, q)
        order = sorted(range(len(self.questions)), key=lambda q: first[id(b[0]) if (b := self.questions[q].blocks) else -q])
        branches = [Branch(q, b.blocks, ((),) * len(b.blocks), b.points) for q in order for b in [self.questions[q]]]
        self.waiting = [BranchBatch(self, 0, branches, Text.of([self.questions[q].text for q in order]))]
        del branches
        while self.waiting:  # one part to the end, then the next: nothing else refers to what a part alone holds, which goes with it
            part = self.waiting.pop()
            run_layers(self.llm, part, part.layer, len(self.llm.layers))
            if not part.over:
                finish(FinalBranches(part.branches, part.steps, part.text))

    # --- memory -----------------------------------------------------------------------------------------------------------------------

    def needed(self, i: int, branches: Rows[Branch], text: int) -> float:
        """What these branches come to hold, as ``room`` counts it, if none of their segments is dropped from layer i on: keys and values,
        states that may be read, and what one layer takes, its attention and its MLP."""
        depth, segments = len(self.llm.layers), unstored_segments(branches)
        stored = sum(e.tokens * (len(e.keys) + depth - max(i, e.reached) + self.state * len(e.inputs)) for e in segments)
        starting = sum(e.tokens for e in segments if e.reached == i)
        to_read = self.state * starting * sum(layer >= i for layer in self.read)
        row = max(length(b.front) for b in branches) + text
        running = min(starting * self.work, self.room / 4)  # see ``segment_runs``
        return len(branches) * (text * (depth + self.work) + row) + stored + to_read + running

    def held(self, branches: Rows[Branch], steps: Rows[Step], text: int) -> float:
        """What is held beside ``needed`` of ``branches``: by parts that wait, and by texts' keys and values that parts have in common."""
        others = {e for part in self.waiting for e in unstored_segments(part.branches)} - unstored_segments(branches)
        segments = sum(e.tokens * (len(e.keys) + self.state * (1 + len(e.inputs))) for e in others)
        rows_by_tensor = {id(step.keys): len(step.keys) for part in (steps, *(w.steps for w in self.waiting)) for step in part}
        texts = max(0, sum(rows_by_tensor.values()) - len(branches) * len(steps)) + self.state * sum(len(w.branches) for w in self.waiting)
        return segments + texts * text

    # --- decisions --------------------------------------------------------------------------------------------------------------------

    def deciding(self, i: int, branches: Rows[Branch], drops: bool) -> list[tuple[int, int]]:
        """(row, point) pairs that decide at layer i: before it, or, those that drop visual tokens, behind it."""
        points = {p for p, m in enumerate(self.methods) if m.policy is not None and m.policy.drops == drops and i in m.policy.layers}
        if not points:
            return []
        return [(r, p) for r, branch in enumerate(branches) for p in branch.points if p in points and branch.visual]

    def decide(
        self, i: int, branches: list[Branch], text: Text, deciding: list[tuple[int, int]]
    ) -> tuple[list[Branch], torch.Tensor | None]:
        """The branches behind the decisions before layer i, and which one each comes from; see ``BranchBatch.fork``."""
        scans = self.scanner.patches(i, branches, text, deciding)
        states: dict[tuple[int, int], State] = {}
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
        segment_of = dict(zip(new, expand(new), strict=True))  # held by the branches alone: what none of them has is forgotten
        fronts = {
            pair: (branches[pair[0]].blocks, tuple(tuple(segment_of.get(part, part) for part in parts) for parts in state.expanded))
            for pair, state in states.items()
        }
        for (r, p), image_scan, decision in decisions:
            blocks, expanded = fronts[r, p]
            tokens = blocks[image_scan.image].visual + length(expanded[image_scan.image])
            self.records[branches[r].question, p].append(Record(branches[r].question, image_scan, decision, tokens))
        return self._forked(branches, fronts, text.states.device)

    def drop(
        self, i: int, branches: list[Branch], text: Text, keys: torch.Tensor, deciding: list[tuple[int, int]]
    ) -> tuple[list[Branch], torch.Tensor | None]:
        """The branches behind the decisions behind layer i, which ``text`` has gone into and run to ``keys``."""
        retained: dict[tuple, Front] = {}
        fronts: dict[tuple[int, int], tuple[Front, tuple[Front, ...]]] = {}
        for (r, p), row_scan in self.scanner.tokens(i, branches, text, keys, deciding).items():
            policy: Any = self.methods[p].policy
            decision = policy.decide(i, row_scan)
            blocks = branches[r].blocks
            key = (blocks, decision, policy.inherit_positions)
            if key not in retained:
                retained[key] = retain(blocks, decision, i + 1, policy.inherit_positions)
            fronts[r, p] = retained[key], branches[r].expanded
            tokens = sum(block.visual for block in retained[key])
            row_scan = replace(row_scan, distances=None)  # a record must not keep the states alive
            self.records[branches[r].question, p].append(Record(branches[r].question, row_scan, decision, tokens))
        return self._forked(branches, fronts, text.states.device)

    def _forked(
        self, branches: list[Branch], fronts: dict[tuple[int, int], tuple[Front, tuple[Front, ...]]], device: torch.device
    ) -> tuple[list[Branch], torch.Tensor | None]:
        out: list[tuple[Branch, int]] = []
        for r, branch in enumerate(branches):
            groups: dict[tuple[Front, tuple[Front, ...]], list[int]] = {}
            for p in branch.points:
                groups.setdefault(fronts.get((r, p), (branch.blocks, branch.expanded)), []).append(p)
            if list(groups) == [(branch.blocks, branch.expanded)]:
                out.append((branch, r))  # as it was
            else:
                out += [(Branch(branch.question, *front, tuple(points)), r) for front, points in groups.items()]
        # Rows that have their front, or the beginning of it, in common stand side by side and are one part.
        rank: dict[Any, int] = {}
        for branch, r in out:
            for key in branch.front or (("row", r),):
                rank.setdefault(key, len(rank))
        out.sort(key=lambda pair: ([rank[s] for s in pair[0].front] or [rank["row", pair[1]]], pair[0].question))
        rows = [r for _, r in out]
        unchanged = rows == list(range(len(branches)))
        return [branch for branch, _ in out], None if unchanged else torch.tensor(rows, device=device)

    def _key(self, i: int, branch: Branch, point: int, image: int, decision: Expand, before: Front) -> ExpansionKey:
        """What an expansion that a point decides on depends on."""
        method, question, grid, block = self.methods[point], self.questions[branch.question], self.grids[point], branch.blocks[image]
        policy: Any = method.policy
        assert grid is not None
        module = method.amplifiers[str(i)] if decision.amplify and method.amplifiers is not None else None
        base_map = question.base_maps[image]
        start = starts(branch.front)[branch.front.index(block) + 1] - block.visual
        restore_dropped = base_map is not None and base_map.dropped_embeddings is not None
        return ExpansionKey(
            block, start, i, decision.region, grid, policy.interpolate, policy.inherit_positions, module, before, base_map, restore_dropped
        )


def _is_key(part: Segment | ExpansionKey) -> bool:
    return isinstance(part, ExpansionKey)
