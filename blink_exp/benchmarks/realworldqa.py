"""RealWorldQA (xAI, 2024): questions on large photographs, each with its own instruction on how to answer."""

from __future__ import annotations

from typing import Any, ClassVar

from blink_exp.benchmarks.base import Sample, Score, accuracies
from blink_exp.benchmarks.cells import OPTIONAL_TEXT, TEXT
from blink_exp.benchmarks.letters import extract_letter
from blink_exp.benchmarks.rows import Published, blank


class RealWorldQA(Published):
    """Both protocols send the question as it is and score it alike."""

    name = "realworldqa"
    headline = "accuracy"
    columns: ClassVar = {"question": TEXT, "answer": OPTIONAL_TEXT}
    tokens: ClassVar = {"llava": 16, "lmms_eval": 16}

    def sample(self, i: int, row: dict[str, Any], image: Any) -> Sample:
        sample_id = self.id(f"{i:05d}")
        answer = None if blank(row["answer"]) else row["answer"].strip()
        return Sample(sample_id, sample_id, image, row["question"], answer, "letter" if letter(answer) else "word")

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        if sample.answer is None:
            return None
        if letter(sample.answer):
            return extract_letter(prediction) == sample.answer
        return word(prediction) == word(sample.answer)

    def score(self, records: list[dict[str, Any]]) -> dict[str, Score]:
        return accuracies(records)


def letter(answer: str | None) -> bool:
    return answer in ("A", "B", "C", "D")


def word(text: str) -> str:
    return text.lower().strip().rstrip(".")
