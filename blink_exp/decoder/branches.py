"""Texts over shared prefixes: the layers, the scans and the decisions of many questions and many points at once.

A branch is one question's text under the decisions taken so far. At a selected layer it is scanned once for each scorer; each of its
points decides, and points that decide alike stay together. What forks copies the text's states, a few dozen tokens; everything in front
of the text is only pointed at. All branches run as one batch. Where there are more of them than memory allows, the layers behind are run
for one half and then for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.core.base_view import Shown
from blink_exp.core.method import LayerPolicy, Method, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Decision, Drop, Expand, Keep, Segment
from blink_exp.decoder import scanning
from blink_exp.decoder.decode import Record
from blink_exp.decoder.expansions import Chain, Expansion, Wish, advance, ahead_of, front, length, make
from blink_exp.decoder.prefixes import Prefix
from blink_exp.decoder.shared_attention import Parts


@dataclass(frozen=True)
class Question:
    """A text behind a prefix. ``text``: (tokens, hidden) embeddings of what stands behind the image; ``sample``: see ``Scan``; ``shown``:
    see ``Opening``; ``points``: which methods answer it."""

    prefix: Prefix
    text: torch.Tensor
    sample: str
    points: tuple[int, ...]
    shown: Shown | None = None


@dataclass(frozen=True)
class Branch:
    """``question``: its number; ``chain``: the expanded segments in front of its text; ``points``: the methods that have decided so."""

    question: int
    chain: Chain
    points: tuple[int, ...]


@dataclass
class Step:
    """What a layer leaves behind for decoding, for the branches that ran through it. ``keys``, ``values``: (branches, kv_heads, text,
    head_dim) of the text; ``parent``: the row of each branch at the layer before, None where none forked."""

    chains: list[Chain]
    keys: torch.Tensor
    values: torch.Tensor
    parent: torch.Tensor | None


@dataclass
class Leaves:
    """Branches behind the last layer. ``hidden``: (branches, hidden) normed state of the last prompt token; ``valid``: (branches, text)."""

    branches: list[Branch]
    steps: list[Step]
    hidden: torch.Tensor
    valid: torch.Tensor


@dataclass
class _Waiting:
    """Branches that have run up to ``layer``. ``decided``: whether it has been decided on already; ``parent``: see ``Step``."""

    layer: int
    branches: list[Branch]
    text: Segment
    steps: list[Step]
    parent: torch.Tensor | None = None
    decided: bool = False


class Texts:
    """The texts of ``questions`` under ``methods`` (each without policy or with one that decides before layers).

    ``room``: what may be held for texts, and for the segments expanded in front of them, in bytes of a token's keys and values in a layer;
    one branch runs even where it needs more. ``records``: {(question, point): decisions}, filled as layers run.
    """

    def __init__(self, llm: Any, questions: Rows[Question], methods: Rows[Method], grids: Rows[PatchGrid | None], room: float):
        self.llm, self.questions, self.methods, self.grids, self.room = llm, questions, methods, grids, room
        self.records: dict[tuple[int, int], list[Record]] = {(q, p): [] for q, asked in enumerate(questions) for p in asked.points}
        self.padded = len({len(question.text) for question in questions}) > 1
        self.scanned = {layer for method in methods for layer in layers_of(method)}
        config, width = llm.config, llm.layers[0].self_attn.head_dim
        pair = 2 * config.num_key_value_heads * width  # numbers of a token's keys and values in a layer
        self.state = config.hidden_size / pair
        self.work = (3 * config.intermediate_size + 4 * config.hidden_size) / pair  # of a token inside a layer: an MLP's widest moment

    def run(self, finish: Callable[[Leaves], None]) -> None:
        """Runs all layers; ``finish`` takes the leaves, in parts where they are too many."""
        order = sorted(range(len(self.questions)), key=lambda q: id(self.questions[q].prefix))
        text = Segment.from_rows([self.questions[q].text for q in order])
        waiting = [_Waiting(0, [Branch(q, (), self.questions[q].points) for q in order], text, [])]
        while waiting:  # one part to the end, then the next: nothing else refers to what a part alone holds, which goes with it
            self._run(waiting, finish)

    def _run(self, waiting: list[_Waiting], finish: Callable[[Leaves], None]) -> None:
        """Runs the last of the parts that wait to the last layer, or puts its two halves in its place."""
        part = waiting.pop()
        branches, text, steps, parent, decided = part.branches, part.text, part.steps, part.parent, part.decided
        first = part.layer
        del part
        rope: Any = None  # of the texts; made anew when something was put in front of one
        for i in range(first, len(self.llm.layers)):
            if not decided:
                before = branches
                branches, rows = self._decide(i, branches, text)
                rope = rope if branches is before else None
                if rows is not None:
                    text = Segment(text.states[rows], text.valid[rows])
                    parent = rows if parent is None else parent[rows]
            decided = False
            room = self.room - self._held(branches, steps, text.length, waiting)
            if len(branches) > 1 and self.needed(i, branches, text.length) > room:
                for half in torch.arange(len(branches), device=text.states.device).chunk(2)[::-1]:
                    own = [branches[r] for r in half.tolist()]
                    rows = half if parent is None else parent[half]
                    some = Segment(text.states[half], text.valid[half])
                    waiting.append(_Waiting(i, own, some, reached(steps, rows), rows, decided=True))
                return
            advance(self.llm, i, segments_of(branches), self.scanned, max(0, room) / (4 * self.work))
            rope = rope or self.llm.rotary_emb(text.states, position_ids=self.positions(branches, text.valid))
            text.states, keys, values = self._layer(i, branches, text, rope)
            steps.append(Step([b.chain for b in branches], keys, values, parent))
            parent = None
        finish(Leaves(branches, steps, self.llm.norm(text.states[:, -1]), text.valid))

    def needed(self, i: int, branches: Rows[Branch], text: int) -> float:
        """What these branches come to hold, as ``room`` counts it, if none of their segments is dropped from layer i on: keys and values,
        states that may be scanned, and what one layer takes, its attention and its MLP."""
        depth, segments = len(self.llm.layers), segments_of(branches)
        expanded = sum(e.tokens * (len(e.keys) + depth - max(i, e.reached) + self.state * len(e.inputs)) for e in segments)
        starting = sum(e.tokens for e in segments if e.reached == i)
        to_scan = self.state * starting * sum(layer >= i for layer in self.scanned)
        row = max(self.questions[b.question].prefix.tokens + length(b.chain) for b in branches) + text
        running = min(starting * self.work, self.room / 4)  # see ``advance``
        return len(branches) * (text * (depth + self.work) + row) + expanded + to_scan + running

    def _held(self, branches: Rows[Branch], steps: Rows[Step], text: int, waiting: Rows[_Waiting]) -> float:
        """What is held beside ``needed`` of ``branches``: by parts that wait, and by texts' keys and values that parts have in common."""
        others = {e for part in waiting for e in segments_of(part.branches)} - segments_of(branches)
        segments = sum(e.tokens * (len(e.keys) + self.state * (1 + len(e.inputs))) for e in others)
        known = {id(step.keys): len(step.keys) for part in (steps, *(w.steps for w in waiting)) for step in part}
        texts = max(0, sum(known.values()) - len(branches) * len(steps)) + self.state * sum(len(w.branches) for w in waiting)
        return segments + texts * text

    def _layer(self, i: int, branches: list[Branch], text: Segment, rope: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The texts' states behind layer i, and their keys and values."""
        causal = torch.ones(text.length, text.length, dtype=torch.bool, device=text.states.device).tril()
        mask = causal & text.valid[:, None] if self.padded else None
        parts = Parts(front(i, [(self.questions[b.question].prefix, b.chain) for b in branches]), mask=mask)
        states = self.llm.layers[i](
            text.states, attention_mask=None, position_embeddings=rope, position_ids=None, past_key_values=parts, use_cache=True
        )
        return states, *parts.own

    def positions(self, branches: Rows[Branch], valid: torch.Tensor) -> torch.Tensor:
        """(branches, text) numbers of the texts' tokens."""
        starts = [ahead_of(self.questions[b.question].prefix, b.chain) for b in branches]
        return torch.tensor(starts, device=valid.device)[:, None] + (valid.long().cumsum(1) - 1).clamp(min=0)

    def _decide(self, i: int, branches: list[Branch], text: Segment) -> tuple[list[Branch], torch.Tensor | None]:
        """The branches behind the decisions before layer i, and which one each comes from; None where none forked or changed places."""
        looking = [(r, p) for r, branch in enumerate(branches) for p in branch.points if i in layers_of(self.methods[p])]
        if not looking:
            return branches, None
        scans = self._scans(i, branches, text, looking)
        wanted: dict[tuple[int, int], Chain | Wish] = {}
        for (r, p), scan in scans.items():
            policy = self.methods[p].policy
            assert policy is not None
            decision = policy.decide(i, scan)
            wanted[r, p] = self._wish(i, branches[r], p, decision)
            branch = branches[r]
            self.records[branch.question, p].append(Record(branch.question, scan, decision, 0))
        new = list(dict.fromkeys(w for w in wanted.values() if isinstance(w, Wish)))
        made = dict(zip(new, make(new), strict=True))  # held by the branches alone: what none of them has is forgotten
        found: list[tuple[Branch, int]] = []
        for r, branch in enumerate(branches):
            groups: dict[Chain, list[int]] = {}
            for p in branch.points:
                wish = wanted.get((r, p), branch.chain)
                chain = (*wish.before, made[wish]) if isinstance(wish, Wish) else wish
                groups.setdefault(chain, []).append(p)
                if (r, p) in wanted:
                    self._note_tokens(branch.question, p, chain)
            found += [(Branch(branch.question, chain, tuple(points)), r) for chain, points in groups.items()]
        # Rows of one prefix and one chain side by side are filled by one copy.
        found.sort(key=lambda pair: (id(self.questions[pair[0].question].prefix), [id(e) for e in pair[0].chain], pair[0].question))
        rows = [r for _, r in found]
        unchanged = rows == list(range(len(branches)))
        return [branch for branch, _ in found], None if unchanged else torch.tensor(rows, device=text.states.device)

    def _note_tokens(self, question: int, point: int, chain: Chain) -> None:
        kept = self.records[question, point]
        last = kept[-1]
        kept[-1] = Record(last.row, last.scan, last.decision, self.questions[question].prefix.visual + length(chain))

    def _wish(self, i: int, branch: Branch, point: int, decision: Decision) -> Chain | Wish:
        """What a decision makes of a branch's chain: the same chain, none, or one that ends with an expansion yet to be made."""
        if isinstance(decision, Drop):
            return ()
        if isinstance(decision, Keep) or (isinstance(decision, Expand) and branch.chain and decision.on_reexpand == "keep"):
            return branch.chain
        assert isinstance(decision, Expand)
        method, question, grid = self.methods[point], self.questions[branch.question], self.grids[point]
        policy: Any = method.policy
        assert grid is not None
        module = method.amplifiers[str(i)] if decision.amplify and method.amplifiers is not None else None
        behind = branch.chain if decision.on_reexpand == "append" else ()
        return Wish(
            question.prefix,
            i,
            decision.region,
            grid,
            policy.interpolate,
            policy.inherit_positions,
            module,
            behind,
            question.shown,
            question.shown is not None and question.shown.aside is not None,
        )

    def _scans(self, i: int, branches: list[Branch], text: Segment, looking: list[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """What each point of each branch sees; points that look alike share one scan."""
        alike: dict[tuple, list[tuple[int, int]]] = {}
        for r, p in looking:
            policy: Any = self.methods[p].policy
            alike.setdefault((policy.scorer, policy.scan_expanded, self.grids[p]), []).append((r, p))
        out: dict[tuple[int, int], Scan] = {}
        for (scorer, expanded, grid), pairs in alike.items():
            rows = list(dict.fromkeys(r for r, _ in pairs))
            chosen = [branches[r] for r in rows]
            asked = [scanning.Asked(self.questions[b.question].prefix, b.chain, self.questions[b.question].shown) for b in chosen]
            index = torch.tensor(rows, device=text.states.device)
            seen: list[dict[str, Any]] = [{} for _ in rows]
            if scorer is not None:
                part = Segment(text.states[index], text.valid[index])
                seen = scanning.scan(self.llm, i, asked, part, self.positions(chosen, part.valid), scorer, grid, expanded)
            place = {r: n for n, r in enumerate(rows)}
            for r, p in pairs:
                sample = self.questions[branches[r].question].sample
                out[r, p] = Scan(i, sample, 0, bool(branches[r].chain), **seen[place[r]])
        return {pair: out[pair] for pair in looking}


def segments_of(branches: Iterable[Branch]) -> set[Expansion]:
    """All that stands in front of their texts."""
    return {e for branch in branches for e in branch.chain}


def reached(steps: Rows[Step], rows: torch.Tensor) -> list[Step]:
    """``steps`` of the branches alone that come from ``rows`` of the last one; the chains of the others are left out, so that nothing of
    them is held. Their keys and values stay, as one tensor has them all."""
    out: list[Step] = []
    for step in reversed(steps):
        own = set(rows.tolist())
        chains = [chain if r in own else () for r, chain in enumerate(step.chains)]
        out.append(Step(chains, step.keys, step.values, step.parent))
        rows = rows if step.parent is None else step.parent[rows]
    return out[::-1]


def layers_of(method: Method) -> tuple[int, ...]:
    policy: LayerPolicy | None = method.policy
    return policy.layers if policy is not None else ()
