"""Two views: the image and one region of it as two images in front of the text. ``crop``: the region alone.

What people do by hand (crop, and ask again), and what Blink competes with: a region at its own resolution, chosen before the question is
answered. Controls of this project, from no paper. Which region is shown:

    most_salient   the one that the untouched model's last prompt token attends to most, at one layer
    annotated      the one that shows most of what the question is about, by the benchmark's annotation
    wrong          one that shows none of that
    random         any

What is drawn, is drawn from seed and sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blink_exp.core.method import Method
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.second_view import Box, Subject, overlap
from blink_exp.errors import UserError, nearest
from blink_exp.methods.blink import relative_layers

if TYPE_CHECKING:
    from blink_exp.backbone.model import Backbone

MOST_SALIENT, ANNOTATED, WRONG, RANDOM = REGIONS = ("most_salient", "annotated", "wrong", "random")
TOUCHING = 1e-9  # common area of boxes that only touch, up to rounding


@dataclass(frozen=True)
class GridRegion:
    """Chooses one of p x p regions.

    Args:
        region: one of ``REGIONS``. A question without annotated regions, as about an object that is not there, draws from all. Where every
            region shows some of what is annotated, ``wrong`` draws from those that show least.
        attended: the layer of ``most_salient``.
        alone: see ``RegionChooser``.
    """

    region: str = MOST_SALIENT
    p: int = 2
    attended: int = 12
    seed: int = 0
    alone: bool = False

    generic = None

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise UserError(f"method.region={self.region} is not known; {nearest(str(self.region), REGIONS)}")

    @property
    def annotated(self) -> bool:
        return self.region in (ANNOTATED, WRONG)

    @property
    def layer(self) -> int | None:
        return self.attended if self.region == MOST_SALIENT else None

    def choose(self, subject: Subject) -> int:
        every = list(range(self.p**2))
        if self.region == MOST_SALIENT:
            return max(every, key=lambda k: subject.scores[k])  # the first of equal ones
        shown = [sum(overlap(self._box(k), box) for box in subject.regions) for k in every]
        if self.region == ANNOTATED and any(area > TOUCHING for area in shown):
            return max(every, key=lambda k: shown[k])
        if self.region == WRONG:
            every = [k for k in every if shown[k] <= min(shown) + TOUCHING]
        return every[self._draw(subject.sample) % len(every)]

    def _box(self, region: int) -> Box:
        row, column = divmod(region, self.p)
        return column / self.p, row / self.p, (column + 1) / self.p, (row + 1) / self.p

    def _draw(self, sample: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}|{sample}|second view".encode()).digest()[:8], "big")


def configure(backbone: Backbone, *, region: str, p: int, layer: int, relative: bool, seed: int, alone: bool) -> Method:
    """Two views, or with ``alone`` one region, on ``backbone``. ``relative``: ``layer`` is written for an LLM of 32 layers and scaled to
    the backbone's depth."""
    PatchGrid(p, *backbone.grid)  # raises UserError for a p that does not divide the grid
    (attended,) = relative_layers([layer], backbone.depth, relative=relative)
    return Method(name="crop" if alone else "two_views", second_view=GridRegion(region, p, attended, seed, alone))
