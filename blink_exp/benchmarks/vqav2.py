"""VQAv2 (Goyal et al., 2017): open questions on COCO photographs. Papers print test-dev, which a server scores."""

from __future__ import annotations

from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample
from blink_exp.benchmarks.cells import INTEGER, KEY, OPTIONAL_LABEL, Row
from blink_exp.benchmarks.vqa import SHORT, Served, ServerAnswer


class VQAv2(Served):
    """``split``: validation is scored here; testdev and test give a file for the server."""

    name = "vqav2"
    columns: ClassVar = {**Served.columns, "question_id": INTEGER, "image_id": KEY}
    optional: ClassVar = {"answer_type": OPTIONAL_LABEL}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 16}
    untokenized = ("lmms_eval",)

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        return self.build_sample(row, row["image_id"], image, row.get("answer_type"))

    def prompt(self, sample: Sample) -> str:
        return sample.question + SHORT

    def entry(self, question_id: str | int, answer: str) -> ServerAnswer:
        return {"question_id": int(question_id), "answer": answer}
