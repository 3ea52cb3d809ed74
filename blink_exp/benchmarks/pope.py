"""POPE (Li et al., 2023): is there such an object in the image? Half yes, half no; the absent ones are drawn in three ways."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, group_by, mark_skipped, mean, without_answer
from blink_exp.benchmarks.cells import KEY, OPTIONAL_LABEL, OPTIONAL_TEXT, TEXT, Row
from blink_exp.benchmarks.rows import Published, missing
from blink_exp.benchmarks.vqa import SHORT
from blink_exp.documents.records import Record
from blink_exp.files import brief

CATEGORIES = ("random", "popular", "adversarial")
STATISTICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


class POPE(Published):
    """Five statistics in per cent by category, their means, and pooled over all rows; the yes ratio is that of the predictions.

    Papers differ in what they print. LLaVA's 85.9 is the mean of three F1s (the headline under llava), lmms-eval's one F1 over all rows
    (the headline under lmms_eval); HERO's vanilla rows agree with accuracy.
    """

    name = "pope"
    columns: ClassVar = {"question_id": KEY, "question": TEXT, "answer": OPTIONAL_TEXT, "image_source": KEY}
    optional: ClassVar = {"category": OPTIONAL_LABEL}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 128}

    def __init__(self, path: str, split: str, **settings: Any):
        super().__init__(path, split, **settings)
        self.headline = "f1" if self.protocol == "llava" else "pooled_f1"

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        category = row.get("category") or self.split  # the configuration Full has a split for each category
        if category not in CATEGORIES:
            raise ValueError(f"category={brief(category)} is not one of {', '.join(CATEGORIES)}")
        answer = None if missing(row["answer"]) else row["answer"].strip().lower()
        question_id, image_id = self.id(f"{category}/{row['question_id']}"), self.id(f"image/{row['image_source']}")
        sample = Sample(question_id, image_id, image, row["question"], answer, category)
        return sample if answer in ("yes", "no", None) else mark_skipped(sample, f"answer={brief(row['answer'])} is neither yes nor no")

    def prompt(self, sample: Sample) -> str:
        return (sample.question.strip() if self.protocol == "lmms_eval" else sample.question) + SHORT

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else yes_or_no(prediction, self.protocol) == sample.answer

    def score(self, records: list[Record]) -> dict[str, Score]:
        answered = [r for r in records if r["answer"] is not None]
        parts = {category: self.statistics(rows) for category, rows in group_by(answered, "category").items()}
        count = len(answered)
        # Without standard errors: the categories ask the same yes questions, so they are not independent.
        means = {s: Score(sum(p[s].value for p in parts.values()) / len(parts), count) for s in STATISTICS} if parts else {}
        pooled = {f"pooled_{s}": Score(v.value, count) for s, v in self.statistics(answered).items()} if parts else {}
        by_category = {f"{category}_{s}": v for category, part in parts.items() for s, v in part.items()}
        return {**means, **pooled, **by_category, **without_answer(records, answered)}

    def statistics(self, records: list[Record]) -> dict[str, Score]:
        return statistics([(yes_or_no(r["prediction"], self.protocol), r["answer"]) for r in records])


def yes_or_no(text: str, protocol: str = "llava") -> str:
    """llava: no if a word before the first full stop is No, no or not; anything else is yes. lmms_eval: exactly yes or no, else other."""
    if protocol == "lmms_eval":
        text = text.lower().strip()
        return text if text in ("yes", "no") else "other"
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def statistics(pairs: list[tuple[str, str]]) -> dict[str, Score]:
    """Of (predicted, true), with yes as the positive. An "other" is wrong, and neither a yes nor a no; a ratio over nothing is 0."""
    counts, n = Counter(pairs), len(pairs)
    true_yes, false_yes, false_no = counts["yes", "yes"], counts["yes", "no"], counts["no", "yes"]
    predicted_yes, actual_yes = true_yes + false_yes, true_yes + false_no
    precision = true_yes / predicted_yes if predicted_yes else 0.0
    recall = true_yes / actual_yes if actual_yes else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "accuracy": mean(predicted == true for predicted, true in pairs),
        "precision": Score(100 * precision, predicted_yes),
        "recall": Score(100 * recall, actual_yes),
        "f1": Score(100 * f1, n),
        "yes_ratio": mean(predicted == "yes" for predicted, _ in pairs),
    }
