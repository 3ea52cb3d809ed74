"""MME (Fu et al., 2023): yes/no questions in pairs an image, fourteen subtasks (benchmark protocols: docs/benchmarks.md)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from blink_exp.benchmarks.base import Count, OpenImage, Sample, Score, group_by, mark_skipped, mean, total
from blink_exp.benchmarks.cells import KEY, LABEL, OPTIONAL_TEXT, TEXT, Row
from blink_exp.benchmarks.rows import Published, missing
from blink_exp.benchmarks.vqa import SHORT
from blink_exp.documents.records import Record
from blink_exp.files import brief

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUFFIX = " Please answer yes or no."  # of the published questions; the prompt has another one in its place


class MME(Published):
    """Subtask score = accuracy + accuracy-plus; perception (10 subtasks), cognition (4) and total are sums."""

    name = "mme"
    headline = "total"
    columns: ClassVar = {"question_id": KEY, "question": TEXT, "answer": OPTIONAL_TEXT, "category": LABEL}
    tokens: ClassVar = {"llava": 128, "lmms_eval": 16}

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        answer = None if missing(row["answer"]) else row["answer"].strip().lower().replace(".", "")
        image_id = self.id(f"{row['category']}/{row['question_id']}")
        sample = Sample(self.id(f"{i:05d}"), image_id, image, row["question"], answer, row["category"])
        return sample if answer in ("yes", "no", None) else mark_skipped(sample, f"answer={brief(row['answer'])} is neither yes nor no")

    def prompt(self, sample: Sample) -> str:
        """``llava``: no space stays before the line break where the published question has two before its instruction."""
        if self.protocol == "llava":
            return sample.question.replace(SUFFIX, "").strip() + SHORT
        return sample.question.strip().replace(SUFFIX, "") + SHORT

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None if sample.answer is None else yes_or_no(prediction, letters=self.protocol == "lmms_eval") == sample.answer

    def score(self, records: list[Record]) -> dict[str, Score]:
        return score_pairs(records, PERCEPTION, COGNITION)


def yes_or_no(text: str, letters: bool = False) -> str:
    """MME's rule: exact yes or no, else what the first four characters contain, else other.

    ``letters``: lmms-eval's, which takes all full stops out first, and a lone y or n for an answer; LLaVA's script does neither."""
    text = text.lower().strip()
    if letters:
        text = text.replace(".", "")
    if text in ("yes", "no"):
        return text
    if letters and text in ("y", "n"):
        return "yes" if text == "y" else "no"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"


def score_pairs(records: list[Record], perception: tuple[str, ...], cognition: tuple[str, ...]) -> dict[str, Score]:
    """MME's scores. A pair is a subtask's two questions on an image. One with an answer missing (a broken image, a limit) is left out of
    accuracy-plus and of accuracy alike."""
    images = [pair for rows in group_by(records, "category").values() for pair in group_by(rows, "image_id").values()]
    pairs = [pair for pair in images if len(pair) == 2 and all(r["correct"] is not None for r in pair)]
    paired = [r for pair in pairs for r in pair]
    scores = {subtask: subtask_score(rows) for subtask, rows in group_by(paired, "category").items()}
    sums = [total(scores[s] for s in group if s in scores) for group in (perception, cognition)]
    left_out = {"incomplete_images": Count(len(images) - len(pairs), len(images))} if len(pairs) < len(images) else {}
    return {
        "perception": sums[0],
        "cognition": sums[1],
        "total": total(sums),
        "accuracy": mean(r["correct"] for r in paired),
        **scores,
        **left_out,
    }


def subtask_score(rows: list[Record]) -> Score:
    """Accuracy + accuracy-plus; the standard error is that of the mean over images of what an image contributes."""
    gains = np.array(
        [50 * sum(r["correct"] for r in pair) + 100 * all(r["correct"] for r in pair) for pair in group_by(rows, "image_id").values()]
    )
    stderr = float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else None
    return Score(float(gains.mean()), len(rows), stderr)
