"""Texts behind segments: the layers, the scans and the decisions of many questions and many points at once.

A branch is one question's text under the decisions taken so far. At a selected layer it is scanned once for each scorer; each of its
points decides, and points that decide alike stay together. What forks copies the text's states, a few dozen tokens; everything in front
of the text is only pointed at. All branches run as one batch. Where there are more of them than memory allows, the layers behind are run
for one half and then for the other.

One question under one method is the smallest case: that is how Hugging Face's forward and generate() run (``blink_exp.decoder.attach``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from blink_exp.core.base_view import BaseViewMap
from blink_exp.core.method import Method, Record, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Decision, Expand, State, transition
from blink_exp.decoder import scan
from blink_exp.decoder.layers import LastRun, LastRuns, SegmentRun, fronts_of, run_layers, segment_runs
from blink_exp.decoder.segments import ExpansionKey, Front, Segment, expand, length, retain, shared_kv, starts
from blink_exp.decoder.shared_attention import SharedKVCache


@dataclass(frozen=True)
class Question:
    """A text behind the images of a prompt.

    Args:
        blocks: a segment for each image, the text in front of it and its visual tokens.
        text: (tokens, hidden) embeddings of what stands behind the last image.
        sample: see ``Scan``.
        points: which methods answer it.
        shown: what the visual tokens of each image show, None where they are all of one view.
        visual: (visual, hidden) embeddings of all visual tokens, for policies that choose their raters by them.
    """

    blocks: Front
    text: torch.Tensor
    sample: str
    points: tuple[int, ...]
    shown: tuple[BaseViewMap | None, ...] = (None,)
    visual: torch.Tensor | None = None


@dataclass(frozen=True)
class Branch:
    """``question``: its number; ``blocks``: what is left of the images; ``expanded``: the segments behind each of them; ``points``: the
    methods that have decided so."""

    question: int
    blocks: Front
    expanded: tuple[Front, ...]
    points: tuple[int, ...]

    @functools.cached_property
    def front(self) -> Front:
        """All that stands in front of the text, in its order."""
        every = (s for block, parts in zip(self.blocks, self.expanded, strict=True) for s in (block, *parts))
        return tuple(segment for segment in every if segment.tokens)

    @property
    def visual(self) -> int:
        """Visual tokens that are left of all images."""
        return sum(block.visual for block in self.blocks)


@dataclass
class Text:
    """(rows, tokens, hidden) states, padded on the left; ``valid``: (rows, tokens), false on padding."""

    states: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, rows: Rows[torch.Tensor]) -> Text:
        tokens = max(map(len, rows))
        states = rows[0].new_zeros(len(rows), tokens, rows[0].shape[-1])
        valid = torch.zeros(len(rows), tokens, dtype=torch.bool, device=states.device)
        for i, row in enumerate(rows):
            states[i, tokens - len(row) :], valid[i, tokens - len(row) :] = row, True
        return cls(states, valid)

    def rows(self, index: torch.Tensor) -> Text:
        return Text(self.states[index], self.valid[index])

    @property
    def length(self) -> int:
        return self.states.shape[1]


@dataclass
class Step:
    """What a layer leaves behind for decoding, for the branches that ran through it. ``keys``, ``values``: (branches, kv_heads, text,
    head_dim) of the text; ``parent``: the row of each branch at the layer before, None where none forked."""

    fronts: list[Front]
    keys: torch.Tensor
    values: torch.Tensor
    parent: torch.Tensor | None


@dataclass
class FinalBranches:
    """Branches behind the last layer. ``text``: its states, not normed yet."""

    branches: list[Branch]
    steps: list[Step]
    text: Text


@dataclass
class _Part:
    """Branches that have run up to ``layer``; a ``Work``. ``decided``: whether it has been decided on already what stands in front there;
    ``parent``: see ``Step``; ``over``: whether its halves go on in its place."""

    decoder: BranchDecoder
    layer: int
    branches: list[Branch]
    text: Text
    steps: list[Step] = field(default_factory=list)
    parent: torch.Tensor | None = None
    decided: bool = False
    over: bool = False
    last: LastRuns = field(default_factory=dict)  # of segments
    joint: dict[tuple[int | None, int], LastRun] = field(default_factory=dict)  # of the texts, as long as nothing in front of them changes

    def runs(self, i: int) -> Iterator[SegmentRun]:
        decoder, llm = self.decoder, self.decoder.llm
        if not self.decided:
            deciding = decoder.deciding(i, self.branches, drops=False)
            if deciding:
                first: dict[Segment, Front] = {b.front[0]: () for b in self.branches if b.front}  # before what can change
                yield from segment_runs(llm, i, first, self.last, decoder.read, weights=decoder.weights)
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
            yield from segment_runs(llm, i, pending, self.last, decoder.read, most, decoder.weights)
        run = self._run(i, joined)
        yield run
        fronts = [b.front for b in self.branches]
        keys, values = self._split(i, run, joined, read=decoder.ran is None or bool(dropping))
        self.steps.append(Step(fronts, keys, values, self.parent))
        self.parent = None
        forked = decoder.drop(i, self.branches, Text(inputs, self.text.valid), keys, dropping) if dropping else None
        if decoder.ran is not None:
            decoder.ran(i, fronts, run.cache, self.text.valid)
            self.steps.clear()
            for segment in fronts_of(fronts):
                for held in (segment.keys, segment.values, segment.inputs):
                    held.clear()
        if forked is not None:
            self.fork(*forked)

    def joined(self, i: int) -> int | None:
        """From which segment of their fronts on rows run as one piece with their texts: where rows share nothing, all that has not run
        yet. A few dozen tokens of text alone read as many weights as thousands do. None where it cannot be: fronts of different lengths,
        padded texts."""
        if not self.decoder.alone or self.decoder.padded:
            return None
        patterns = {tuple((s.tokens, s.reached == i) for s in b.front) for b in self.branches}
        if len(patterns) > 1:
            return None
        (pattern,) = patterns
        first = next((n for n, (_, waits) in enumerate(pattern) if waits), len(pattern))
        return first if all(waits for _, waits in pattern[first:]) else None

    def _run(self, i: int, first: int | None) -> SegmentRun:
        """The texts, and with them the segments of their fronts from number ``first`` on; None: the texts alone."""
        decoder, text = self.decoder, self.text
        own = [() if first is None else b.front[first:] for b in self.branches]
        ahead = [b.front[: len(b.front) - len(o)] for b, o in zip(self.branches, own, strict=True)]
        known = self.joint.get((first, len(own[0])))
        states = text.states
        if own[0]:
            rows = [s.states for row in own for s in row]
            if known is not None and known.rows[-1] is text.states and all(a is b for a, b in zip(known.rows, rows, strict=False)):
                states = known.states
            else:
                states = torch.cat([torch.stack([torch.cat([s.states for s in row]) for row in own]), states], dim=1)
        if known is not None:
            rope = known.rope
        else:
            numbers = decoder.positions(self.branches, text.valid)
            if own[0]:
                pieces = [
                    torch.cat([s.positions(start) for s, start in zip(o, starts(b.front)[first:], strict=False)])
                    for o, b in zip(own, self.branches, strict=True)
                ]
                numbers = torch.cat([torch.stack(pieces), numbers], dim=1)
            rope = decoder.llm.rotary_emb(states, position_ids=numbers)
        mask = decoder.mask(text) if decoder.padded else None
        return SegmentRun(states, rope, SharedKVCache(shared_kv(i, ahead), mask=mask, weights=decoder.weights))

    def _split(self, i: int, run: SegmentRun, first: int | None, read: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes what a run has made apart, into segments and texts. Returns the texts' keys and values. ``read``: whether anybody reads
        those of the segments."""
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
        self.joint = {(first, count): LastRun(run.rope, run.states, [*rows, self.text.states])}
        return keys[:, :, before:], values[:, :, before:]

    def fork(self, branches: list[Branch], rows: torch.Tensor | None) -> None:
        """Goes on with ``branches``; ``rows``: which of the present ones each comes from, None: the same ones in the same order."""
        if any(a is not b for a, b in zip(branches, self.branches, strict=False)) or len(branches) != len(self.branches):
            self.joint.clear()
        self.branches = branches
        if rows is not None:
            self.text = self.text.rows(rows)
            self.parent = rows if self.parent is None else self.parent[rows]

    def halve(self, i: int) -> None:
        """Puts two halves in the place of this part, to be run one after the other."""
        self.over = True
        for half in torch.arange(len(self.branches), device=self.text.states.device).chunk(2)[::-1]:
            own = [self.branches[r] for r in half.tolist()]
            rows = half if self.parent is None else self.parent[half]
            steps = reached(self.steps, rows)
            self.decoder.waiting.append(_Part(self.decoder, i, own, self.text.rows(half), steps, rows, decided=True))


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
        questions: Rows[Question],
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
        self.alone, self.answer, self.weights, self.ran = alone, answer, weights, ran
        self.records: dict[tuple[int, int], list[Record]] = {(q, p): [] for q, asked in enumerate(questions) for p in asked.points}
        self.padded = len({len(question.text) for question in questions}) > 1
        self.read = frozenset(layer for method in methods for layer in read_layers(method))
        self.waiting: list[_Part] = []
        self._raters: dict[tuple[int, Any], torch.Tensor] = {}
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
        self.waiting = [_Part(self, 0, branches, Text.of([self.questions[q].text for q in order]))]
        del branches
        while self.waiting:  # one part to the end, then the next: nothing else refers to what a part alone holds, which goes with it
            part = self.waiting.pop()
            run_layers(self.llm, part, part.layer, len(self.llm.layers))
            if not part.over:
                finish(FinalBranches(part.branches, part.steps, part.text))

    def mask(self, text: Text) -> torch.Tensor:
        """(rows, tokens, tokens) bool: what each token of the texts sees of its own text. Padding sees itself, so that no row is empty."""
        whole = torch.ones(text.length, text.length, dtype=torch.bool, device=text.valid.device)
        return (whole.tril() & text.valid[:, None]) | torch.eye(text.length, dtype=torch.bool, device=text.valid.device)

    def positions(self, branches: Rows[Branch], valid: torch.Tensor) -> torch.Tensor:
        """(branches, text) position numbers of the texts' tokens."""
        first = torch.tensor([starts(b.front)[-1] for b in branches], device=valid.device)
        return first[:, None] + (valid.long().cumsum(1) - 1).clamp(min=0)

    # --- memory -----------------------------------------------------------------------------------------------------------------------

    def needed(self, i: int, branches: Rows[Branch], text: int) -> float:
        """What these branches come to hold, as ``room`` counts it, if none of their segments is dropped from layer i on: keys and values,
        states that may be read, and what one layer takes, its attention and its MLP."""
        depth, segments = len(self.llm.layers), made_here(branches)
        made = sum(e.tokens * (len(e.keys) + depth - max(i, e.reached) + self.state * len(e.inputs)) for e in segments)
        starting = sum(e.tokens for e in segments if e.reached == i)
        to_read = self.state * starting * sum(layer >= i for layer in self.read)
        row = max(length(b.front) for b in branches) + text
        running = min(starting * self.work, self.room / 4)  # see ``segment_runs``
        return len(branches) * (text * (depth + self.work) + row) + made + to_read + running

    def held(self, branches: Rows[Branch], steps: Rows[Step], text: int) -> float:
        """What is held beside ``needed`` of ``branches``: by parts that wait, and by texts' keys and values that parts have in common."""
        others = {e for part in self.waiting for e in made_here(part.branches)} - made_here(branches)
        segments = sum(e.tokens * (len(e.keys) + self.state * (1 + len(e.inputs))) for e in others)
        known = {id(step.keys): len(step.keys) for part in (steps, *(w.steps for w in self.waiting)) for step in part}
        texts = max(0, sum(known.values()) - len(branches) * len(steps)) + self.state * sum(len(w.branches) for w in self.waiting)
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
        """The branches behind the decisions before layer i, and which one each comes from; see ``_Part.fork``."""
        scans = self._scan_patches(i, branches, text, deciding)
        wanted: dict[tuple[int, int], State] = {}
        taken: list[tuple[tuple[int, int], Scan, Decision]] = []
        for (r, p), found in scans.items():
            policy: Any = self.methods[p].policy
            state: State[int, Segment | ExpansionKey] = State(tuple(range(b.visual) for b in branches[r].blocks), branches[r].expanded)
            for seen in found:
                decision = policy.decide(i, seen)
                key = functools.partial(self._key, i, branches[r], p, seen.image, decision)
                state = transition(state, decision, seen.image, expand=key)
                taken.append(((r, p), seen, decision))
            wanted[r, p] = state
        new = list(dict.fromkeys(part for state in wanted.values() for parts in state.expanded for part in parts if _is_key(part)))
        made = dict(zip(new, expand(new), strict=True))  # held by the branches alone: what none of them has is forgotten
        fronts = {
            pair: (branches[pair[0]].blocks, tuple(tuple(made.get(part, part) for part in parts) for parts in state.expanded))
            for pair, state in wanted.items()
        }
        for (r, p), seen, decision in taken:
            blocks, expanded = fronts[r, p]
            tokens = blocks[seen.image].visual + length(expanded[seen.image])
            self.records[branches[r].question, p].append(Record(branches[r].question, seen, decision, tokens))
        return self._forked(branches, fronts, text.states.device)

    def drop(
        self, i: int, branches: list[Branch], text: Text, keys: torch.Tensor, deciding: list[tuple[int, int]]
    ) -> tuple[list[Branch], torch.Tensor | None]:
        """The branches behind the decisions behind layer i, which ``text`` has gone into and run to ``keys``."""
        made: dict[tuple, Front] = {}
        fronts: dict[tuple[int, int], tuple[Front, tuple[Front, ...]]] = {}
        for (r, p), seen in self._scan_tokens(i, branches, text, keys, deciding).items():
            policy: Any = self.methods[p].policy
            decision = policy.decide(i, seen)
            blocks = branches[r].blocks
            key = (blocks, decision, policy.inherit_positions)
            if key not in made:
                made[key] = retain(blocks, decision, i + 1, policy.inherit_positions)
            fronts[r, p] = made[key], branches[r].expanded
            tokens = sum(block.visual for block in made[key])
            seen = replace(seen, distances=None)  # a record must not keep the states alive
            self.records[branches[r].question, p].append(Record(branches[r].question, seen, decision, tokens))
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
        shown = question.shown[image]
        start = starts(branch.front)[branch.front.index(block) + 1] - block.visual
        recalls = shown is not None and shown.dropped_embeddings is not None
        return ExpansionKey(
            block, start, i, decision.region, grid, policy.interpolate, policy.inherit_positions, module, before, shown, recalls
        )

    # --- scans ------------------------------------------------------------------------------------------------------------------------

    def _prompt(self, text: Text, branches: list[Branch], rows: list[int]) -> tuple[Text, torch.Tensor]:
        """The texts of some branches without what was generated already, and their position numbers."""
        end = text.length - self.answer
        index = torch.tensor(rows, device=text.states.device)
        part = Text(text.states[index, :end], text.valid[index, :end])
        return part, self.positions([branches[r] for r in rows], part.valid)

    def _scan_patches(
        self, i: int, branches: list[Branch], text: Text, deciding: list[tuple[int, int]]
    ) -> dict[tuple[int, int], list[Scan]]:
        """What each point of each branch sees of each image; points that look alike share one scan."""
        alike: dict[tuple, list[tuple[int, int]]] = {}
        for r, p in deciding:
            policy: Any = self.methods[p].policy
            alike.setdefault((policy.scorer, policy.scan_expanded, self.grids[p]), []).append((r, p))
        out: dict[tuple[int, int], list[Scan]] = {}
        for (scorer, scan_expanded, grid), pairs in alike.items():
            rows = list(dict.fromkeys(r for r, _ in pairs))
            seen: dict[tuple[int, int], dict[str, Any]] = {}
            if scorer is not None:
                part, numbers = self._prompt(text, branches, rows)
                looked = [scan.Looked(branches[r].blocks, branches[r].expanded, self.questions[branches[r].question].shown) for r in rows]
                found = scan.scan_patches(self.llm, i, looked, part.states, part.valid, numbers, scorer, grid, scan_expanded)
                seen = {(rows[n], k): words for (n, k), words in found.items()}
            for r, p in pairs:
                sample = self.questions[branches[r].question].sample
                out[r, p] = [
                    Scan(i, sample, k, bool(branches[r].expanded[k]), **seen.get((r, k), {}))
                    for k, block in enumerate(branches[r].blocks)
                    if block.visual
                ]
        return {pair: out[pair] for pair in deciding}

    def _scan_tokens(
        self, i: int, branches: list[Branch], text: Text, keys: torch.Tensor, deciding: list[tuple[int, int]]
    ) -> dict[tuple[int, int], Scan]:
        """What each point of each branch sees behind layer i; points that have the same raters share one scan."""
        alike: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
        chosen: dict[tuple[int, bytes], torch.Tensor] = {}
        for r, p in deciding:
            raters = self._chosen_raters(branches[r].question, p, text.length - self.answer)
            known = (r, raters.cpu().numpy().tobytes())
            chosen[known] = raters
            alike.setdefault(known, []).append((r, p))
        rows = [r for r, _ in alike]
        part, numbers = self._prompt(text, branches, rows)
        index = torch.tensor(rows, device=keys.device)
        own = keys[index][:, :, : part.length]
        looked = [scan.Looked(branches[r].blocks, branches[r].expanded, ()) for r in rows]
        raters = torch.stack([chosen[known] for known in alike])
        scores = scan.scan_tokens(self.llm, i, looked, part.states, part.valid, numbers, own, raters)
        out: dict[tuple[int, int], Scan] = {}
        for (r, _), pairs, found in zip(alike, alike.values(), scores, strict=True):
            question = self.questions[branches[r].question]
            visual = torch.cat([block.visual_at(i + 1) for block in branches[r].blocks])
            seen = Scan(
                i,
                question.sample,
                0,
                False,
                visual=sum(block.visual for block in question.blocks),
                token_scores=found,
                distances=functools.partial(scan.distances, visual),
            )
            out |= dict.fromkeys(pairs, seen)
        return {pair: out[pair] for pair in deciding}

    def _chosen_raters(self, q: int, p: int, prompt: int) -> torch.Tensor:
        """(prompt,) bool of the left-padded text: the tokens whose attention a point's policy reads."""
        policy: Any = self.methods[p].policy
        if (q, policy) not in self._raters:
            question = self.questions[q]
            assert question.visual is not None
            own = question.text[: len(question.text) - self.answer]
            chosen = torch.zeros(prompt, dtype=torch.bool, device=own.device)
            chosen[prompt - len(own) :] = policy.raters(question.visual, own)
            self._raters[q, policy] = chosen
        return self._raters[q, policy]


