"""MMStar (Chen et al., 2024): 1,500 multiple-choice questions that need their image, six categories of three sub-axes each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from blink_exp.benchmarks.base import Sample, Score, by, mean
from blink_exp.benchmarks.cells import LABEL, OPTIONAL_TEXT, TEXT, WHOLE
from blink_exp.benchmarks.letters import extract_letter
from blink_exp.benchmarks.rows import Published, missing


class MMStar(Published):
    """Three ways to average are in use, and they differ, as sub-axes have unequal sizes:

    ``average``: mean of the six categories' accuracies; ``average_l2``: mean of the 18 sub-axes' accuracies, and
    ``<category>_l2`` of a category's three (lmms-eval; HERO's printed cells fit it); ``accuracy``: over all questions (the MMStar paper).
    """

    name = "mmstar"
    headline = "average"
    columns: ClassVar = {"index": WHOLE, "question": TEXT, "answer": OPTIONAL_TEXT, "category": LABEL, "l2_category": LABEL}
    protocols = ("lmms_eval",)
    tokens: ClassVar = {"lmms_eval": 1024}

    def sample(self, i: int, row: dict[str, Any], image: Any) -> Sample:
        answer = None if missing(row["answer"]) else row["answer"].strip()
        name = self.id(f"{int(row['index']):04d}")
        return Sample(name, name, image, row["question"].strip(), answer, row["category"], fields={"l2": row["l2_category"]})

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\nAnswer with the option's letter from the given choices directly"  # no full stop: so it is published

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else extract_letter(prediction) == sample.answer

    def score(self, records: list[dict[str, Any]]) -> dict[str, Score]:
        records = [r | {"l2": r["fields"]["l2"]} for r in records if r["correct"] is not None]
        categories = by(records, "category")
        accuracy = {name: mean(r["correct"] for r in rows) for name, rows in categories.items()}
        axes = {
            name: {axis: mean(r["correct"] for r in part) for axis, part in by(rows, "l2").items()} for name, rows in categories.items()
        }
        return {
            "average": average(accuracy.values()),
            "average_l2": average(score for scores in axes.values() for score in scores.values()),
            "accuracy": mean(r["correct"] for r in records),
            **accuracy,
            **{f"{name}_l2": average(scores.values()) for name, scores in axes.items()},
            **{f"{name}/{axis}": score for name, scores in axes.items() for axis, score in scores.items()},
        }


def average(scores: Iterable[Score]) -> Score:
    """The unweighted mean of scores of different samples."""
    scores = list(scores)
    if not scores:
        return Score(float("nan"), 0)
    stderr = sum((s.stderr or 0.0) ** 2 for s in scores) ** 0.5 / len(scores)
    return Score(sum(s.value for s in scores) / len(scores), sum(s.samples for s in scores), stderr)
