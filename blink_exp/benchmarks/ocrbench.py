"""OCRBench (Liu et al., 2023): 1,000 questions on text in images, scored by counting hits."""

from __future__ import annotations

from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, group_by, mean, total, without_answer
from blink_exp.benchmarks.cells import ANSWER_OR_ANSWERS, LABEL, OPTIONAL_LABEL, TEXT, Row, blank
from blink_exp.benchmarks.rows import Published
from blink_exp.benchmarks.vqa import SHORT
from blink_exp.documents.records import Record

RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}  # to ASCII


class OCRBench(Published):
    """Hits by question type, of the six kinds of text recognition together, and ``final`` (0 to 1000 on the whole set).

    ``accuracy`` is hits in per cent of rows, which is what HERO prints (50.1 is 501 hits). ``llava`` is the OCRBench authors' own script
    for LLaVA-1.5: another prompt, and full-width letters stay what they are.
    """

    name = "ocrbench"
    headline = "accuracy"
    columns: ClassVar = {"dataset": OPTIONAL_LABEL, "question": TEXT, "question_type": LABEL, "answer": ANSWER_OR_ANSWERS}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 128}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        answers = [str(a) for a in answers if not blank(a)]
        fields = {"answers": answers, "dataset": row["dataset"]}
        sample_id = self.id(f"{i:05d}")
        return Sample(sample_id, sample_id, image, row["question"], answers[0] if answers else None, row["question_type"], fields=fields)

    def prompt(self, sample: Sample) -> str:
        return sample.question + SHORT if self.protocol == "llava" else sample.question.strip()

    def correct(self, sample: Sample, prediction: str) -> float | None:
        answers = sample.fields["answers"]
        formulas, fold = sample.fields["dataset"] == "HME100k", self.protocol == "lmms_eval"
        return hit(prediction, answers, formulas, fold) if answers else None

    def score(self, records: list[Record]) -> dict[str, Score]:
        answered = [r for r in records if r["correct"] is not None]
        hits = {kind: Score(sum(r["correct"] for r in rows), len(rows)) for kind, rows in group_by(answered, "category").items()}
        left_out = without_answer(records, answered)
        if not answered:
            return left_out
        recognition = [hits[kind] for kind in RECOGNITION if kind in hits]
        return {
            "accuracy": mean(r["correct"] for r in answered),
            "final": total(hits.values()),
            **({"Text Recognition": total(recognition)} if recognition else {}),
            **hits,
            **left_out,
        }


def hit(prediction: str, answers: list[str], formulas: bool = False, fold: bool = True) -> bool:
    """Whether a reference stands anywhere in the prediction. ``formulas``: case counts and spaces do not; else the other way round.

    ``fold``: full-width letters are ASCII ones, except in formulas."""
    text = plain(prediction, formulas, fold)
    return any(plain(answer, formulas, fold) in text for answer in answers)


def plain(text: str, formulas: bool, fold: bool) -> str:
    if formulas:
        return text.strip().replace("\n", "").replace(" ", "")
    return (text.translate(FULL_WIDTH) if fold else text).lower().strip().replace("\n", " ")
