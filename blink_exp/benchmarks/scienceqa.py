"""ScienceQA's questions with an image (Lu et al., 2022): multiple choice with two to five options."""

from __future__ import annotations

import re
import string
from typing import ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, group_by, mean
from blink_exp.benchmarks.cells import OPTIONAL_LABEL, OPTIONAL_NUMBER, OPTIONAL_TEXT, TEXT, TEXTS, Row
from blink_exp.benchmarks.letters import option_lines
from blink_exp.benchmarks.rows import Published
from blink_exp.documents.records import Record

LETTERS = "ABCDE"  # that llava reads; lmms_eval goes on as far as there are options


class ScienceQA(Published):
    """Accuracy in all and by subject. Both protocols ask alike: the prepared file of LLaVA's evaluation has lettered lines too."""

    name = "scienceqa"
    headline = "accuracy"
    columns: ClassVar = {"question": TEXT, "choices": TEXTS, "answer": OPTIONAL_NUMBER, "hint": OPTIONAL_TEXT}
    optional: ClassVar = {"subject": OPTIONAL_LABEL}
    tokens: ClassVar = {"llava": 1024, "lmms_eval": 16}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        letters = LETTERS if self.protocol == "llava" else string.ascii_uppercase
        options = dict(zip(letters, row["choices"], strict=False))
        index = -1 if row["answer"] is None else row["answer"]
        answer = letters[index] if 0 <= index < len(options) else None  # one not offered is none
        fields = {"options": options, "hint": row["hint"] or None}
        category = row.get("subject") or "no subject"
        return Sample(self.id(f"{i:05d}"), self.id(f"{i:05d}"), image, row["question"], answer, category, fields=fields)

    def prompt(self, sample: Sample) -> str:
        context = f"Context: {sample.fields['hint']}\n" if sample.fields["hint"] else ""
        options = option_lines(sample.fields["options"])
        return f"{context}{sample.question}\n{options}\nAnswer with the option's letter from the given choices directly."

    def correct(self, sample: Sample, prediction: str) -> float | None:
        if sample.answer is None:
            return None
        if self.protocol == "llava":
            return letter_of(prediction) == sample.answer
        text, reference = prediction.strip(), sample.answer.lower()
        return text.lower() == reference or (text[:1].isupper() and text[1:2] == "." and text[0].lower() == reference)

    def score(self, records: list[Record]) -> dict[str, Score]:
        records = [r for r in records if r["correct"] is not None]
        return {
            "accuracy": mean(r["correct"] for r in records),
            **{subject: mean(r["correct"] for r in rows) for subject, rows in group_by(records, "category").items()},
        }


def letter_of(text: str) -> str | None:
    """LLaVA's rule: the letter alone, or before ". " at the start, or in exactly one "The answer is X" with a character behind it.

    That character may be any but a line break: the published pattern does not escape its full stop. It may not be missing."""
    if text in tuple(LETTERS):
        return text
    if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
        return text[0]
    letters = re.findall(r"The answer is ([A-Z]).", text)
    return letters[0] if len(letters) == 1 else None
