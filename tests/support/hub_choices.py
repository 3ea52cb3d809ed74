"""Fixtures of the multiple-choice and judged benchmarks in the published schema, entered beside those of ``hub``; a DUTS folder; and what
their tests share: records of an evaluation, a judge that replies from a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from blink_exp.evaluation.records import graded
from blink_exp.judge import UNPARSED, Verdict
from support.hub import MAKERS as MAKERS  # with those entered here
from support.hub import maker, picture, write


def circle(base: int, options: list[str], right: int, question: str, image: Image.Image, **row) -> list[dict]:
    """The rows of one MMBench question: its options in every rotation, absent ones as the string "nan"."""
    n = len(options)
    rows = []
    for k in range(n):
        turned = [options[(i + k) % n] for i in range(n)] + ["nan"] * (4 - n)
        cells = {letter: turned[i] for i, letter in enumerate("ABCD")}
        answer = "ABCD"[(right - k) % n]
        rows.append({"index": base + k * 1_000_000, "question": question, "hint": "nan", "answer": answer, **cells, "image": image} | row)
    return rows


def _mmbench(folder: Path, config: str, questions: tuple[str, str], hint: str) -> Path:
    kind = {"source": "made here", "split": "dev", "comment": "nan"}
    shape = {"category": "attribute_recognition", "L2-category": "finegrained_perception (instance-level)"}
    relation = {"category": "spatial_relationship", "L2-category": "relation_reasoning"}
    rows = [
        *circle(241, ["circle", "square", "star", "cross"], 2, questions[0], picture(0), hint=hint, **kind, **shape),
        *circle(252, ["left", "right"], 0, questions[1], picture(1), **kind, **relation),
    ]
    write(folder, "dev", rows, config, shards=2)
    return write(folder, "test", [r | {"answer": "nan", "split": "test"} for r in rows], config)


@maker
def mmbench(folder: Path) -> Path:
    return _mmbench(folder, "en", ("What shape is it?", "Where is it?"), "The picture shows one shape.")


@maker
def mmbench_cn(folder: Path) -> Path:
    return _mmbench(folder, "cn", ("这是什么形状？", "它在哪里？"), "图中只有一个形状。")


@maker
def scienceqa(folder: Path) -> Path:
    rest = {"task": "closed choice", "grade": "grade4", "topic": "t", "category": "c", "skill": "s", "lecture": "", "solution": ""}
    rows = [
        {
            "question": "Which is hot?",
            "choices": ["ice", "steam", "snow"],
            "answer": 1,
            "hint": "Look at it.",
            "subject": "natural science",
        },
        {"question": "Which is north?", "choices": ["up", "down"], "answer": 0, "hint": "", "subject": "social science"},
    ]
    return write(folder, "test", [r | rest | {"image": picture(i)} for i, r in enumerate(rows)], "ScienceQA-IMG")


@maker
def mmstar(folder: Path) -> Path:
    axes = [("math", "geometry"), ("math", "geometry"), ("math", "statistical reasoning"), ("logical reasoning", "diagram reasoning")]
    rows = [
        {
            "index": i,
            "question": f"What is {i}?\nOptions: A: one, B: two, C: three, D: four",
            "image": picture(i),
            "answer": "ABCD"[i],
            "category": category,
            "l2_category": axis,
            "meta_info": {"source": "made here", "split": "val", "image_path": f"{i}.png"},
        }
        for i, (category, axis) in enumerate(axes)
    ]
    return write(folder, "val", rows)


@maker
def captions(folder: Path) -> Path:
    return mmstar(folder)


@maker
def mmvet(folder: Path) -> Path:
    rows = [
        {"question": "What is x?", "answer": "-1 <AND> -5", "capability": "ocr,math"},
        {"question": "Who | is\nthis?", "answer": "a cat <OR> a kitten", "capability": "rec"},
        {"question": "What does it say?", "answer": "stop", "capability": "ocr,math"},
    ]
    return write(
        folder, "test", [r | {"question_id": f"v1_{i}", "image": picture(i), "image_source": "made here"} for i, r in enumerate(rows)]
    )


def duts(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    """A DUTS-TE folder: for each name a random jpg and its (height, width) bool mask as png."""
    for kind in ("Image", "Mask"):
        (folder / f"DUTS-TE-{kind}").mkdir(parents=True)
    for i, (name, mask) in enumerate(masks.items()):
        picture(i, (mask.shape[1], mask.shape[0])).save(folder / "DUTS-TE-Image" / f"{name}.jpg")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "DUTS-TE-Mask" / f"{name}.png")
    return folder


def records(benchmark, predictions):
    """As an evaluation makes them. ``predictions``: by sample number, or a function of the sample."""
    samples = benchmark.samples()
    texts = map(predictions, samples) if callable(predictions) else predictions
    rows = [graded(benchmark, s, prediction) for s, prediction in zip(samples, texts, strict=True)]
    return json.loads(json.dumps(rows))  # scores must be computable from what a file holds


def values(scores):
    return {name: score.value for name, score in scores.items()}


class Script:
    """A judge that replies from a list, and remembers what it was asked."""

    model = "scripted"

    def __init__(self, *replies):
        self.replies, self.asked, self.tries = list(replies), [], None

    def verdicts(self, requests, parse, tries=2, advance=None):
        self.tries = tries
        out = []
        for request in requests:
            self.asked.append(request())
            reply = self.replies.pop(0)
            value = None if reply is None else parse(reply)
            out.append(Verdict(None, None, "status 500") if reply is None else Verdict(value, reply, "" if value is not None else UNPARSED))
        return out
