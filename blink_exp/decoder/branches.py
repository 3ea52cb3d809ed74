"""Branches: the texts of questions under the decisions taken so far, and what layers leave behind for them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blink_exp.core.method import Method
from blink_exp.core.views import BaseViewMap
from blink_exp.decoder.segments import Front, Segment, length, starts
from blink_exp.decoder.tiles import whole

if TYPE_CHECKING:  # for type checkers only: this file is read where there is no image library (bench gpu)
    from blink_exp.backbone.canvas import ImageRegions


@dataclass(frozen=True)
class QuestionInputs:
    """A text behind the images of a prompt.

    Args:
        blocks: one segment for each image: the text before it and its visual tokens.
        text: (tokens, hidden) embeddings of the text behind the last image.
        sample: see ``Scan``.
        points: indices of the methods that answer it.
        base_maps: for each image, the cells of the base view that its visual tokens show; None: all of one view.
        regions: of each image, for methods that look at it again (``Method.closeup``); None: not at hand.
        visual: (visual, hidden) embeddings of all visual tokens, for policies that choose their raters by them.
    """

    blocks: Front
    text: torch.Tensor
    sample: str
    points: tuple[int, ...]
    base_maps: tuple[BaseViewMap | None, ...] = (None,)
    visual: torch.Tensor | None = None
    regions: tuple[ImageRegions | None, ...] = (None,)


@dataclass(frozen=True)
class Branch:
    """A question's text under one sequence of decisions.

    ``question``: its index; ``blocks``: the images' remaining tokens; ``expanded``: expanded segments of each image; ``points``: indices of
    the methods that took these decisions.
    """

    question: int
    blocks: Front
    expanded: tuple[Front, ...]
    points: tuple[int, ...]

    @functools.cached_property
    def front(self) -> Front:
        """All segments in front of the text, in order."""
        every = (s for block, parts in zip(self.blocks, self.expanded, strict=True) for s in (block, *parts))
        return tuple(segment for segment in every if segment.tokens)

    @property
    def visual(self) -> int:
        """Remaining visual tokens of all images."""
        return sum(block.visual for block in self.blocks)

    def visual_end(self, image: int) -> int:
        """Tokens up to and including the last visual token of an image."""
        parts = zip(self.blocks[:image], self.expanded, strict=False)
        return sum(block.tokens + length(expanded) for block, expanded in parts) + self.blocks[image].tokens

    @property
    def visual_places(self) -> list[int]:
        """Places in the front of all visual tokens."""
        ends = [self.visual_end(k) for k in range(len(self.blocks))]
        return [position for end, block in zip(ends, self.blocks, strict=True) for position in range(end - block.visual, end)]


@dataclass
class Text:
    """(rows, tokens, hidden) states, padded on the left; ``valid``: (rows, tokens), false on padding."""

    states: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, rows: Rows[torch.Tensor], together: int | None = None) -> Text:
        """``together``: how many of ``rows`` stay one batch through all layers, for which they are filled up to whole tiles; None: they are
        not."""
        tokens = max(map(len, rows))
        if together is not None:
            tokens = whole(tokens, together, rows[0])
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

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """(rows, tokens, tokens) bool: causal, within each text. Padding sees itself, so that no row is empty."""
        causal = torch.ones(self.length, self.length, dtype=torch.bool, device=self.valid.device).tril()
        return (causal & self.valid[:, None]) | torch.eye(self.length, dtype=torch.bool, device=self.valid.device)


@dataclass(frozen=True)
class LayerPass:
    """A layer that the texts have just run through. ``before``, ``behind``: the texts at its input and output; ``keys``: (branches,
    kv_heads, text, head_dim) of the texts in it."""

    layer: int
    before: Text
    behind: Text
    keys: torch.Tensor


@dataclass
class Step:
    """What decoding needs of one layer, for the branches that ran through it. ``keys``, ``values``: (branches, kv_heads, text,
    head_dim) of the text; ``parent``: each branch's row at the layer before; None where none forked."""

    fronts: list[Front]
    keys: torch.Tensor
    values: torch.Tensor
    parent: torch.Tensor | None


