"""Segments: spans of tokens whose states depend only on the tokens in front of them.

Examples are ``system | visual`` of an image and an expanded segment. A segment has its states at the layer that it has reached, and its
keys and values in the layers before, so that any number of texts can follow it. The front of a text is a chain of segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Retain, State, transition
from blink_exp.core.views import BaseViewMap, OriginalPositions
from blink_exp.decoder.shared_attention import Part
from blink_exp.decoder.tiles import independent

if TYPE_CHECKING:  # for type checkers only: this file is read where there is no image library (bench gpu)
    from blink_exp.backbone.canvas import ImageRegions


@dataclass(eq=False)
class Segment:
    """A segment of one row, or shared by several rows.

    Args:
        states: (tokens, hidden) at the input of layer ``reached``.
        visual: number of visual tokens at its end.
        numbers: (tokens,) position numbers, may be fractional; None: consecutive.
        takes: number of positions that the tokens behind it are shifted by; None: one for each token.
        index: (tokens,) positions of its tokens in the caller's prompt, -1 for added tokens; None: not needed.
        region: the patch that an expanded segment shows.
        keys, values: {layer: (kv_heads, tokens, head_dim)} of the layers before ``reached``, keys behind RoPE.
        inputs: {layer: (tokens, hidden)}, states at the input of earlier layers that may be read.
        tokens: their number.
    """

    states: torch.Tensor
    visual: int = 0
    numbers: torch.Tensor | None = None
    takes: int | None = None
    index: torch.Tensor | None = None
    region: int = 0
    reached: int = 0
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    tokens: int = field(init=False)

    stored = False  # whether a cache holds it beyond the current questions

    def __post_init__(self) -> None:
        self.tokens = len(self.states)

    @property
    def taken(self) -> int:
        return self.tokens if self.takes is None else self.takes

    def at(self, layer: int) -> torch.Tensor:
        """(tokens, hidden) states at the input of a layer, the one reached or an earlier one in ``inputs``."""
        return self.states if self.reached == layer else self.inputs[layer]

    def visual_at(self, layer: int) -> torch.Tensor:
        """(visual, hidden)."""
        return self.at(layer)[self.tokens - self.visual :]

    def positions(self, start: int) -> torch.Tensor:
        """(tokens,) position numbers. ``start``: the first free number behind the front."""
        return torch.arange(start, start + self.tokens, device=self.states.device) if self.numbers is None else self.numbers

    def advance(self, i: int, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, read: Collection[int]) -> None:
        """Records the outputs of layer ``i``. ``read``: layers whose inputs may be read later."""
        self.keys[i], self.values[i] = keys, values
        self.pass_on(i, states, read)

    def pass_on(self, i: int, states: torch.Tensor, read: Collection[int]) -> None:
        """``advance`` without keys and values, where no later token reads them in this layer."""
        if i in read:
            self.inputs[i] = self.states
        self.states, self.reached = states, i + 1


Front = tuple[Segment, ...]  # the segments in front of a text or of another segment, in order


def length(front: Rows[Segment]) -> int:
    return sum(segment.tokens for segment in front)


def visual_at(blocks: Rows[Segment], layer: int) -> torch.Tensor:
    """(visual, hidden) of all images."""
    parts = [block.visual_at(layer) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def starts(front: Rows[Segment]) -> list[int]:
    """The first free position number before each segment, and, last, behind all of them."""
    return list(itertools.accumulate((segment.taken for segment in front), initial=0))


def numbered(
    before: int, positions: OriginalPositions | None, device: torch.device, start: int = 0
) -> tuple[torch.Tensor | None, int | None]:
    """``numbers`` and ``takes`` of a segment of ``before`` text tokens and an image's visual tokens with these ``positions``; ``start``:
    the first free number in front of it."""
    if positions is None:
        return None, None
    text = torch.arange(start, start + before, device=device)
    return torch.cat([text, positions.numbers.to(device) + start + before]), before + positions.length


def shared_kv(i: int, fronts: Rows[Rows[Segment]]) -> list[Part]:
    """Keys and values of the rows' fronts at layer i; neighbouring rows with a common segment share one part."""
    out = []
    for depth in range(max(map(len, fronts), default=0)):
        start = 0
        for segment, same in itertools.groupby(front[depth] if depth < len(front) else None for front in fronts):
            stop = start + len(list(same))
            if segment is not None:
                out.append(Part(start, stop, segment.keys[i], segment.values[i], depth))
            start = stop
    return out


@dataclass(frozen=True)
class ExpansionKey:
    """Cache key of an expanded segment: all that it depends on.

    Args:
        block: the segment that ends with the image's visual tokens.
        start: position number of the first visual token.
        module: the layer's TokenSR module, or None for plain interpolation.
        inherit: whether its tokens take the positions of the patch.
        before: expanded segments in front of it (``on_reexpand=append``).
        base_map: cells of the base view that the visual tokens show; None: all of one view. restore_dropped: whether dropped cells are
            restored.
        regions: what close-ups are cut from, instead of an enlarged patch; None: not required.
    """

    block: Segment
    start: int
    layer: int
    region: int
    grid: PatchGrid
    interpolate: bool
    inherit: bool
    module: nn.Module | None
    before: Front
    base_map: BaseViewMap | None = field(compare=False, default=None)
    restore_dropped: bool = False
    regions: ImageRegions | None = None

    def base_view(self) -> torch.Tensor:
        """(H * W, hidden) states of the base view at the layer's input, from before its norm (Blink, Alg. 1)."""
        states = self.block.visual_at(self.layer)
        cells = self.grid.height * self.grid.width
        return states[len(states) - cells :] if self.base_map is None else self.base_map.grid(states, self.grid.height, self.grid.width)


