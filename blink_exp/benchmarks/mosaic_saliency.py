"""Scenes with the mask of what is no background, in DUTS's form: images with one clear object, and cluttered ones with many small objects.

HERO's Figures 4, 8 and 9 without a download. In a cluttered scene every object belongs to the foreground, and each covers little of it.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Sample
from blink_exp.benchmarks.duts import Duts
from blink_exp.documents.records import Record, Skipped
from blink_exp.errors import UserError
from blink_exp.scenes.scenes import Scene, random_scene

VERSION = 1  # a sample id is stable for ever: another draw of scenes is another version
CLEAR, CLUTTERED = KINDS = ("clear", "cluttered")
SIDES = (3, 4)  # objects a row of cluttered scenes, in turns


class MosaicSaliency(Duts):
    """Mean IoU by layer, times 100, as ``Duts``.

    Args:
        images: of each kind, clear and cluttered.
        layers: CLIP layers, 1-based.
        top, of: patches compared, on a grid of ``of`` patches; on another grid the same share of it (50 of 576 is 13 of 144).
        batch: images encoded at once.
    """

    name = "mosaic_saliency"

    def __init__(
        self, images: int = 128, layers: Sequence[int] = tuple(range(1, 13)), top: int = 50, of: int = 576, batch: int = 16
    ) -> None:
        if not 1 <= top < of:
            raise UserError(f"benchmark.top={top} does not choose among benchmark.of={of} patches; use less, e.g. 50 of 576")
        super().__init__(layers=layers, top=top, batch=batch)
        self.images, self.of = images, of

    def samples(self) -> list[Sample]:
        out = []
        for kind in KINDS:
            for i in range(self.images):
                scene = _scene(kind, i)
                name = f"mosaic_saliency/v{VERSION}/{kind}/{i:04d}"
                image = functools.partial(operator.attrgetter("canvas"), scene)
                out.append(Sample(name, name, image, "", None, kind, mask=functools.partial(_foreground, scene)))
        return out

    def probe(self, backbone: Backbone, limit: int | None, advance: Callable[[int], None]) -> tuple[list[Record], list[Skipped]]:
        scaled = copy.copy(self)
        scaled.top = patches(self.top, self.of, math.prod(backbone.grid))
        return Duts.probe(scaled, backbone, limit, advance)


def patches(top: int, of: int, tokens: int) -> int:
    """As large a share of ``tokens`` patches as ``top`` is of ``of``, to the nearest, at least one."""
    return max(1, math.floor(top * tokens / of + 0.5))


def _scene(kind: str, i: int) -> Scene:
    rng = np.random.default_rng((300 + VERSION, KINDS.index(kind), i))
    return random_scene(rng, "test", 1) if kind == CLEAR else random_scene(rng, "test", SIDES[i % len(SIDES)], small=True)


def _foreground(scene: Scene) -> np.ndarray:
    return np.asarray(scene.masks().any(axis=0))
