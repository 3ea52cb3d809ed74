"""The token sequence that a decoder layer sees, as segments, and the surgery that methods ask for.

    block 0 (system | visual) | expanded 0 | [block 1 (text | visual) | expanded 1 | ...] | text

Attention is causal, so putting a segment in front of the text or taking it away changes nothing that stands before it. Rows of a
batch differ in text length and in what was decided for them; a segment is therefore padded on the left and carries which of its
tokens are real. Visual tokens are the last ones of their block, also where some of them have been dropped (``retain``). Tensors only:
nothing here knows a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch

from blink_exp.core.base_view import Shown


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


@dataclass(frozen=True)
class Retain:
    """Go on with some of a row's visual tokens (FastV, SparseVLM); every other token of the prompt stays.

    ``indices``: which of the visual tokens that are present stay, ascending, counted through all images of the row. ``clusters``: groups
    of visual tokens, counted alike, whose means are put behind the last visual token that stays, in this order.
    """

    indices: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...] = ()


Decision = Keep | Drop | Expand | Retain

V = TypeVar("V")  # a visual token
E = TypeVar("E")  # a part of an expanded segment


@dataclass(frozen=True)
class Origin:
    """Where a part of an expanded segment comes from: the layer that made it, the patch, and how many tokens it has."""

    layer: int
    region: int
    tokens: int


@dataclass(frozen=True)
class State(Generic[V, E]):
    """What of a row's images a layer works on. ``visual[k]``: the visual tokens of image k, in order; ``expanded[k]``: the parts of the
    expanded segment behind them."""

    visual: tuple[Rows[V], ...]
    expanded: tuple[tuple[E, ...], ...]

    @classmethod
    def of(cls, *visual: Rows[V]) -> State[V, E]:
        """Images of these visual tokens, with nothing expanded."""
        return cls(visual, ((),) * len(visual))


def transition(
    state: State[V, E],
    decision: Decision,
    image: int = 0,
    *,
    expand: Callable[[tuple[E, ...]], E] | None = None,
    merge: Callable[[tuple[V, ...]], V] | None = None,
) -> State[V, E]:
    """The state behind a decision, the one rule that everything that carries out or replays decisions goes by. Pure.

    Args:
        image: which image is expanded or dropped; ``Retain`` is about all of them.
        expand: the part that an expansion makes, given the parts that it stands behind. Called only if there is one to make.
        merge: the token that some visual tokens are merged to.
    """
    if isinstance(decision, Keep):
        return state
    if isinstance(decision, Retain):
        return replace(state, visual=_retained(state.visual, decision, merge))
    parts = state.expanded[image]
    if isinstance(decision, Drop):
        parts = ()
    elif not (parts and decision.on_reexpand == "keep"):
        assert expand is not None
        before = parts if decision.on_reexpand == "append" else ()
        parts = (*before, expand(before))
    return replace(state, expanded=(*state.expanded[:image], parts, *state.expanded[image + 1 :]))


def _retained(visual: tuple[Rows[V], ...], decision: Retain, merge: Callable[[tuple[V, ...]], V] | None) -> tuple[Rows[V], ...]:
    every = list(itertools.chain.from_iterable(visual))
    merged: list[V] = []
    if decision.clusters:
        assert merge is not None
        merged = [merge(tuple(every[i] for i in cluster)) for cluster in decision.clusters]
    last = max((k for k, tokens in enumerate(visual) if len(tokens)), default=0)  # merged tokens stand behind the last image
    ends = [0, *itertools.accumulate(map(len, visual))]
    kept = [[every[i] for i in decision.indices if first <= i < end] for first, end in itertools.pairwise(ends)]
    return tuple(tuple(own + merged) if k == last else tuple(own) for k, own in enumerate(kept))


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
        full = self.valid.all(1).tolist()
        return [states if whole else states[valid] for states, valid, whole in zip(self.states, self.valid, full, strict=True)]

    @property
    def length(self) -> int:
        return self.states.shape[1]


@dataclass
class Layout:
    """Where the tokens of a prompt go. Segments are the block of each image (the text before it and its visual tokens) and, last, the
    text.

    ``index[k]``: (batch, length_k), positions in the prompt of segment k's tokens, -1 on padding and on tokens that a method made;
    ``visual[row][image]``: visual tokens of each image, 0 where a row has fewer images than others; ``order``: (batch, tokens), the
    number of each prompt token among the real ones of its row; ``shown[row][image]``: what visual tokens show, None where every image
    has the H x W tokens of one view.
    """

    index: list[torch.Tensor]
    visual: list[list[int]]
    order: torch.Tensor
    shown: list[list[Shown]] | None = None

    @classmethod
    def of(cls, image_mask: torch.Tensor, attention_mask: torch.Tensor | None, visual: int | None) -> Layout:
        """``image_mask``: (batch, tokens), true on visual tokens; ``attention_mask``: the same shape, false on padding; ``visual``:
        tokens of every image, or None where images differ: then each run of visual tokens counts as one image."""
        real = torch.ones_like(image_mask) if attention_mask is None else attention_mask.bool()
        blocks: list[list[torch.Tensor]] = []
        counts: list[list[int]] = []
        for mask, kept in zip(image_mask, real, strict=True):
            tokens = kept.nonzero()[:, 0]
            if visual is None:
                ends = (mask & ~torch.cat([mask[1:], mask.new_zeros(1)])).nonzero()[:, 0]
            else:
                ends = mask.nonzero()[:, 0][visual - 1 :: visual]  # the last visual token of each image
                assert int(mask.sum()) == visual * len(ends), "the number of image tokens is no multiple of an image's"
            edges = [-1, *ends.tolist()]
            row = [tokens[(tokens > a) & (tokens <= b)] for a, b in itertools.pairwise(edges)]
            blocks.append([*row, tokens[tokens > edges[-1]]])
            counts.append([int(mask[block].sum()) for block in row])
        images = max(map(len, counts))
        empty = blocks[0][0][:0]
        padded = [row[:-1] + [empty] * (images + 1 - len(row)) + row[-1:] for row in blocks]
        index = [_places([row[k] for row in padded]) for k in range(images + 1)]
        return cls(index, [row + [0] * (images - len(row)) for row in counts], real.long().cumsum(1) - 1)

    @property
    def present(self) -> torch.Tensor:
        """(batch, images), false where a row has fewer images than others."""
        return torch.tensor(self.visual, dtype=torch.long).view(len(self.visual), len(self.index) - 1) > 0

    def split(self, embeds: torch.Tensor) -> list[Segment]:
        """(batch, tokens, hidden) into segments."""
        return [Segment(_take(embeds, index.clamp(min=0)), index >= 0) for index in self.index]

    def join(self, segments: list[Segment], tokens: int) -> torch.Tensor:
        """The inverse of ``split``: (batch, tokens, hidden), zeros on padding. Expanded tokens have no place in it."""
        first = segments[0].states
        out = first.new_zeros(first.shape[0], tokens + 1, first.shape[-1])  # padding goes to one column too many, cut off below
        for index, segment in zip(self.index, segments, strict=True):
            out[_numbers(out), torch.where(index >= 0, index, tokens)] = segment.states  # row by row: a scatter goes number by number
        return out[:, :tokens]


def _places(rows: Rows[torch.Tensor]) -> torch.Tensor:
    """(length_i,) positions of each row to one (batch, length), -1 on the padding on the left."""
    length = max(map(len, rows))
    return torch.stack([torch.cat([row.new_full((length - len(row),), -1), row]) for row in rows])


def _means(x: torch.Tensor, groups: Rows[Rows[int]]) -> torch.Tensor:
    """(groups, hidden) means of some rows of (tokens, hidden)."""
    sizes = torch.tensor([len(group) for group in groups], device=x.device)
    rows = torch.tensor(list(itertools.chain.from_iterable(groups)), device=x.device)
    owner = torch.arange(len(groups), device=x.device).repeat_interleave(sizes, output_size=len(rows))
    sums = x.new_zeros(len(groups), x.shape[-1], dtype=torch.float32).index_add_(0, owner, x[rows].float())
    return (sums / sizes[:, None]).to(x)


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[_numbers(x), index]


def _numbers(x: torch.Tensor) -> torch.Tensor:
    """(batch, 1) numbers of the rows."""
    return torch.arange(len(x), device=x.device)[:, None]


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
        self.prompt = self.layout  # as it was before anything was dropped
        images = len(self.blocks) - 1
        batch = self.blocks[0].states.shape[0]
        self.expanded = self.expanded or [None] * images
        self.places = self.places or [[self.blocks[0].states.new_zeros(0, dtype=torch.float32)] * batch for _ in range(images)]
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

    def base_view(self, image: int, row: int, height: int, width: int) -> torch.Tensor:
        """(H * W, hidden) states of the base view of one image, in raster order."""
        block = self.blocks[image].states[row]
        if self.layout.shown is None:
            return block[-height * width :]
        return self.layout.shown[row][image].grid(block[len(block) - self.layout.visual[row][image] :], height, width)

    def row_visual(self, row: int) -> torch.Tensor:
        """(visual, hidden): what is present of all images of one row, one behind the other."""
        parts = [b.states[row, b.length - n :] for b, n in zip(self.blocks[:-1], self.layout.visual[row], strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat([self.blocks[0].states[row, :0], *parts])

    def visual_columns(self, row: int) -> list[int]:
        """Where the tokens of ``row_visual`` stand among the keys of a layer that has run; there must be no expanded segment."""
        ends = itertools.accumulate(block.length for block in self.blocks)
        return [column for end, n in zip(ends, self.layout.visual[row], strict=False) for column in range(end - n, end)]

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

    def retain(self, decisions: Rows[Retain | None]) -> None:
        """Carries out one layer's decisions to drop visual tokens, a decision a row; None leaves a row as it is."""
        assert not (self.inherit and any(d and d.clusters for d in decisions)), "a merged token has no position to inherit"
        visual, index = [list(row) for row in self.layout.visual], list(self.layout.index)
        merged: dict[tuple[int, int], torch.Tensor] = {}  # by row and image: new tokens, behind the last image that is still there
        for b, decision in enumerate(decisions):
            if decision is not None and decision.clusters:
                seen, last = self.row_visual(b), max(k for k, n in enumerate(visual[b]) if n)
                merged[b, last] = _means(seen, decision.clusters)
        for k in range(self.images):
            rows = self.blocks[k].rows()
            places = [where[valid] for where, valid in zip(index[k], self.blocks[k].valid, strict=True)]
            for b, decision in enumerate(decisions):
                if decision is None:
                    continue
                first, count = sum(self.layout.visual[b][:k]), self.layout.visual[b][k]
                start = len(rows[b]) - count  # text in front of the image
                kept = [i - first for i in decision.indices if first <= i < first + count]
                stay = torch.tensor([*range(start), *(start + i for i in kept)], dtype=torch.long, device=places[b].device)
                new = merged.get((b, k), rows[b][:0])
                rows[b], places[b] = torch.cat([rows[b][stay], new]), torch.cat([places[b][stay], stay.new_full((len(new),), -1)])
                visual[b][k] = len(kept) + len(new)
            self.blocks[k], index[k] = Segment.from_rows(rows), _places(places)
        self.layout = replace(self.layout, visual=visual, index=index)

    def positions(self) -> list[torch.Tensor]:
        """(batch, length) positions of each segment of ``segments()``.

        Contiguous: the real tokens of a row are numbered 0, 1, 2, ... so text moves when tokens are put in front of it or dropped. With
        ``inherit`` prompt tokens keep the numbers that they have in the prompt, and expanded tokens take the fractional numbers of the
        places that they show.
        """
        out: list[torch.Tensor] = []
        start = torch.zeros_like(self.blocks[0].valid[:, :1], dtype=torch.long)
        for k, block in enumerate(self.blocks):
            if block.length:
                if self.inherit:
                    own = self.layout.order.gather(1, self.layout.index[k].clamp(min=0))
                else:
                    own = start + block.valid.long().cumsum(1) - 1
                out.append(own.clamp(min=0))
                start = torch.where(block.valid[:, -1:], own[:, -1:] + 1, start)
            expanded = self.expanded[k] if k < self.images else None
            if expanded is not None:
                if self.inherit:
                    shown = Segment.from_rows([where[:, None] for where in self.places[k]]).states[..., 0]
                    image = start - torch.tensor([row[k : k + 1] for row in self.layout.visual], device=start.device)
                    out.append((shown + image).clamp(min=0))
                else:
                    count = expanded.valid.long().cumsum(1)
                    out.append((start + count - 1).clamp(min=0))
                    start = start + count[:, -1:]
        return out
