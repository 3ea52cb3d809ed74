"""The token sequence that a decoder layer sees, as segments, and the surgery that methods ask for.

    block 0 (system | visual) | expanded 0 | [block 1 (text | visual) | expanded 1 | ...] | text

Attention is causal, so putting a segment in front of the text or taking it away changes nothing that stands before it. Rows of a
batch differ in text length and in what was decided for them; a segment is therefore padded on the left and carries which of its
tokens are real. Tensors only: nothing here knows a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch


# What a policy can decide for one image at one layer. Small and hashable: decisions are recorded, compared and replayed.
@dataclass(frozen=True)
class Keep:
    """Leave the sequence as it is."""


@dataclass(frozen=True)
class Drop:
    """Remove the expanded segment, if there is one (Blink, Sec. 3.2.2)."""


@dataclass(frozen=True)
class Expand:
    """Put an enlarged copy of patch ``region`` between visual and text tokens (Blink, Sec. 3.2.1).

    ``on_reexpand``: what becomes of an expanded segment that is already there: replace, keep (this decision has no effect) or
    append (both stay). ``amplify``: whether the layer's TokenSR module refines the copy.
    """

    region: int
    on_reexpand: str = "replace"
    amplify: bool = True


Decision = Keep | Drop | Expand


@dataclass
class Segment:
    """(batch, length, hidden) states, padded on the left; ``valid``: (batch, length), false on padding."""

    states: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def from_rows(cls, rows: Rows[torch.Tensor]) -> Segment:
        """Pads (length_i, hidden) rows on the left to one segment."""
        length = max(len(row) for row in rows)
        states = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
        valid = torch.zeros(len(rows), length, dtype=torch.bool, device=states.device)
        for i, row in enumerate(rows):
            if len(row):
                states[i, length - len(row) :] = row
                valid[i, length - len(row) :] = True
        return cls(states, valid)

    def rows(self) -> list[torch.Tensor]:
        """The real tokens of each row, (length_i, hidden)."""
        return [states[valid] for states, valid in zip(self.states, self.valid, strict=True)]

    @property
    def length(self) -> int:
        return self.states.shape[1]


@dataclass
class Layout:
    """Where the tokens of a prompt go: ``index[k]`` is (batch, length_k), positions in the prompt of segment k's tokens, -1 on
    padding. Segments are the block of each image (the text before it and its visual tokens) and, last, the text.
    ``visual``: visual tokens per image; ``present``: (batch, images), false where a row has fewer images than others."""

    index: list[torch.Tensor]
    visual: int
    present: torch.Tensor

    @classmethod
    def of(cls, image_mask: torch.Tensor, attention_mask: torch.Tensor | None, visual: int) -> Layout:
        """``image_mask``: (batch, tokens), true on visual tokens; ``attention_mask``: the same shape, false on padding."""
        real = torch.ones_like(image_mask) if attention_mask is None else attention_mask.bool()
        blocks: list[list[torch.Tensor]] = []
        for mask, kept in zip(image_mask, real, strict=True):
            tokens = kept.nonzero()[:, 0]
            ends = mask.nonzero()[:, 0][visual - 1 :: visual]  # the last visual token of each image
            assert int(mask.sum()) == visual * len(ends), "the number of image tokens is no multiple of an image's"
            edges = [-1, *ends.tolist()]
            row = [tokens[(tokens > a) & (tokens <= b)] for a, b in itertools.pairwise(edges)]
            blocks.append([*row, tokens[tokens > edges[-1]]])
        images = max(len(row) for row in blocks) - 1
        present = torch.tensor([[i < len(row) - 1 for i in range(images)] for row in blocks], dtype=torch.bool).view(len(blocks), images)
        empty = blocks[0][0][:0]
        padded = [row[:-1] + [empty] * (images + 1 - len(row)) + row[-1:] for row in blocks]
        index = []
        for k in range(images + 1):
            length = max(len(row[k]) for row in padded)
            out = torch.full((len(padded), length), -1, device=image_mask.device)
            for b, row in enumerate(padded):
                if len(row[k]):
                    out[b, length - len(row[k]) :] = row[k]
            index.append(out)
        return cls(index, visual, present.to(image_mask.device))

    def split(self, embeds: torch.Tensor) -> list[Segment]:
        """(batch, tokens, hidden) into segments."""
        return [Segment(_take(embeds, index.clamp(min=0)), index >= 0) for index in self.index]

    def join(self, segments: list[Segment], tokens: int) -> torch.Tensor:
        """The inverse of ``split``: (batch, tokens, hidden), zeros on padding. Expanded tokens have no place in it."""
        first = segments[0].states
        out = first.new_zeros(first.shape[0], tokens + 1, first.shape[-1])  # padding goes to one column too many, cut off below
        for index, segment in zip(self.index, segments, strict=True):
            where = torch.where(index >= 0, index, tokens)
            out.scatter_(1, where[..., None].expand_as(segment.states), segment.states)
        return out[:, :tokens]


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@dataclass(frozen=True)
class Origin:
    """Where a part of an expanded segment comes from: the layer that made it, the patch, and how many tokens it has."""

    layer: int
    region: int
    tokens: int


@dataclass
class Sequence:
    """Segments of a batch, plus the bookkeeping of what was expanded: ``origins[image][row]`` lists a row's expanded parts and
    ``places[image][row]``, (tokens,), says which point of the visual grid each expanded token shows, as a fractional raster index."""

    layout: Layout
    blocks: list[Segment]
    inherit: bool = False
    expanded: list[Segment | None] = field(default_factory=list)
    origins: list[list[tuple[Origin, ...]]] = field(default_factory=list)
    places: list[list[torch.Tensor]] = field(default_factory=list)

    def __post_init__(self):
        images = len(self.blocks) - 1
        batch = self.blocks[0].states.shape[0]
        self.expanded = self.expanded or [None] * images
        self.places = self.places or [[self.blocks[0].states.new_zeros(0)] * batch for _ in range(images)]
        self.origins = self.origins or [[()] * batch for _ in range(images)]

    @property
    def images(self) -> int:
        return len(self.blocks) - 1

    def segments(self) -> list[Segment]:
        """All segments that a layer runs, in order."""
        out = []
        for k, block in enumerate(self.blocks):
            out.append(block)
            expanded = self.expanded[k] if k < self.images else None
            if expanded is not None:
                out.append(expanded)
        return [segment for segment in out if segment.length]

    def visual_states(self, image: int) -> torch.Tensor:
        """(batch, visual, hidden): the tokens of one image, the last ones of its block. Meaningless where a row lacks the image."""
        return self.blocks[image].states[:, -self.layout.visual :]

    def expanded_tokens(self, image: int, row: int) -> int:
        return sum(origin.tokens for origin in self.origins[image][row])

    def apply(self, image: int, decisions: Rows[Decision], made: dict[int, tuple[torch.Tensor, torch.Tensor]], layer: int) -> None:
        """Carries out one layer's decisions for one image, a decision a row.

        ``made``: for each row that expands, its new tokens (tokens, hidden) and their places (tokens,). Rows that keep are left
        exactly as they are.
        """
        old = self.expanded[image]
        if all(isinstance(d, Keep) or (isinstance(d, Drop) and old is None) for d in decisions):
            return
        empty = self.blocks[0].states[0, :0]
        rows = old.rows() if old is not None else [empty] * len(decisions)
        origins, places = list(self.origins[image]), list(self.places[image])
        for b, decision in enumerate(decisions):
            if isinstance(decision, Drop):
                rows[b], origins[b], places[b] = empty, (), places[b][:0]
            elif isinstance(decision, Expand):
                if origins[b] and decision.on_reexpand == "keep":
                    continue
                tokens, where = made[b]
                new = (Origin(layer, decision.region, len(tokens)),)
                if decision.on_reexpand == "append":
                    rows[b], origins[b], places[b] = torch.cat([rows[b], tokens]), origins[b] + new, torch.cat([places[b], where])
                else:
                    rows[b], origins[b], places[b] = tokens, new, where
        self.origins[image], self.places[image] = origins, places
        self.expanded[image] = Segment.from_rows(rows) if any(origins) else None

    def positions(self) -> list[torch.Tensor]:
        """(batch, length) positions of each segment of ``segments()``.

        Contiguous: the real tokens of a row are numbered 0, 1, 2, ... so text moves when tokens are put in front of it. With
        ``inherit`` prompt tokens keep the numbers that they have without any expansion, and expanded tokens take the fractional
        numbers of the places that they show.
        """
        out: list[torch.Tensor] = []
        start = torch.zeros_like(self.blocks[0].valid[:, :1], dtype=torch.long)
        for k, block in enumerate(self.blocks):
            count = block.valid.long().cumsum(1)
            if block.length:
                out.append((start + count - 1).clamp(min=0))
                start = start + count[:, -1:]
            expanded = self.expanded[k] if k < self.images else None
            if expanded is not None:
                count = expanded.valid.long().cumsum(1)
                if self.inherit:
                    shown = Segment.from_rows([where[:, None] for where in self.places[k]]).states[..., 0]
                    out.append((shown + (start - self.layout.visual)).clamp(min=0))
                else:
                    out.append((start + count - 1).clamp(min=0))
                    start = start + count[:, -1:]
        return out
