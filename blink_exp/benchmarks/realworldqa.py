"""RealWorldQA (xAI, 2024): questions on large photographs, each with its own instruction on how to answer."""

from __future__ import annotations

from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, accuracies
from blink_exp.benchmarks.cells import ANSWER, TEXT, Row, blank
from blink_exp.benchmarks.letters import extract_letter
from blink_exp.benchmarks.rows import Published
from blink_exp.documents.records import Record


class RealWorldQA(Published):
    """Both protocols send the question as it is (lmms-eval without outer spaces) and score it alike."""

    name = "realworldqa"
    headline = "accuracy"
    columns: ClassVar = {"question": TEXT, "answer": ANSWER}
    tokens: ClassVar = {"llava": 16, "lmms_eval": 16}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        sample_id = self.id(f"{i:05d}")
        answer = None if blank(row["answer"]) else str(row["answer"]).strip()
        return Sample(sample_id, sample_id, image, row["question"], answer, "letter" if letter(answer) else "word")

    def prompt(self, sample: Sample) -> str:
        return sample.question.strip() if self.protocol == "lmms_eval" else sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        if sample.answer is None:
            return None
        if letter(sample.answer):
            return extract_letter(prediction) == sample.answer.upper()
        return prediction.lower().strip().rstrip(".") == sample.answer.lower()  # the reference keeps its full stop

    def score(self, records: list[Record]) -> dict[str, Score]:
        return accuracies(records)


def letter(answer: str | None) -> bool:
    """Whether a reference is an option's letter, in either case."""
    return answer is not None and answer.upper() in ("A", "B", "C", "D")
