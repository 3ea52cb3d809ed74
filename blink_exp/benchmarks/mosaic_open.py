"""One-word questions about one object of a held-out scene, with the region that holds it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.benchmarks.scene_samples import scene_sample
from blink_exp.scenes.questions import OPEN
from blink_exp.scenes.scenes import random_scene

VERSION = 1
KINDS = ("color", "shape", "color_at", "shape_at")
SIZES = (2, 2, 3, 4)


class MosaicOpen(ExactMatch):
    """One question of each kind where the scene has one; a score for each kind and size.

    Args:
        images: scenes.
        sizes: objects a row of the scenes, in turn. Other sizes than the default make other scenes, with other ids.
        kinds: those that are asked.
    """

    name = "mosaic_open"

    def __init__(self, images: int = 120, sizes: Sequence[int] = SIZES, kinds: Sequence[str] = KINDS):
        self.images, self.sizes, self.kinds = images, tuple(sizes), tuple(kinds)

    def samples(self) -> list[Sample]:
        out = []
        for i in range(self.images):
            rng = np.random.default_rng((100 + VERSION, i))
            scene = random_scene(rng, "test", self.sizes[i % len(self.sizes)])
            sizes = "" if self.sizes == SIZES else f"-{'-'.join(map(str, self.sizes))}"
            image_id = f"mosaic_open/v{VERSION}{sizes}/{i:04d}"
            for kind in KINDS:
                question = OPEN[kind](rng, scene, "")
                if question is not None and kind in self.kinds:
                    out.append(scene_sample(image_id, kind, scene, question, f"{kind} {scene.n}x{scene.n}"))
        return out