def expand(keys: Rows[ExpansionKey]) -> list[Segment]:
    """The expanded segments of some keys; keys with one module are one batch. Blink, Eqs. (4)-(5)."""
    segments: dict[int, Segment] = {}
    numbers = sorted(range(len(keys)), key=lambda n: _kind(keys[n]))
    for _, group_numbers in itertools.groupby(numbers, key=lambda n: _kind(keys[n])):
        group = list(group_numbers)
        first = keys[group[0]]
        grid, (h, w) = first.grid, first.grid.patch
        patches = torch.stack([keys[n].base_view()[grid.indices(keys[n].region)] for n in group]).mT.unflatten(2, (h, w))
        if first.interpolate:
            patches = enlarge(patches, (grid.height, grid.width))
        if first.module is not None:
            at_once = 1 if independent(patches) else len(patches)  # a convolution of one patch has a kernel of its own
            patches = torch.cat([first.module(some) for some in patches.contiguous().split(at_once)])
        size = (patches.shape[-2], patches.shape[-1])
        for n, states in zip(group, patches.flatten(2).mT.contiguous(), strict=True):
            segments[n] = expanded_segment(keys[n], states, size)
    return [segments[n] for n in range(len(keys))]


def expanded_segment(key: ExpansionKey, states: torch.Tensor, size: tuple[int, int]) -> Segment:
    """The segment of a key, from its (height * width, hidden) ``states``; ``size``: height and width."""
    places = key.grid.places(key.region, size).to(states.device) + key.start if key.inherit else None
    return Segment(states, 0, places, 0 if key.inherit else None, region=key.region, reached=key.layer)


def _kind(key: ExpansionKey) -> tuple[int, int, bool]:
    return id(key.module), key.grid.p, key.interpolate


def enlarge(patch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch, hidden, h, w) to (batch, hidden, H, W), bilinear (Blink, Sec. 3.2.1), for inference and training."""
    return F.interpolate(patch, size=size, mode="bilinear", align_corners=False)


def retain(blocks: Rows[Segment], decision: Retain, layer: int, inherit: bool) -> Front:
    """The blocks that remain after a decision before ``layer`` to drop and merge visual tokens. A merged token is the
    mean of its members. ``inherit``: tokens keep their position numbers and dropped ones leave gaps; a merged token has the mean of its
    members' numbers."""
    ends = list(itertools.accumulate((block.visual for block in blocks), initial=0))
    ranges = [range(first, end) for first, end in itertools.pairwise(ends)]
    merged: list[tuple[int, ...]] = []  # merged token -1 - n is the mean of merged[n]

    def merge(members: tuple[int, ...]) -> int:
        merged.append(members)
        return -len(merged)

    state: State[int, Segment] = transition(State.of(*ranges), decision, merge=merge)
    means = _means(visual_at(blocks, layer), merged) if merged else None
    places = [block.positions(start) for block, start in zip(blocks, starts(blocks), strict=False)] if inherit else []
    out: list[Segment] = []
    for block, first, tokens in zip(blocks, ends, state.visual, strict=False):
        before = block.tokens - block.visual  # text in front of the image
        device = block.states.device
        stay = torch.tensor([*range(before), *(before + t - first for t in tokens if t >= 0)], dtype=torch.long, device=device)
        states, index = block.at(layer)[stay], None if block.index is None else block.index[stay]
        numbers = places[len(out)][stay] if inherit else None
        if means is not None and min(tokens, default=0) < 0:  # all merged tokens stand behind one image
            states = torch.cat([states, means])
            index = None if index is None else torch.cat([index, index.new_full((len(means),), -1)])
            if numbers is not None:
                visual = torch.cat([p[b.tokens - b.visual :] for p, b in zip(places, blocks, strict=True)])
                numbers = torch.cat([numbers, _means(visual[:, None].float(), merged)[:, 0]])
        out.append(Segment(states, len(tokens), numbers, block.taken if inherit else None, index, reached=layer))
    return tuple(out)


def _means(x: torch.Tensor, groups: Rows[Rows[int]]) -> torch.Tensor:
    """(groups, hidden) means of some rows of (tokens, hidden)."""
    sizes = torch.tensor([len(group) for group in groups], device=x.device)
    rows = torch.tensor(list(itertools.chain.from_iterable(groups)), device=x.device)
    owner = torch.arange(len(groups), device=x.device).repeat_interleave(sizes, output_size=len(rows))
    sums = x.new_zeros(len(groups), x.shape[-1], dtype=torch.float32).index_add_(0, owner, x[rows].float())
    return (sums / sizes[:, None]).to(x)
