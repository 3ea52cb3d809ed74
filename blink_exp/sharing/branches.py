"""Texts over shared prefixes: the layers, the scans and the decisions of many questions and many points at once.

A branch is one question's text under the decisions taken so far. At a selected layer it is scanned once for each scorer; each of its
points decides, and points that decide alike stay together. What forks copies the text's states, a few dozen tokens; everything in front
of the text is only pointed at. All branches run as one batch. Where there are more of them than memory allows, the layers behind are run
for one half and then for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.backbone.decode import Record
from blink_exp.methods.base import LayerPolicy, Method, Scan
from blink_exp.saliency import PatchGrid
from blink_exp.sequence import Decision, Drop, Expand, Keep, Segment
from blink_exp.sharing import scanning
from blink_exp.sharing.attending import Parts
from blink_exp.sharing.expansions import Chain, Wish, advance, ahead_of, front, length, make
from blink_exp.sharing.prefixes import Prefix
from blink_exp.shown import Shown


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


class Texts:
    """The texts of ``questions`` under ``methods`` (each without policy or with one that decides before layers).

    ``room``: tokens times layers whose keys and values may be there for texts, and for the segments expanded in front of them; ``always``:
    branches that run at once even where these need more; ``records``: {(question, point): decisions}, filled as layers run.
    """

    def __init__(
        self, llm: Any, questions: Rows[Question], methods: Rows[Method], grids: Rows[PatchGrid | None], room: float, always: int = 1
    ):
        self.llm, self.questions, self.methods, self.grids, self.room, self.always = llm, questions, methods, grids, room, always
        self.records: dict[tuple[int, int], list[Record]] = {(q, p): [] for q, asked in enumerate(questions) for p in asked.points}
        self.padded = len({len(question.text) for question in questions}) > 1
        self.scanned = {layer for method in methods for layer in layers_of(method)}

    def run(self, finish: Callable[[Leaves], None]) -> None:
        """Runs all layers; ``finish`` takes the leaves, in parts where they are too many."""
        order = sorted(range(len(self.questions)), key=lambda q: id(self.questions[q].prefix))
        branches = [Branch(q, (), self.questions[q].points) for q in order]
        text = Segment.from_rows([self.questions[q].text for q in order])
        self._run(0, branches, text, [], None, False, finish)

    def _run(
        self,
        first: int,
        branches: list[Branch],
        text: Segment,
        steps: list[Step],
        parent: Any,
        decided: bool,
        finish: Callable[[Leaves], None],
    ) -> None:
        """Layers from ``first`` on. ``parent``: see ``Step``, of the branches as they come in; ``decided``: whether layer ``first`` has
        been decided on already."""
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
            if len(branches) > self.always and self.needed(i, branches, text.length) > self.room:
                half = torch.arange(len(branches), device=text.states.device).chunk(2)
                for part in half:
                    own = [branches[r] for r in part.tolist()]
                    some = Segment(text.states[part], text.valid[part])
                    self._run(i, own, some, list(steps), part if parent is None else parent[part], True, finish)
                return
            advance(self.llm, i, {e for branch in branches for e in branch.chain}, self.scanned)
            rope = rope or self.llm.rotary_emb(text.states, position_ids=self.positions(branches, text.valid))
            text.states, keys, values = self._layer(i, branches, text, rope)
            steps.append(Step([b.chain for b in branches], keys, values, parent))
            parent = None
        finish(Leaves(branches, steps, self.llm.norm(text.states[:, -1]), text.valid))

    def needed(self, i: int, branches: Rows[Branch], text: int) -> int:
        """Tokens times layers that these branches come to hold if none of their segments is dropped from layer i on, and, for each, what
        the attention of one layer goes over."""
        depth = len(self.llm.layers)
        expanded = sum(e.tokens for e in {e for branch in branches for e in branch.chain})
        row = max(self.questions[b.question].prefix.tokens + length(b.chain) for b in branches) + text
        return len(branches) * (text * depth + row) + expanded * (depth - i)

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


def layers_of(method: Method) -> tuple[int, ...]:
    policy: LayerPolicy | None = method.policy
    return policy.layers if policy is not None else ()
