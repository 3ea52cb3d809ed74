"""One-word questions about one object of a held-out scene, with the region that holds it."""

from __future__ import annotations

import functools
import operator

import numpy as np

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.scenes.questions import OPEN
from blink_exp.scenes.scenes import random_scene

VERSION = 1
KINDS = ("color", "shape", "color_at", "shape_at")
SIZES = (2, 2, 3, 4)


class MosaicOpen(ExactMatch):
    """``images``: scenes, one question of each of the four kinds where the scene has one."""

    name = "mosaic_open"

    def __init__(self, images: int = 120):
        self.images = images

    def samples(self) -> list[Sample]:
        out = []
        for i in range(self.images):
            rng = np.random.default_rng((100 + VERSION, i))
            scene = random_scene(rng, "test", SIZES[i % len(SIZES)])
            image_id = f"mosaic_open/v{VERSION}/{i:04d}"
            for kind in KINDS:
                question = OPEN[kind](rng, scene, "")
                if question is not None:
                    region = tuple(scene.box(k) for k in question.objects)
                    category = f"{kind} {scene.n}x{scene.n}"
                    out.append(
                        Sample(
                            f"{image_id}/{kind}",
                            image_id,
                            functools.partial(operator.attrgetter("canvas"), scene),
                            question.text,
                            question.answer,
                            category,
                            region,
                        )
                    )
        return out
