"""Branches: the texts of questions under the decisions taken so far, and what layers leave behind for them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    def of(cls, rows: Rows[torch.Tensor], whole_tiles: bool = False) -> Text:
        tokens = max(map(len, rows))
        if whole_tiles:
            tokens = whole(tokens, rows[0])
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