@dataclass
class FinalBranches:
    """Branches behind the last layer. ``text``: its states before the final norm."""

    branches: list[Branch]
    steps: list[Step]
    text: Text


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that branches take, in units of one token's keys and values in one layer.

    ``depth``: layers of the LLM; ``read``: those at whose input methods read states of segments; ``state``: of a token's hidden state;
    ``work``: of a token's activations in a layer, whose peak is inside the MLP.
    """

    depth: int
    read: frozenset[int]
    state: float
    work: float

    @classmethod
    def of(cls, llm: Any, read: frozenset[int]) -> MemoryEstimate:
        config = llm.config
        pair = 2 * config.num_key_value_heads * llm.layers[0].self_attn.head_dim  # numbers of a token's keys and values in a layer
        work = (3 * config.intermediate_size + 4 * config.hidden_size) / pair
        return cls(len(llm.layers), read, config.hidden_size / pair, work)

    def needed(self, i: int, branches: Rows[Branch], text: int, room: float) -> float:
        """Peak memory of branches with texts of ``text`` tokens if no segment is dropped from layer i on: keys and values, states that may
        be read, and the activations of one layer. ``room``: the memory limit."""
        segments = unstored_segments(branches)
        stored = sum(e.tokens * (len(e.keys) + self.depth - max(i, e.reached) + self.state * len(e.inputs)) for e in segments)
        starting = sum(e.tokens for e in segments if e.reached == i)
        to_read = self.state * starting * sum(layer >= i for layer in self.read)
        row = max(length(b.front) for b in branches) + text
        running = min(starting * self.work, room / 4)  # see ``segment_runs``
        return float(len(branches) * (text * (self.depth + self.work) + row) + stored + to_read + running)

    def held(self, branches: Rows[Branch], steps: Rows[Step], text: int, waiting: Rows[tuple[Rows[Branch], Rows[Step]]]) -> float:
        """Memory in use beside ``needed`` of ``branches``: by batches that wait, and by keys and values of texts that batches share."""
        others = {e for batch, _ in waiting for e in unstored_segments(batch)} - unstored_segments(branches)
        segments = sum(e.tokens * (len(e.keys) + self.state * (1 + len(e.inputs))) for e in others)
        rows_by_tensor = {id(step.keys): len(step.keys) for part in (steps, *(s for _, s in waiting)) for step in part}
        texts = max(0, sum(rows_by_tensor.values()) - len(branches) * len(steps)) + self.state * sum(len(batch) for batch, _ in waiting)
        return float(segments + texts * text)


def forked(
    branches: list[Branch], fronts: dict[tuple[int, int], tuple[Front, tuple[Front, ...]]], device: torch.device
) -> tuple[list[Branch], torch.Tensor | None]:
    """Branches by what their points decided, and the row of each one's parent; None: the rows do not change.

    ``fronts``: {(row, point): the images' segments, the expanded segments of each image} of points that decided; others stay as they are.
    """
    out: list[tuple[Branch, int]] = []
    for r, branch in enumerate(branches):
        groups: dict[tuple[Front, tuple[Front, ...]], list[int]] = {}
        for p in branch.points:
            groups.setdefault(fronts.get((r, p), (branch.blocks, branch.expanded)), []).append(p)
        if list(groups) == [(branch.blocks, branch.expanded)]:
            out.append((branch, r))  # as it was
        else:
            out += [(Branch(branch.question, *front, tuple(points)), r) for front, points in groups.items()]
    # Rows with a common front, or a common beginning of it, are neighbours, so that they share one ``Part``.
    rank: dict[Any, int] = {}
    for branch, r in out:
        for key in branch.front or (("row", r),):
            rank.setdefault(key, len(rank))
    out.sort(key=lambda pair: ([rank[s] for s in pair[0].front] or [rank["row", pair[1]]], pair[0].question))
    rows = [r for _, r in out]
    unchanged = rows == list(range(len(branches)))
    return [branch for branch, _ in out], None if unchanged else torch.tensor(rows, device=device)


def text_positions(branches: Rows[Branch], valid: torch.Tensor) -> torch.Tensor:
    """(branches, text) position numbers of the texts' tokens."""
    first = torch.tensor([starts(b.front)[-1] for b in branches], device=valid.device)
    return first[:, None] + (valid.long().cumsum(1) - 1).clamp(min=0)


def unstored_segments(branches: Iterable[Branch]) -> set[Segment]:
    """Segments in front of the texts that only these branches hold."""
    return {s for branch in branches for s in branch.front if not s.stored}


def steps_of_rows(steps: Rows[Step], rows: torch.Tensor) -> list[Step]:
    """``steps`` restricted to the ancestors of ``rows`` of the last one. Fronts of other rows are left out so that they can be freed; keys
    and values stay, as one tensor holds all rows."""
    out: list[Step] = []
    for step in reversed(steps):
        kept_rows = set(rows.tolist())
        fronts = [front if r in kept_rows else () for r, front in enumerate(step.fronts)]
        out.append(Step(fronts, step.keys, step.values, step.parent))
        rows = rows if step.parent is None else step.parent[rows]
    return out[::-1]


def read_layers(method: Method) -> tuple[int, ...]:
    """Layers at whose input a method may read the states of segments."""
    policy = method.policy
    if policy is None:
        return ()
    return tuple(layer + 1 for layer in policy.layers) if policy.drops else tuple(policy.layers)


def decoded_layers(method: Method, depth: int) -> int:
    """How many layers the prefix runs through under a method: a policy that drops visual tokens replaces it behind its first layer."""
    policy = method.policy
    return policy.layers[0] + 1 if policy is not None and policy.drops and policy.layers else depth
