"""VQA accuracy: an answer against those of ten people, after the normaliser that the VQA, TextVQA and VizWiz servers share."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample, Score, accuracies
from blink_exp.benchmarks.cells import ANSWERS, KEY, TEXT, Row, blank
from blink_exp.benchmarks.rows import Published
from blink_exp.benchmarks.sheets import by_question
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.files import write_json

ServerAnswer = dict[str, str | int]  # of one question: its "question_id" or its "image", and "answer"

SHORT = "\nAnswer the question using a single word or phrase."
MARKS = r';/[]"{}()=+\_-><@`,?!'
THOUSANDS = re.compile(r"\d,+\d")
FULL_STOP = re.compile(r"\.(?!\d)")
FULL_STOPS = 32  # deleted at most: the published code passes re.UNICODE, which is 32, where re.sub expects a count
TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(i) for i, word in enumerate(TO_TEN)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
# The servers' table, by what it makes: each form with any one of its apostrophes left out becomes the form. Its entries with capitals
# (Im, Ive, Id've) are not here, as they meet lower-case text only.
FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {form[:i] + form[i + 1 :]: form for form in FORMS.split() for i, letter in enumerate(form) if letter == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the table's own slip, kept: the servers have it


def normalize(text: str, tokenize: bool = True) -> str:
    """An answer as the servers compare it: lower case, digits for number words, no articles, little punctuation.

    ``tokenize``: the first step of TextVQA, VizWiz and all submissions, which parts 's from its word; lmms-eval skips it for VQAv2.
    """
    if tokenize:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = unpunctuated(one_line(text))
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def unpunctuated(text: str) -> str:
    """A mark that touches a space anywhere in the text is deleted everywhere, any other becomes a space; 1,000 deletes them all."""
    thousands = THOUSANDS.search(text) is not None
    out = text
    for mark in MARKS:
        out = out.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    return FULL_STOP.sub("", out, count=FULL_STOPS)


def vqa_accuracy(prediction: str, answers: list[str], normalization: str = "always", tokenize: bool = True) -> float:
    """Mean over the people i of min(1, people other than i who gave the prediction / 3); with ten: 0, 0.3, 0.6, 0.9, 1.

    ``normalization``: ``always`` normalises both sides, ``tokenize`` or not. ``unless_equal`` is the server's script on a submission: the
    prediction is normalised before it is handed in; the people's answers are compared as they are if all gave one answer, else both sides
    pass the normaliser without its first step.
    """
    if normalization == "always":
        prediction, answers = normalize(prediction, tokenize), [normalize(a, tokenize) for a in answers]
    else:
        prediction, answers = normalize(prediction), [one_line(a) for a in answers]
        if len(set(answers)) > 1:
            prediction, answers = normalize(prediction, tokenize=False), [normalize(a, tokenize=False) for a in answers]
    n, m = len(answers), answers.count(prediction)
    # Whole numbers, so that 0.3 is 0.3: m people see m - 1 others who agree with the prediction, n - m see m.
    return (m * min(m - 1, 3) + (n - m) * min(m, 3)) / (3 * n)


class TenAnswers(Published):
    """Base class of VQAv2, TextVQA and VizWiz.

    ``normalization``: ``always``, or ``unless_equal`` (see ``vqa_accuracy``). A row's ``fields`` hold the people's answers.
    """

    headline = "accuracy"
    columns: ClassVar = {"question_id": KEY, "question": TEXT, "answers": ANSWERS}
    untokenized: ClassVar[tuple[str, ...]] = ()  # protocols that skip the normaliser's first step

    def __init__(self, path: str, split: str, normalization: str = "always", **settings: Any):
        if normalization not in ("always", "unless_equal"):
            raise UserError(f"benchmark.normalization={normalization} is not known; use always or unless_equal")
        super().__init__(path, split, **settings)
        self.normalization = normalization

    def build_sample(self, row: Row, image_id: object, image: OpenImage, category: str | None, **fields: Any) -> Sample:
        """A row as a sample; its answer is the most common one, its ``fields`` hold all ten and the given ``fields``.

        A single blank answer is kept; a row with only blank answers has none."""
        answers = row["answers"]
        nonblank = [answer for answer in answers if not blank(answer)]
        common = Counter(nonblank).most_common(1)[0][0] if nonblank else None
        fields |= {"answers": answers if nonblank else []}
        image_key = self.id(f"image/{image_id}")
        return Sample(self.id(row["question_id"]), image_key, image, row["question"], common, category or "all", fields=fields)

    def correct(self, sample: Sample, prediction: str) -> float | None:
        answers = sample.fields["answers"]
        return vqa_accuracy(prediction, answers, self.normalization, self.protocol not in self.untokenized) if answers else None

    def score(self, records: list[Record]) -> dict[str, Score]:
        return accuracies(records)


class Served(TenAnswers):
    """TenAnswers with test splits that are scored by a server."""

    answered_elsewhere = True

    def entry(self, question_id: str | int, answer: str) -> ServerAnswer:
        """One element of the server's list."""
        raise TypeError(f"{type(self).__name__} has no entry()")

    def submit(self, records: list[Record], folder: Path) -> list[Path]:
        """Writes the server's JSON list with every question of the split once; a run that is not whole says so in the file's name.

        Nothing is written for a split that has answers. Raises UserError if a record is of another split, or a question has two.
        """
        if not records or any(r["answer"] is not None for r in records):
            return []
        question_ids = {self.id(question_id): question_id for question_id in self.column("question_id")}
        answers, state = by_question(records, question_ids, f"{self.name}/{self.split}")
        file = folder / f"{self.name}_{self.split}_{state}.json"
        write_json(file, [self.entry(question_ids[key], normalize(r["prediction"])) for key, r in answers.items()])
        return [file]
