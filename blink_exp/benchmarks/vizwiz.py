"""VizWiz-VQA (Gurari et al., 2018): questions that blind people asked about their own photographs, many of them unanswerable."""

from __future__ import annotations

from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample
from blink_exp.benchmarks.cells import OPTIONAL_LABEL, Row
from blink_exp.benchmarks.vqa import SHORT, Served, ServerAnswer

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(Served):
    """``split``: val is scored here; test gives a file for the server, whose numbers the papers print."""

    name = "vizwiz"
    optional: ClassVar = {"category": OPTIONAL_LABEL}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 1024}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        return self.build_sample(row, row["question_id"], image, row.get("category"))

    def prompt(self, sample: Sample) -> str:
        return sample.question.capitalize() + UNANSWERABLE + SHORT  # in both protocols; spaces at its end stay

    def entry(self, question_id: str | int, answer: str) -> ServerAnswer:
        return {"image": f"{str(question_id).removesuffix('.jpg')}.jpg", "answer": answer}
