"""GQA (Hudson and Manning, 2019): compositional questions on 398 images, which the data set keeps apart from the questions."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from typing import Any, ClassVar

from PIL import Image

from blink_exp.benchmarks.base import OpenImage, Sample, Score, accuracies
from blink_exp.benchmarks.cells import ANSWER, KEY, OBJECT, TEXT, Row, blank
from blink_exp.benchmarks.rows import Published, load_rows, root_of, valid_cells
from blink_exp.benchmarks.vqa import SHORT
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.images import open_image

UNPUNCTUATED = str.maketrans("", "", string.punctuation)


class GQA(Published):
    """``config`` holds the questions, ``image_config`` the images that their ``imageId`` names."""

    name = "gqa"
    headline = "accuracy"
    columns: ClassVar = {"id": KEY, "imageId": KEY, "question": TEXT, "answer": ANSWER}
    optional: ClassVar = {"types": OBJECT}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 16}

    def __init__(self, path: str, split: str, config: str, image_config: str, **settings: Any):
        super().__init__(path, split, config, **settings)
        self.image_config = image_config

    def read(self) -> Iterator[Sample]:
        rows = load_rows(self.path, self.split, self.config, self.revision, tuple(self.columns), self.name)
        images = load_rows(self.path, self.split, self.image_config, self.revision, ("id", "image"), self.name)
        places = {image_id: k for k, image_id in valid_cells(images, "id", KEY)}
        if places.keys().isdisjoint(image_id for _, image_id in valid_cells(rows, "imageId", KEY)):
            raise UserError(
                f"benchmark.image_config={self.image_config} has no image that {self.config} asks about; give the two of one split"
            )

        @functools.lru_cache(maxsize=32)  # an image has 32 questions on average, and a batch decodes it once
        def opened(image_id: str) -> Image.Image:
            if image_id not in places:
                raise OSError(f"imageId {image_id} is not in {self.image_config}")
            return open_image(images[places[image_id]]["image"], self.image_loading, root_of(self.path))

        yield from self.sampled(rows, lambda i, row: functools.partial(opened, row["imageId"]))

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        answer = None if blank(row["answer"]) else row["answer"]
        kind = row.get("types", {}).get("structural") or "all"
        return Sample(self.id(row["id"]), self.id(f"image/{row['imageId']}"), image, row["question"], answer, kind)

    def prompt(self, sample: Sample) -> str:
        return sample.question + SHORT

    def correct(self, sample: Sample, prediction: str) -> float | None:
        """llava: lower case without final full stops, as the official evaluation is fed. lmms_eval: neither case, punctuation nor the
        prediction's outer spaces."""
        if sample.answer is None:
            return None
        if self.protocol == "llava":
            return prediction.rstrip(".").lower() == sample.answer
        return bare(prediction.strip()) == bare(sample.answer)

    def score(self, records: list[Record]) -> dict[str, Score]:
        return accuracies(records)


def bare(text: str) -> str:
    """Lower case without ASCII punctuation; spaces stay, those that punctuation leaves at the ends too."""
    return text.lower().translate(UNPUNCTUATED)
