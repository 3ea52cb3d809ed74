"""Held-out scenes in MME's form: each image has one question to be answered yes and one to be answered no.

Subtask score = accuracy + accuracy-plus (share of images with both answers right), 200 at most; perception and cognition are sums of
subtasks and the total is the sum of both, as in MME (Fu et al., 2023).
"""

from __future__ import annotations

import functools
import operator
import zlib
from typing import Any

import numpy as np

from blink_exp.benchmarks.base import Sample, Score, by, mean
from blink_exp.scale_model.questions import YES_NO, Question
from blink_exp.scale_model.scenes import Scene, random_scene

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
    max_new_tokens = 4

    def __init__(self, images: int = 40):
        self.images = images

    def samples(self) -> list[Sample]:
        out = []
        for subtask, kind in {**PERCEPTION, **COGNITION}.items():
            for i in range(self.images):
                scene, pair = _pair(kind, i)
                image_id = f"mosaic_mme/v{VERSION}/{subtask}/{i:04d}"
                for question in pair:
                    regions = tuple(scene.box(k) for k in question.objects)
                    sample_id = f"{image_id}/{question.answer}"
                    out.append(
                        Sample(
                            sample_id,
                            image_id,
                            functools.partial(operator.attrgetter("canvas"), scene),
                            question.text,
                            question.answer,
                            subtask,
                            regions,
                        )
                    )
        return out

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> bool:
        return yes_or_no(prediction) == sample.answer

    def score(self, records: list[dict[str, Any]]) -> dict[str, Score]:
        """Images with one answer missing (a broken image, a limit) are left out of accuracy-plus and of accuracy alike."""
        pairs = {k: v for k, v in by(records, "image_id").items() if len(v) == 2}
        whole = [r for pair in pairs.values() for r in pair]
        scores = {subtask: _mme(rows) for subtask, rows in by(whole, "category").items()}
        perception = _sum(scores[s] for s in PERCEPTION if s in scores)
        cognition = _sum(scores[s] for s in COGNITION if s in scores)
        return {
            "perception": perception,
            "cognition": cognition,
            "total": _sum((perception, cognition)),
            "accuracy": mean(r["correct"] for r in whole),
            **scores,
        }


def _pair(kind: str, i: int) -> tuple[Scene, tuple[Question, Question]]:
    for attempt in range(1000):
        rng = np.random.default_rng((VERSION, zlib.crc32(kind.encode()), i, attempt))
        scene = random_scene(rng, "test", SIZES[i % len(SIZES)])
        yes, no = YES_NO[kind](rng, scene, "yes"), YES_NO[kind](rng, scene, "no")
        if yes is not None and no is not None:
            return scene, (yes, no)
    raise AssertionError(f"no scene has both answers to {kind}")


def yes_or_no(text: str) -> str:
    """MME's rule: exact yes or no, else what the first four characters contain, else other."""
    text = text.lower().strip().replace(".", "")
    if text in ("yes", "no"):
        return text
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"


def _mme(rows: list[dict[str, Any]]) -> Score:
    """Accuracy + accuracy-plus; the standard error is that of the mean over images of what an image contributes."""
    gains = np.array(
        [50 * sum(r["correct"] for r in pair) + 100 * all(r["correct"] for r in pair) for pair in by(rows, "image_id").values()]
    )
    stderr = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
    return Score(float(gains.mean()), len(rows), stderr)


def _sum(scores) -> Score:
    scores = list(scores)
    variance = sum((s.stderr or 0.0) ** 2 for s in scores)
    return Score(sum(s.value for s in scores), sum(s.samples for s in scores), variance**0.5)
