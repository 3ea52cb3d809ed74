"""MMStar (Chen et al., 2024): 1,500 multiple-choice questions that need their image, six categories of three sub-axes each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, group_by, mean
from blink_exp.benchmarks.cells import INTEGER, LABEL, OPTIONAL_TEXT, TEXT, Row
from blink_exp.benchmarks.letters import extract_letter
from blink_exp.benchmarks.mme import SUFFIX
from blink_exp.benchmarks.rows import Published, missing
from blink_exp.documents.records import Record
from blink_exp.errors import UserError, nearest

RULES = ("lmms_eval", "paper")
OPENINGS = ("", "(", "option ", "the answer is ")  # what the MMStar authors' script lets stand before the letter


class MMStar(Published):
    """Three ways to average are in use, and they differ, as sub-axes have unequal sizes:

    ``average``: mean of the six categories' accuracies; ``average_l2``: mean of the 18 sub-axes' accuracies, and
    ``<category>_l2`` of a category's three (lmms-eval; HERO's printed cells fit it); ``accuracy``: over all questions (the MMStar paper).

    ``rule``: which letter an answer means: ``lmms_eval``, its general extractor; ``paper``, the MMStar authors' script.
    """

    name = "mmstar"
    headline = "average"
    columns: ClassVar = {"index": INTEGER, "question": TEXT, "answer": OPTIONAL_TEXT, "category": LABEL, "l2_category": LABEL}
    protocols = ("lmms_eval",)
    tokens: ClassVar = {"lmms_eval": 1024}

    def __init__(self, path: str, split: str, rule: str = "lmms_eval", **settings: Any):
        if rule not in RULES:
            raise UserError(f"benchmark.rule={rule} is not known; {nearest(str(rule), RULES)}")
        super().__init__(path, split, **settings)
        self.rule = rule

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        answer = None if missing(row["answer"]) else str(row["answer"]).strip().upper()
        name = self.id(f"{row['index']:04d}")
        category, axis = (str(row[column] or "none") for column in ("category", "l2_category"))
        return Sample(name, name, image, row["question"].strip(), answer, category, fields={"l2": axis})

    def prompt(self, sample: Sample) -> str:
        question = sample.question.replace(SUFFIX, "")  # as lmms-eval does, whose task was made from MME's
        return f"{question}\nAnswer with the option's letter from the given choices directly"  # no full stop: so it is published

    def correct(self, sample: Sample, prediction: str) -> float | None:
        if sample.answer is None:
            return None
        return opens_with(prediction, sample.answer) if self.rule == "paper" else extract_letter(prediction) == sample.answer

    def score(self, records: list[Record]) -> dict[str, Score]:
        records = [{**r, "l2": r["fields"]["l2"]} for r in records if r["correct"] is not None]
        categories = group_by(records, "category")
        accuracy = {name: mean(r["correct"] for r in rows) for name, rows in categories.items()}
        axes = {
            name: {axis: mean(r["correct"] for r in part) for axis, part in group_by(rows, "l2").items()}
            for name, rows in categories.items()
        }
        return {
            "average": average(accuracy.values()),
            "average_l2": average(score for scores in axes.values() for score in scores.values()),
            "accuracy": mean(r["correct"] for r in records),
            **accuracy,
            **{f"{name}_l2": average(scores.values()) for name, scores in axes.items()},
            **{f"{name}/{axis}": score for name, scores in axes.items() for axis, score in scores.items()},
        }


def opens_with(prediction: str, answer: str) -> bool:
    """The MMStar authors' rule: the answer opens with one of ``OPENINGS`` and the letter, in either case, whatever follows."""
    text, letter = (t.lower().strip().replace("\n", " ") for t in (prediction, answer))
    return any(text[: len(opening)] == opening and text[len(opening) : len(opening) + 1] == letter for opening in OPENINGS)


def average(scores: Iterable[Score]) -> Score:
    """The unweighted mean of scores of different samples."""
    scores = list(scores)
    if not scores:
        return Score(float("nan"), 0)
    stderr = sum((s.stderr or 0.0) ** 2 for s in scores) ** 0.5 / len(scores)
    return Score(sum(s.value for s in scores) / len(scores), sum(s.samples for s in scores), stderr)
