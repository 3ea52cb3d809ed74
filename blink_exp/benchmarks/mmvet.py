"""MM-Vet (Yu et al., 2023): 218 open questions that need several capabilities at once, marked from 0 to 1 by a language model.

The official evaluator takes the file that ``submit`` writes. The judge here is asked in words and with examples of our own, and marks shift
with the judge's version too, so its numbers are not the official evaluator's: compare methods under one judge, never with printed ones.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, ClassVar

from blink_exp.benchmarks.base import Count, OpenImage, Sample, Score, group_by, mean
from blink_exp.benchmarks.cells import KEY, OPTIONAL_TEXT, TEXT, TEXT_OR_TEXTS, Row
from blink_exp.benchmarks.rows import Published, missing
from blink_exp.benchmarks.sheets import by_question
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.files import write_json
from blink_exp.judge import Judge, Messages, message

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")  # recognition, text, knowledge, generation, space, arithmetic
NUMBERED = re.compile(r"v1_(\d+)")  # a question's id
REASONING = "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
MARK = """You mark answers to questions about images. You do not see the image: trust the reference.
Give a mark from 0.0 (all wrong) to 1.0 (all right) in steps of 0.1, for what of the reference the answer contains, whatever its wording.
In a reference, <AND> joins parts that are all needed, and <OR> joins alternatives of which one is enough.
The last row lacks its mark. Reply with that number and nothing else.

| question | reference | answer | mark |
|---|---|---|---|
| What does the sign forbid? | parking <AND> stopping | You may not park here. | 0.5 |
| What does the sign forbid? | parking <AND> stopping | Parking and stopping are both forbidden. | 1.0 |
| Which animal is on the left? | cat <OR> kitten | A small kitten | 1.0 |
| Which animal is on the left? | cat <OR> kitten | It is the dog. | 0.0 |
| What is 3 x 4 - 2? | 10 | 3 x 4 is 12, minus 2 is 11. | 0.0 |
| How do the men differ? | One is young with a red hat. The other is old with no hat. | One of them is wearing a red hat. | 0.4 |
| {question} | {reference} | {answer} |"""


class MMVet(Published):
    """The mean mark x 100 in all, for each capability (a question counts for all that it needs) and for each set of capabilities.

    ``judge``: None leaves the answers unmarked, and ``score`` empty.
    """

    name = "mmvet"
    headline = "total"
    columns: ClassVar = {"question_id": KEY, "question": TEXT, "answer": OPTIONAL_TEXT, "capability": TEXT_OR_TEXTS}
    tokens: ClassVar = {"llava": 1024, "lmms_eval": 1024}
    answered_elsewhere = True

    def __init__(self, path: str, split: str, judge: Judge | None = None, **settings: Any):
        super().__init__(path, split, **settings)
        self.judge = judge

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        labels = row["capability"].split(",") if isinstance(row["capability"], str) else row["capability"] or ()
        number(str(row["question_id"]))
        capabilities = [c for c in CAPABILITIES if c in [n.strip() for n in labels]]
        fields = {"question_id": str(row["question_id"]), "question": row["question"], "capabilities": capabilities}
        answer = None if missing(row["answer"]) else str(row["answer"])
        name = self.id(fields["question_id"])
        return Sample(name, name, image, row["question"], answer, "+".join(capabilities), fields=fields)

    def prompt(self, sample: Sample) -> str:
        return sample.question if self.protocol == "llava" else REASONING + sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None  # decided by a judge

    def judged(self, records: list[Record]) -> list[Record]:
        """Records with the judge's reply, and its mark as ``correct``. Unchanged without a judge."""
        judge = self.judge
        if judge is None:
            return records
        indices = [i for i, r in enumerate(records) if r["answer"] is not None]
        verdicts = judge.verdicts([functools.partial(question_of, records[i]) for i in indices], read_mark)
        marked = list(records)
        for i, verdict in zip(indices, verdicts, strict=True):
            marked[i] = marked[i] | {"correct": verdict.value, "judge": verdict.plain(judge.model)}
        return marked

    def score(self, records: list[Record]) -> dict[str, Score]:
        """Empty without a judge, or marks from an earlier one. ``unjudged``: answers without a mark, which no mean contains."""
        submitted = [r for r in self.judged(records) if "judge" in r]
        marked = [r | {"correct": r["judge"]["value"]} for r in submitted if r["judge"]["value"] is not None]
        if not submitted:
            return {}
        needs = {c: [r for r in marked if c in r["fields"]["capabilities"]] for c in CAPABILITIES}
        return {
            "total": mean(r["correct"] for r in marked),
            **{c: mean(r["correct"] for r in rows) for c, rows in needs.items() if rows},
            **{set_name(name): mean(r["correct"] for r in rows) for name, rows in group_by(marked, "category").items() if name},
            "unjudged": Count(len(submitted) - len(marked), len(submitted)),
        }

    def submit(self, records: list[Record], folder: Path) -> list[Path]:
        """Writes the official evaluator's input: {"v1_0": answer, ...}."""
        ids = [str(question_id) for question_id in self.column("question_id")]
        question_ids = sorted(filter(NUMBERED.fullmatch, ids) if any(map(NUMBERED.fullmatch, ids)) else ids, key=number)
        answers, state = by_question(records, map(self.id, question_ids), f"{self.name}/{self.split}")
        path = folder / f"mmvet_{self.split}_{state}.json"
        write_json(path, {r["fields"]["question_id"]: r["prediction"] for r in answers.values()})
        return [path]


def set_name(capabilities: str) -> str:
    """The score of a set of capabilities: ``ocr+math``; of one alone ``only_rec``, as ``rec`` is that of all questions that need it."""
    return capabilities if "+" in capabilities else f"only_{capabilities}"


def number(question_id: str) -> int:
    """n of ``v1_n``. Raises UserError for any other form, which the evaluator does not accept."""
    match = NUMBERED.fullmatch(question_id)
    if match is None:
        raise UserError(f"question_id={question_id} is not MM-Vet's (v1_0 to v1_217); give the published data set")
    return int(match[1])


def question_of(record: Record) -> Messages:
    """The judge's prompt: a table row without a mark. Line breaks and bars are replaced, as they would break the table."""

    def cell(text: str) -> str:
        return " ".join(text.replace("|", "/").split())

    return message(
        MARK.format(question=cell(record["fields"]["question"]), reference=cell(record["answer"]), answer=cell(record["prediction"]))
    )


def read_mark(reply: str) -> float | None:
    """A mark, alone, from 0.0 to 1.0; None for anything else."""
    return float(reply) if re.fullmatch(r"(0(\.\d+)?|1(\.0+)?)", reply.strip()) else None
