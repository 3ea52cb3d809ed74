"""Captions that a judge compares (HERO, Table III): which of two runs describes the images of MMStar better, by objects and as a whole.

    python evaluate.py benchmark=captions method=...                                             each of the two runs, then
    python -m blink_exp compare predictions=A/records.jsonl against=B/records.jsonl judge=openai

The judge is asked in the words of HERO's Figure 7, and for a table of a fixed form, which can be read. The paper does not give the prompt
for captions; that is chosen here.
"""

from __future__ import annotations

import functools
import random
import re
from typing import Any, ClassVar

from blink_exp.benchmarks.base import Count, OpenImage, Sample, Score, mean
from blink_exp.benchmarks.cells import INTEGER, Row
from blink_exp.benchmarks.rows import Published
from blink_exp.documents.records import Record
from blink_exp.errors import UserError
from blink_exp.judge import UNPARSED, Judge, Messages, message

DIMENSIONS = ("object_coverage", "object_correctness", "global_coverage", "global_correctness")
SIDES = ("ours", "against")
COMPARE = """You will be shown an image and two textual descriptions (A and B). Please carefully compare the two descriptions with the \
actual contents of the image. For each description, please rate the following four aspects on a scale from 1 (lowest) to 5 (highest).

Scoring dimensions:
- object_coverage (object-level coverage): How much does the description mention object-level details such as specific objects, their \
attributes, actions, or relationships? (Ignore whether the details are correct; focus on their quantity and presence.)
- object_correctness (object-level correctness): Of the object-level details mentioned, how many are actually correct and faithfully \
reflect the objects present in the image?
- global_coverage (global-level coverage): How much does the description mention global or scene-level information such as overall \
environment, background, spatial context, atmosphere, or general relationships? (Ignore correctness; focus on the quantity and richness.)
- global_correctness (global-level correctness): Of the global/scene-level details mentioned, how many are actually correct and \
faithfully reflect the overall scene in the image?

Description A:
{a}

Description B:
{b}

Please summarize the scores in this table, with a whole number in each cell of A and B. For each rating, briefly explain your reasoning:

| dimension | A | B | reason |
|---|---|---|---|
| object_coverage | | | |
| object_correctness | | | |
| global_coverage | | | |
| global_correctness | | | |"""


class Captions(Published):
    """Descriptions of images, which say nothing until ``compare`` sets two runs against each other.

    Args:
        request: what the model is asked. Not given in the paper; chosen.
        max_new_tokens: of a caption. Not given either.
        judge: None makes the pairs to be judged and no scores.
        seed: of which of two captions the judge sees as A.
    """

    name = "captions"
    headline = "ours_object_average"
    columns: ClassVar = {"index": INTEGER}
    protocols = ("own",)
    tokens: ClassVar = {"own": 256}
    answered_elsewhere = True

    def __init__(
        self,
        path: str,
        split: str,
        request: str = "Describe this image in detail.",
        max_new_tokens: int = 256,
        judge: Judge | None = None,
        seed: int = 0,
        protocol: str = "own",
        **settings: Any,
    ):
        super().__init__(path, split, protocol=protocol, **settings)
        if max_new_tokens < 1:
            raise UserError(f"benchmark.max_new_tokens={max_new_tokens} leaves no caption; use 1 or more")
        self.request, self.judge, self.seed, self.length = request, judge, seed, max_new_tokens

    @property
    def max_new_tokens(self) -> int:
        return self.length

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        name = self.id(f"{row['index']:04d}")
        return Sample(name, name, image, self.request, None, "caption")

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def correct(self, sample: Sample, prediction: str) -> float | None:
        return None

    def score(self, records: list[Record]) -> dict[str, Score]:
        """Of the records that ``compare`` makes; a single run's have no score."""
        return score_comparison([r for r in records if "judge" in r])

    def compare(self, ours: list[Record], against: list[Record]) -> list[Record]:
        """One record an image: the pair as the judge sees it, and with a judge its reply and marks."""
        return compare(ours, against, self.judge, {s.id: s.image for s in self.samples()}, self.seed)


