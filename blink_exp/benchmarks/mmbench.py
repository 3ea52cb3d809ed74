"""MMBench in English and Chinese (Liu et al., 2023): multiple choice, asked once for every rotation of the options.

A question is right if every rotation of it is (circular evaluation). Rotations are rows of their own: row index modulo 1e6 is the question.
"""

from __future__ import annotations

import functools
import itertools
import random
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from blink_exp.benchmarks.base import Count, OpenImage, Sample, Score, group_by, mean
from blink_exp.benchmarks.cells import INTEGER, LABEL, OPTIONAL_TEXT, SPREADSHEET_TEXT, TEXT, Row
from blink_exp.benchmarks.letters import NONE, extract_letter, infer_choice, option_lines
from blink_exp.benchmarks.rows import Published, missing
from blink_exp.benchmarks.sheets import by_question, write_sheet
from blink_exp.documents.records import Record
from blink_exp.errors import UserError, nearest
from blink_exp.judge import Judge, Messages, message

CIRCLE = 1_000_000
ENGLISH = "Answer with the option's letter from the given choices directly."
INSTRUCTION = {
    ("llava", "en"): ENGLISH,
    ("llava", "cn"): "请直接回答选项字母。",
    ("lmms_eval", "en"): ENGLISH,
    ("lmms_eval", "cn"): "请直接使用所提供的选项字母作为答案回答。",
}
TRIES = 3  # of the judge, before a letter is drawn
MATCH = """Which option does this answer to a multiple-choice question mean? Judge by meaning, not by whether it is right.
Reply with one letter and nothing else: the letter of the option, or E if the answer means none of them or more than one.

Question: {question}
Options:
{options}
Answer: {answer}

Letter:"""


