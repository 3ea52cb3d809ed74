"""Held-out scenes in MME's form: each image has one question to be answered yes and one to be answered no.

Subtask score = accuracy + accuracy-plus (share of images with both answers right), 200 at most; perception and cognition are sums of
subtasks and the total is the sum of both, as in MME (Fu et al., 2023).
"""

from __future__ import annotations

import zlib

import numpy as np

from blink_exp.benchmarks.base import Sample, Score
from blink_exp.benchmarks.mme import score_pairs, yes_or_no
from blink_exp.benchmarks.scene_samples import scene_sample
from blink_exp.documents.records import Record
from blink_exp.scenes.questions import YES_NO, SceneQuestion
from blink_exp.scenes.scenes import Scene, random_scene

VERSION = 1  # a sample id is stable for ever: another draw of scenes or questions is another version
# Subtask: the kind of question it asks.
PERCEPTION = {
    "existence": "existence",
    "count": "count_check",
    "position": "position",
    "color": "color_check",
    "shape": "shape_check",
    "conjunction": "conjunction",
}
COGNITION = {"comparison": "comparison", "arithmetic": "arithmetic"}
SIZES = (2, 2, 3, 4)  # tiles a side of every four images: half are 2 x 2, the rest has objects too small for the full view


class MosaicMME:
    """``images``: images a subtask, two questions each."""

    name = "mosaic_mme"
    protocol = "own"
    headline = "total"
    max_new_tokens = 4

    def __init__(self, images: int = 40):
        self.images = images

    def samples(self) -> list[Sample]:
        out = []
        for subtask, kind in {**PERCEPTION, **COGNITION}.items():
            for i in range(self.images):
                scene, pair = _pair(kind, i)
                image_id = f"mosaic_mme/v{VERSION}/{subtask}/{i:04d}"
                out += [scene_sample(image_id, question.answer, scene, question, subtask) for question in pair]
        return out

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return yes_or_no(prediction) == sample.answer

    def score(self, records: list[Record]) -> dict[str, Score]:
        return score_pairs(records, tuple(PERCEPTION), tuple(COGNITION))


def _pair(kind: str, i: int) -> tuple[Scene, tuple[SceneQuestion, SceneQuestion]]:
    for attempt in range(1000):
        rng = np.random.default_rng((VERSION, zlib.crc32(kind.encode()), i, attempt))
        scene = random_scene(rng, "test", SIZES[i % len(SIZES)])
        yes, no = YES_NO[kind](rng, scene, "yes"), YES_NO[kind](rng, scene, "no")
        if yes is not None and no is not None:
            return scene, (yes, no)
    raise AssertionError(f"no scene has both answers to {kind}")
