"""Held-out scenes whose objects are small for the full view: open questions, and the same as yes/no pairs in MME's form.

Two objects of a scene are asked about: the colour of the one whose shape no other has, and the shape of the one whose colour no other
has.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from blink_exp.benchmarks.base import ExactMatch, Sample, Score, mean
from blink_exp.benchmarks.mme import score_pairs, yes_or_no
from blink_exp.benchmarks.scene_samples import scene_sample
from blink_exp.documents.records import Record
from blink_exp.scenes.detail import SIZES, VERSION, DetailScene, detail_scene
from blink_exp.scenes.questions import SceneQuestion, color_check_of, color_of, shape_check_of, shape_of

KINDS = ("color", "shape")  # also MME's subtasks, of the pairs
GRIDS = tuple(f"{n}x{n}" for n in SIZES)


class MosaicDetail(ExactMatch):
    """Scores: ``accuracy`` of the open questions, in all, by scene size (``4x4``) and by category (``shape 4x4``); of the pairs ``color``
    and ``shape``, accuracy + accuracy-plus, 200 at most, and their sum ``perception``, as in MME.

    Args:
        images: scenes, as many of 4 x 4, 5 x 5, 6 x 6 and 8 x 8 objects, each with two open questions and a pair for each of them.
        questions: ``all``, or the ``open`` ones or the ``pairs`` only, under the same ids.
        blank: shows a grey image in place of each scene: what is right without looking.
    """

    name = "mosaic_detail"

    def __init__(self, images: int = 672, questions: str = "all", blank: bool = False):
        self.images, self.questions, self.blank = images, questions, blank
        self.headline = "perception" if questions == "pairs" else "accuracy"

    def samples(self) -> list[Sample]:
        return [sample for i in range(self.images) for sample in self._on(i)]

    def _on(self, i: int) -> Iterator[Sample]:
        detail = detail_scene("test", i)
        scene, image_id = detail.scene, f"mosaic_detail/v{VERSION}/{i:04d}"
        for kind, (question, *pair) in _questions(detail, i).items():
            open_question = (kind, f"{kind} {scene.n}x{scene.n}", question)
            checks = [(f"{kind}/{check.answer}", kind, check) for check in pair]
            for name, category, asked in [open_question] * (self.questions != "pairs") + checks * (self.questions != "open"):
                yield scene_sample(image_id, name, scene, asked, category, masked=True, blank=self.blank)

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return yes_or_no(prediction) == sample.answer if sample.category in KINDS else super().correct(sample, prediction)

    def counts(self, score: str, record: Record) -> bool:
        kind, _, size = record["category"].partition(" ")
        return bool(size) and score in ("accuracy", size, f"{kind} {size}")

    def score(self, records: list[Record]) -> dict[str, Score]:
        asked = [r for r in records if self.counts("accuracy", r)]
        names = ["accuracy", *GRIDS, *(f"{kind} {size}" for kind in KINDS for size in GRIDS)] if asked else []
        scores = {name: mean(r["correct"] for r in asked if self.counts(name, r)) for name in names}
        pairs = [r for r in records if r["category"] in KINDS]
        pair_scores = score_pairs(pairs, KINDS, ()) if pairs else {}
        left_out = ("accuracy", "cognition", "total")  # of the pairs: perception is their total
        return {k: v for k, v in scores.items() if v.samples} | {k: v for k, v in pair_scores.items() if k not in left_out}


def _questions(detail: DetailScene, i: int) -> dict[str, list[SceneQuestion]]:
    """{kind: the open question, the same to be answered yes, and no} on scene number ``i``."""
    rng = np.random.default_rng((500 + VERSION, i))
    scene, first, second = detail
    return {
        "color": [color_of(scene, first), *(color_check_of(rng, scene, first, answer) for answer in ("yes", "no"))],
        "shape": [shape_of(scene, second), *(shape_check_of(rng, scene, second, answer) for answer in ("yes", "no"))],
    }
