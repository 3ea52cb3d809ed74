"""Close-ups: expanded tokens from the image's own pixels (``tokensr=closeup``; ours, not the paper's).

A region of the canvas is cut at its own resolution, resized to the tower's input, and run through tower, projector and the LLM's layers
behind the prompt's opening. Its states at the input of a layer are what TokenSR is trained to predict there (Blink, App. A.2: the teacher),
so no amplifier can be expected to do better. A region of an image is encoded once for all layers, questions and points, when a decision
first asks for it, and runs no further than the layer that asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from blink_exp.decoder.layers import PrefixBatch, SegmentRun, chunks, run_layers
from blink_exp.decoder.segments import ExpansionKey, Segment, expanded_segment
from blink_exp.decoder.visual_states import StatesOnly, base_view_embeds

if TYPE_CHECKING:  # for type checkers only: this file is read where there is no image library (bench gpu)
    from blink_exp.backbone.canvas import ImageRegions


class CloseUp(StatesOnly):
    """``opening | region``: a region at the resolution of a full view."""

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + sum(states.nbytes for states in self.inputs.values())

    def rewind(self, layer: int) -> None:
        """Returns to the last stored input at or before ``layer``."""
        self.reached = max(i for i in self.inputs if i <= layer)
        self.states = self.inputs[self.reached]


class CloseUpBatch(PrefixBatch):
    """Close-ups on their way through the layers."""

    def runs(self, i: int) -> Iterator[SegmentRun]:
        for run in super().runs(i):
            run.cache.aside = True
            yield run


@dataclass(frozen=True)
class Wanted:
    """A close-up that a decision asks for."""

    regions: ImageRegions
    p: int
    region: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.regions.key, self.p, self.region


def expand_closeups(keys: Rows[ExpansionKey], read: Collection[int]) -> list[Segment]:
    """The expanded segments of some keys of one layer. ``read``: layers at which close-ups may be asked for."""
    wanted = [Wanted(key.regions, key.grid.p, key.region) for key in keys if key.regions is not None]
    states = closeup_states(wanted, keys[0].layer, read)
    return [expanded_segment(key, states[w.key], (key.grid.height, key.grid.width)) for key, w in zip(keys, wanted, strict=True)]


@torch.no_grad()
def closeup_states(wanted: Rows[Wanted], layer: int, read: Collection[int]) -> dict[tuple[str, int, int], torch.Tensor]:
    """{key: (H * W, hidden) states of a close-up at the input of ``layer``}, from the backbone's cache or run."""
    backbone = wanted[0].regions.backbone
    cache = backbone.closeups
    closeups: dict[tuple[str, int, int], CloseUp] = {}
    new = {w.key: w for w in wanted if w.key not in cache}
    for some in chunks(list(new.values()), backbone.views_at_once):
        pixels = torch.stack([w.regions.pixels(w.region, w.p) for w in some])
        embeds = base_view_embeds(backbone, pixels)
        closeups |= {w.key: CloseUp(row, backbone.grid[0] * backbone.grid[1]) for w, row in zip(some, embeds, strict=True)}
    cache.update(closeups)
    for w in wanted:
        cache.move_to_end(w.key)
        closeups[w.key] = cache[w.key]
    for closeup in closeups.values():
        if closeup.reached > layer and layer not in closeup.inputs:
            closeup.rewind(layer)
    behind = [closeup for closeup in closeups.values() if closeup.reached < layer]
    stored = {0, layer, *read}
    for part in chunks(behind, backbone.views_at_once):
        run_layers(backbone.llm, CloseUpBatch(backbone.llm, part, stored), min(c.reached for c in part), layer)
    states = {key: closeup.visual_at(layer) for key, closeup in closeups.items()}
    backbone.shrink(cache, backbone.tower_bytes)
    return states
