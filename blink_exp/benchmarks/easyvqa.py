"""easy-VQA's official test questions, unchanged, by exact match (https://github.com/vzhou842/easy-VQA)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from PIL import Image

from blink_exp.benchmarks.base import ExactMatch, Sample, askable, nameless
from blink_exp.benchmarks.cells import KEY, TEXT, read_cells
from blink_exp.errors import UserError, reason
from blink_exp.files import brief, kind, read_json

COLUMNS = {"question": TEXT, "answer": TEXT, "image id": KEY}


class EasyVQA(ExactMatch):
    """``path``: a folder in the published layout (``questions.json`` and ``images/<id>.png``); None: the one in the PyPI package."""

    name = "easyvqa"

    def __init__(self, path: str | None = None):
        self.path = path

    def samples(self) -> list[Sample]:
        if self.path is None:
            import easy_vqa

            root = Path(easy_vqa.__file__).parent / "data" / "test"
        else:
            root = Path(self.path)
        file = root / "questions.json"
        if not file.is_file():
            raise UserError(f"benchmark.path={self.path} has no questions.json; give a folder in easy-VQA's layout")
        rows = read_json(file, "copy it again")
        if not isinstance(rows, list):
            raise UserError(f"{file} holds {kind(rows)}, not a list of rows; give a folder in easy-VQA's layout")
        samples = [_sample(f"easyvqa/test/{i:05d}", row, root / "images") for i, row in enumerate(rows)]
        askable(samples, str(file))
        return samples


def _sample(name: str, row: Any, images: Path) -> Sample:
    """A row [question, answer, image id] as a sample; one that is skipped where it holds anything else."""
    if not isinstance(row, list) or len(row) != len(COLUMNS):
        wrong: str | None = f"the row is {brief(row)}, not [{', '.join(COLUMNS)}]"
        return nameless(name, reason(wrong))
    cells, wrong, _ = read_cells(dict(zip(COLUMNS, row, strict=True)), COLUMNS)
    if wrong is not None:
        return nameless(name, wrong)
    question, answer, image_id = cells.values()
    image = functools.partial(_open, images / f"{image_id}.png")
    return Sample(name, f"easyvqa/test/{image_id}", image, question, answer, _category(answer))


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _category(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"
