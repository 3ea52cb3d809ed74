"""easy-VQA's official test questions, unchanged, by exact match (https://github.com/vzhou842/easy-VQA)."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.errors import UserError
from blink_exp.images import ImageOptions, open_image


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
        try:
            rows = json.loads((root / "questions.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"benchmark.path={self.path} has no questions.json; give a folder in easy-VQA's layout") from None
        except json.JSONDecodeError:
            raise UserError(f"{root / 'questions.json'} is damaged; copy it again") from None
        return [
            Sample(
                id=f"easyvqa/test/{i:05d}",
                image_id=f"easyvqa/test/{image_id}",
                image=functools.partial(open_image, f"images/{image_id}.png", options, root),
                question=question,
                answer=answer,
                category=_category(answer),
            )
            for i, (question, answer, image_id) in enumerate(rows)
        ]


def _category(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "color"