def compare(
    ours: list[Record],
    against: list[Record],
    judge: Judge | None,
    images: dict[str, OpenImage],
    seed: int = 0,
) -> list[Record]:
    """Two runs' captions of the same images, set against each other. ``images`` opens the image of each record id.

    Raises UserError if the runs describe different images, or images that are not there.
    """
    records = pairs(ours, against, seed)
    foreign = [r["id"] for r in records if r["id"] not in images]
    if foreign:
        raise UserError(
            f"{len(foreign)} of {len(records)} captions are of other images, first {foreign[0]}; use the split they were made on"
        )
    if judge is None:
        return records
    verdicts = judge.verdicts([functools.partial(question_of, r, images[r["id"]]) for r in records], read_table)
    return [r | {"judge": verdict.plain(judge.model)} for r, verdict in zip(records, verdicts, strict=True)]


def pairs(ours: list[Record], against: list[Record], seed: int) -> list[Record]:
    """Captions of one image side by side, by id. Which is A is drawn for each image, from ``seed`` and its id alone: ``A`` says whose."""
    one, other = ({r["id"]: r for r in records} for records in (ours, against))
    odd = sorted(one.keys() ^ other.keys())
    if odd:
        raise UserError(f"{len(odd)} images are captioned in one of the two files only, first {odd[0]}; give two runs with the same limit")
    return [
        {
            "id": key,
            "image_id": one[key]["image_id"],
            "category": "caption",
            "ours": one[key]["prediction"],
            "against": other[key]["prediction"],
            "A": random.Random(f"{seed}/{key}").choice(SIDES),
            "layers": [],
        }
        for key in sorted(one)
    ]


def question_of(record: Record, image: OpenImage) -> Messages:
    captions = record["ours"], record["against"]
    first, second = captions if record["A"] == SIDES[0] else captions[::-1]
    return message(COMPARE.format(a=first, b=second), image())


def read_table(reply: str) -> dict[str, list[int]] | None:
    """{dimension: [A's mark, B's mark]} from a judge's table; None unless each dimension has one row with two marks from 1 to 5."""
    marks = {}
    for dimension in DIMENSIONS:
        rows = re.findall(rf"^\W*{dimension}\W*\|\s*([1-5])\s*\|\s*([1-5])\s*(?:\||$)", reply, flags=re.MULTILINE)
        if len(rows) != 1:
            return None
        marks[dimension] = [int(mark) for mark in rows[0]]
    return marks


def score_comparison(records: list[Record]) -> dict[str, Score]:
    """Mean marks (1 to 5) of ``compare``'s records: ``<side>_<dimension>``, ``<side>_object_average``, ``<side>_global_average``, and how
    many pairs the judge answered in no readable form (``unparsed``) or not at all (``unjudged``)."""
    if not records:
        return {}
    marked = [r for r in records if r["judge"]["value"] is not None]
    unparsed = sum(r["judge"].get("why") == UNPARSED for r in records)
    scores: dict[str, Score] = {}
    for side in SIDES:
        marks = [{d: r["judge"]["value"][d][0 if r["A"] == side else 1] for d in DIMENSIONS} for r in marked]
        of_side = {d: mean((m[d] for m in marks), scale=1) for d in DIMENSIONS}
        for part in ("object", "global"):
            names = [d for d in DIMENSIONS if d.startswith(part)]
            of_side[f"{part}_average"] = mean((sum(m[d] for d in names) / len(names) for m in marks), scale=1)
        scores |= {f"{side}_{name}": score for name, score in of_side.items()}
    missed = {"unparsed": unparsed, "unjudged": len(records) - len(marked) - unparsed}
    return scores | {name: Count(count, len(records)) for name, count in missed.items()}