class MMBench(Published):
    """Circular accuracy in all, by category and by L2 category.

    What is no option differs. ``llava``: null, NaN, empty, "nan" and "none" in any case, and the first of them ends the list.
    ``lmms_eval``:
    null, NaN, empty and "nan" as it stands, each left out by itself; "None" is an option. A sample's ``fields`` hold the ``options`` that
    the prompt shows and the ``choices`` that MMBench's rules look for in an answer: all of A to D that are there, which for lmms_eval is
    whatever is not null, so that the text "nan" is looked for as well.

    Args:
        language: ``en`` or ``cn``: of the instruction, and which of lmms-eval's prompts.
        choice: what reads an answer that MMBench's three rules leave undecided: ``static``, the general letter extractor; ``judge``, a
            language model in three tries, then a letter drawn by ``seed``.
        judge: for ``choice=judge``.
    """

    name = "mmbench"
    headline = "accuracy"
    columns: ClassVar = {
        "index": INTEGER,
        "question": TEXT,
        "hint": SPREADSHEET_TEXT,
        "answer": OPTIONAL_TEXT,
        **dict.fromkeys("ABCD", SPREADSHEET_TEXT),
        "category": LABEL,
        "L2-category": LABEL,
    }
    optional: ClassVar = {"E": SPREADSHEET_TEXT}
    tokens: ClassVar = {"llava": 1024, "lmms_eval": 1024}
    answered_elsewhere = True

    def __init__(
        self,
        path: str,
        split: str,
        language: str = "en",
        choice: str = "static",
        judge: Judge | None = None,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(path, split, **settings)
        if language not in ("en", "cn"):
            raise UserError(f"benchmark.language={language} is not known; {nearest(str(language), ('en', 'cn'))}")
        if choice not in ("static", "judge"):
            raise UserError(f"benchmark.choice={choice} is not known; {nearest(str(choice), ('static', 'judge'))}")
        if choice == "judge" and judge is None:
            raise UserError("benchmark.choice=judge has no judge; add judge=openai, or use benchmark.choice=static")
        self.language, self.choice, self.judge, self.seed = language, choice, judge, seed
        self.name = "mmbench" if language == "en" else "mmbench_cn"

    @property
    def max_new_tokens(self) -> int:
        return 256 if (self.protocol, self.language) == ("lmms_eval", "cn") else self.tokens[self.protocol]

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        index = row["index"]
        options, choices = self.options(row)
        hint = None if null(row["hint"]) else str(row["hint"])
        fields = {"index": index, "question": row["question"], "hint": hint, "options": options, "choices": choices}
        fields |= {"l2": row["L2-category"]}
        answer = None if missing(row["answer"]) else row["answer"].strip().upper()
        name, question_id = self.id(f"{index:07d}"), self.id(f"{index % CIRCLE:06d}")
        return Sample(name, question_id, image, row["question"], answer, row["category"], fields=fields)

    def options(self, row: Row) -> tuple[dict[str, str], dict[str, str]]:
        """(options that the prompt shows, choices that an answer may name)."""
        present = {letter: str(row[letter]) for letter in "ABCDE" if not null(row.get(letter))}
        choices = {letter: text for letter, text in present.items() if letter != NONE}
        if self.protocol == "lmms_eval":
            return {letter: text for letter, text in present.items() if text not in ("", "nan")}, choices
        choices = {letter: text for letter, text in choices.items() if not none_word(text)}
        return {letter: choices[letter] for letter in itertools.takewhile(choices.__contains__, "ABCD")}, choices

    def prompt(self, sample: Sample) -> str:
        options, hint = option_lines(sample.fields["options"]), sample.fields["hint"]
        instruction = INSTRUCTION[self.protocol, self.language]
        if self.protocol == "llava":
            opening = [] if hint is None or none_word(hint) else [hint]
            return "\n".join([*opening, sample.question, *([options] if options else []), instruction])
        # lmms-eval's Chinese branch does not know "nan" for a missing hint and prints it: kept, so that scores compare.
        printed = hint is not None and (self.language == "cn" or hint != "nan")
        option_list = f"There are several options:\n{options}".rstrip("\n")
        return f"{f'{hint} ' if printed else ''}{sample.question} {option_list}\n\n{instruction}"

    def correct(self, sample: Sample, prediction: str) -> float | None:
        record: Record = {"id": sample.id, "answer": sample.answer, "prediction": prediction, "fields": sample.fields}
        correct: float | None = self.decided(record)["correct"]
        return correct

    def decided(self, record: Record) -> Record:
        """A record with ``letter``, ``chosen_by`` (``rules``, ``extractor``, ``nobody``) and ``correct``, decided without the judge."""
        choices = choices_of(record)
        prediction = record["prediction"].strip() if self.protocol == "lmms_eval" else record["prediction"]
        letter, decider = infer_choice(prediction, choices), "rules"
        if letter is None and self.choice == "static":
            letter, decider = extract_letter(prediction, "".join(choices)), "extractor"
        if letter is None:
            decider = "nobody"
        undecided = record["answer"] is None or (letter is None and self.choice == "judge")
        correct = None if undecided else letter == record["answer"]
        return {**record, "letter": letter, "chosen_by": decider, "correct": correct}

    def judged(self, records: list[Record]) -> list[Record]:
        """Records with ``letter``, ``chosen_by`` and ``correct``. The judge skips questions with a rotation that is already wrong."""
        decisions = [self.decided(record) for record in records]
        if self.judge is None or self.choice != "judge":
            return decisions
        wrong = {r["image_id"] for r in decisions if r["correct"] is not None and not r["correct"]}
        open_indices = [
            i for i, r in enumerate(decisions) if r["letter"] is None and r["answer"] is not None and r["image_id"] not in wrong
        ]
        verdicts = self.judge.verdicts([functools.partial(question_of, decisions[i]) for i in open_indices], read_letter, TRIES)
        for i, verdict in zip(open_indices, verdicts, strict=True):
            letter, decider = verdict.value, "judge"
            if letter is None and verdict.unparsed:
                letters = sorted(decisions[i]["fields"]["options"]) or [*"ABCD", NONE]
                letter, decider = random.Random(f"{self.seed}/{decisions[i]['id']}").choice(letters), "chance"
            correct = None if letter is None else letter == decisions[i]["answer"]
            update: Record = {"id": decisions[i]["id"], "letter": letter, "chosen_by": decider if letter else "nobody", "correct": correct}
            decisions[i] = {**decisions[i], **update, "judge": verdict.plain(self.judge.model)}
        return decisions

    def score(self, records: list[Record]) -> dict[str, Score]:
        """Scores per question; a question with an undecided rotation, or without its first one, is excluded and counted."""
        records = [r for r in self.judged(records) if r["answer"] is not None]
        if not records:
            return {}
        questions = [circular_result(rotations) for rotations in group_by(records, "image_id").values()]
        complete = [q for q in questions if q is not None]
        return {
            "accuracy": mean(q["correct"] for q in complete),
            **{name: mean(q["correct"] for q in rows) for name, rows in group_by(complete, "category").items()},
            **{f"l2_{name}": mean(q["correct"] for q in rows) for name, rows in group_by(complete, "l2").items()},
            **{f"chosen_by_{who}": Count(len(rows), len(records)) for who, rows in group_by(records, "chosen_by").items()},
            **({"left_out": Count(len(questions) - len(complete), len(questions))} if len(complete) < len(questions) else {}),
        }

    def submit(self, records: list[Record], folder: Path) -> list[Path]:
        """The server's workbook: index, question, A to D, prediction. None for a split with answers."""
        if all(r["answer"] is not None for r in records):
            return []
        header = ["index", "question", "A", "B", "C", "D", "prediction"]
        ids = [self.id(f"{index:07d}") for index in sorted(map(int, self.column("index")))]
        answers, state = by_question(records, ids, f"{self.name}/{self.split}")
        rows = [[r["fields"]["index"], r["fields"]["question"], *map(cells_of(r).get, "ABCD"), r["prediction"]] for r in answers.values()]
        return [write_sheet(folder / f"{self.name}_{self.split}_{state}.xlsx", header, rows)]


class QuestionResult(TypedDict):
    """``correct``: in every rotation; ``l2``: the L2 category."""

    correct: bool
    category: str
    l2: str


def null(cell: Any) -> bool:
    """Whether a cell is null or NaN, as pandas counts them."""
    return cell is None or cell != cell


def none_word(text: str) -> bool:
    """Whether LLaVA's script treats a text as missing. An empty cell is NaN in its table."""
    return text.lower() in ("", "nan", "none")


def choices_of(record: Record) -> dict[str, str]:
    """The options that MMBench's rules match against an answer."""
    fields: dict[str, dict[str, str]] = record["fields"]
    return fields.get("choices", fields["options"])


def cells_of(record: Record) -> dict[str, str]:
    """The options for the server's workbook, without the missing ones."""
    return {letter: text for letter, text in choices_of(record).items() if text != "nan"}


def circular_result(rotations: list[Record]) -> QuestionResult | None:
    """The result of a question from its rotations: correct if all are, wrong if one is; None if undecided or without the first rotation."""
    first = [r for r in rotations if r["fields"]["index"] < CIRCLE]
    hits = [r["correct"] for r in rotations]
    wrong = any(hit is not None and not hit for hit in hits)
    if not first or (None in hits and not wrong):
        return None
    return {"correct": not wrong, "category": first[0]["category"], "l2": first[0]["fields"]["l2"]}


def question_of(record: Record) -> Messages:
    fields = record["fields"]
    return message(MATCH.format(question=fields["question"], options=option_lines(fields["options"]), answer=record["prediction"]))


def read_letter(reply: str) -> str | None:
    """The letter of a judge's reply ``B``, ``B.`` or ``(B)``; None for anything else."""
    letter = reply.strip().removeprefix("(").rstrip(").")
    return letter if letter in ("A", "B", "C", "D", NONE) else None