def _is_key(part: Segment | ExpansionKey) -> bool:
    return isinstance(part, ExpansionKey)


def made_here(branches: Iterable[Branch]) -> set[Segment]:
    """All that stands in front of their texts and that nobody holds but they."""
    return {s for branch in branches for s in branch.front if not s.stored}


def reached(steps: Rows[Step], rows: torch.Tensor) -> list[Step]:
    """``steps`` of the branches alone that come from ``rows`` of the last one; the fronts of the others are left out, so that nothing of
    them is held. Their keys and values stay, as one tensor has them all."""
    out: list[Step] = []
    for step in reversed(steps):
        own = set(rows.tolist())
        fronts = [front if r in own else () for r, front in enumerate(step.fronts)]
        out.append(Step(fronts, step.keys, step.values, step.parent))
        rows = rows if step.parent is None else step.parent[rows]
    return out[::-1]


def read_layers(method: Method) -> tuple[int, ...]:
    """Layers at whose input a method may read the states of what stands in front of the text."""
    policy = method.policy
    if policy is None:
        return ()
    return tuple(layer + 1 for layer in policy.layers) if policy.drops else tuple(policy.layers)


def decoded_layers(method: Method, depth: int) -> int:
    """How many layers the prompt's own segments run through: those that drop visual tokens replace them behind the first cut."""
    policy = method.policy
    return policy.layers[0] + 1 if policy is not None and policy.drops and policy.layers else depth
