"""easy-VQA's official test questions, unchanged, by exact match (https://github.com/vzhou842/easy-VQA)."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import ExactMatch, Sample, placeholder_sample, usable_samples
from blink_exp.benchmarks.cells import KEY, TEXT, read_cells
from blink_exp.errors import UserError, reason
from blink_exp.files import brief, kind, read_json
from blink_exp.images import ImageOptions, open_image

COLUMNS = {"question": TEXT, "answer": TEXT, "image id": KEY}


class EasyVQA(ExactMatch):
    """``path``: a folder in the published layout (``questions.json`` and ``images/<id>.png``); None: the one in the PyPI package.
    ``image_loading``: see ``images.ImageOptions``."""

    name = "easyvqa"

    def __init__(self, path: str | None = None, image_loading: Any = None):
        self.path, self.image_loading = path, ImageOptions.of(image_loading)

    def samples(self) -> list[Sample]:
        if self.path is None:
            import easy_vqa

            root, options = Path(easy_vqa.__file__).parent / "data" / "test", dataclasses.replace(self.image_loading, outside=True)
        else:
            root, options = Path(self.path), self.image_loading
        file = root / "questions.json"
        if not file.is_file():
            raise UserError(f"benchmark.path={self.path} has no questions.json; give a folder in easy-VQA's layout")
        rows = read_json(file, "copy it again")
        if not isinstance(rows, list):
            raise UserError(f"{file} holds {kind(rows)}, not a list of rows; give a folder in easy-VQA's layout")
        samples = [_sample(f"easyvqa/test/{i:05d}", row, root, options) for i, row in enumerate(rows)]
        usable_samples(samples, str(file))
        return samples


def _sample(name: str, row: Any, root: Path, options: ImageOptions) -> Sample:
    """A row [question, answer, image id] as a sample; one that is skipped where it holds anything else."""
    if not isinstance(row, list) or len(row) != len(COLUMNS):
        return placeholder_sample(name, reason(f"the row is {brief(row)}, not [{', '.join(COLUMNS)}]"))
    cells, wrong, _ = read_cells(dict(zip(COLUMNS, row, strict=True)), COLUMNS)
    if wrong is not None:
        return placeholder_sample(name, wrong)
    question, answer, image_id = cells.values()
    image = functools.partial(open_image, f"images/{image_id}.png", options, root)
    return Sample(name, f"easyvqa/test/{image_id}", image, question, answer, _category(answer))


def _category(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"
