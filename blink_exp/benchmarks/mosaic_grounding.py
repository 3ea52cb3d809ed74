"""Held-out scenes with questions about places: in which rows and columns an object is, and what is at a row and column.

Each scene has one object that is the only one of its colour and shape and lies off the middle row and column. Its row and its column are
asked for in the words of ``mosaic_hr`` ("is the red circle top or bottom?"), and the colour and the shape of what is at one cell in the
words of ``mosaic_open`` ("what color is at row 3 column 1?").
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from blink_exp.benchmarks.base import ExactMatch, Sample, Score, mean
from blink_exp.benchmarks.scene_samples import scene_sample
from blink_exp.documents.records import Record
from blink_exp.scenes.hr_questions import alone, name_of
from blink_exp.scenes.questions import SceneQuestion
from blink_exp.scenes.scenes import Scene, random_scene

VERSION = 1  # a sample id is stable for ever: another draw of scenes or questions is another version
SIZES = (2, 3, 4)  # objects a row, in turns
FIND = {"row": ("top", "bottom"), "column": ("left", "right")}
READ = ("color_at", "shape_at")
KINDS = {"find": tuple(FIND), "read": READ}


class MosaicGrounding(ExactMatch):
    """Scores: ``accuracy`` in all, of ``find`` (row and column of an object) and of ``read`` (what is at a row and column), by kind, by
    scene size (``3x3``), and ``located``: the share of objects of which both row and column are right.

    Args:
        images: scenes, as many of 2 x 2, 3 x 3 and 4 x 4 objects, four questions each.
        questions: ``all``, or ``find`` or ``read`` only, under the same ids.
        blank: shows a grey image in place of each scene: what is right without looking.
    """

    name = "mosaic_grounding"

    def __init__(self, images: int = 300, questions: str = "all", blank: bool = False):
        self.images, self.questions, self.blank = images, questions, blank

    def samples(self) -> list[Sample]:
        return [sample for i in range(self.images) for sample in self._on(i)]

    def _on(self, i: int) -> Iterator[Sample]:
        scene, asked = grounding_scene(i)
        image_id = f"mosaic_grounding/v{VERSION}/{i:04d}"
        for question in asked:
            if self.questions == "all" or question.kind in KINDS[self.questions]:
                category = f"{question.kind} {scene.n}x{scene.n}"
                yield scene_sample(image_id, question.kind, scene, question, category, masked=True, blank=self.blank)

    def counts(self, score: str, record: Record) -> bool:
        kind, _, size = record["category"].partition(" ")
        return score in ("accuracy", kind, size) or kind in KINDS.get(score, ())

    def score(self, records: list[Record]) -> dict[str, Score]:
        names = ("accuracy", *KINDS, *FIND, *READ, *(f"{n}x{n}" for n in SIZES))
        scores = {name: mean(r["correct"] for r in records if self.counts(name, r)) for name in names}
        sides: dict[str, list[bool]] = {}
        for record in records:
            if self.counts("find", record):
                sides.setdefault(record["image_id"], []).append(bool(record["correct"]))
        located = {"located": mean(all(both) for both in sides.values() if len(both) == len(FIND))}
        return {name: score for name, score in (scores | located).items() if score.samples}


@functools.lru_cache(maxsize=1024)
def grounding_scene(i: int) -> tuple[Scene, tuple[SceneQuestion, ...]]:
    """Scene number ``i`` and its four questions. Of any twelve scenes in a row, three of a size have their objects in each corner."""
    n = SIZES[i % len(SIZES)]
    corner = divmod(i // len(SIZES) % 4, 2)  # which half of the rows, and of the columns
    for attempt in itertools.count():
        rng = np.random.default_rng((600 + VERSION, i, attempt))
        scene = random_scene(rng, "test", n)
        objects = [k for k in alone(scene) if all((2 * c > n - 1) == bool(half) and 2 * c != n - 1 for c, half in _sides(scene, k, corner))]
        if objects:
            break
    k, cell = objects[rng.integers(len(objects))], int(rng.integers(n * n))
    name, tile = name_of(scene.tiles[k]), scene.tiles[cell]
    finds = [
        SceneQuestion(kind, f"is the {name} {sides[0]} or {sides[1]}?", sides[half], (k,))
        for (kind, sides), half in zip(FIND.items(), corner, strict=True)
    ]
    reads = [
        SceneQuestion("color_at", f"what color is at {scene.place(cell)}?", tile.color, (cell,)),
        SceneQuestion("shape_at", f"what shape is at {scene.place(cell)}?", tile.shape, (cell,)),
    ]
    return scene, (*finds, *reads)


def _sides(scene: Scene, k: int, corner: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(row or column of object ``k``, the half that it is to be in)."""
    return zip(scene.cell(k), corner, strict=True)
