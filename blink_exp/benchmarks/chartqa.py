"""ChartQA (Masry et al., 2022): questions about charts, half written by people, half made from their captions; numbers may be 5 % off."""

from __future__ import annotations

from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, accuracies
from blink_exp.benchmarks.cells import ANSWER_OR_ANSWERS, OPTIONAL_LABEL, TEXT, Row, blank
from blink_exp.benchmarks.rows import Published
from blink_exp.documents.records import Record

TOLERANCE = 0.05


class ChartQA(Published):
    """Relaxed accuracy over all, and over ``human`` and ``augmented`` questions."""

    name = "chartqa"
    headline = "accuracy"
    columns: ClassVar = {"type": OPTIONAL_LABEL, "question": TEXT, "answer": ANSWER_OR_ANSWERS}
    protocols = ("lmms_eval",)
    tokens: ClassVar = {"lmms_eval": 16}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        answer = row["answer"]
        if isinstance(answer, list):  # the original release has one answer in a list
            answer = answer[0] if answer else None
        sample_id = self.id(f"{i:05d}")
        category = (row["type"] or "unknown").removesuffix("_test")
        return Sample(sample_id, sample_id, image, row["question"], None if blank(answer) else str(answer), category)

    def prompt(self, sample: Sample) -> str:
        return sample.question + "\nAnswer the question with a single word."

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else relaxed(prediction.strip(), sample.answer)

    def score(self, records: list[Record]) -> dict[str, Score]:
        return accuracies(records)


def relaxed(prediction: str, target: str) -> bool:
    """Numbers within 5 % of a target that is not zero, else equal but for case. Years are numbers, so 1950 passes for 2010."""
    p, t = number(prediction), number(target)
    if p is not None and t:
        return abs(p - t) / abs(t) <= TOLERANCE
    return prediction.lower() == target.lower()


def number(text: str) -> float | None:
    """14% is 0.14; thousands separators and currency signs make it no number."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
