"""Small data sets in the published schema and the hub's layout, made here: a few rows and tiny images a benchmark.

``MAKERS[name](folder)`` writes the files of one benchmark; ``build(name, folder)`` makes the benchmark from its config, on that folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from support.encoded_images import encoded
from support.scripts import ROOT

CONF = ROOT / "conf" / "benchmark"


def write(folder: Path, split: str, rows: list[dict[str, Any]], config: str | None = None, shards: int = 1, schema: bool = True) -> Path:
    """Rows as ``<folder>/<config or data>/<split>-00000-of-0000N.parquet``, with images as the hub stores them: {bytes, path}.

    A value of the column ``image`` may be a PIL image, bytes (as they are, also broken ones) or None.
    ``schema``: with the "huggingface" metadata that makes the column an Image; without it is a plain struct.
    """
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet as pq

    subfolder = folder / (config or "data")
    subfolder.mkdir(parents=True, exist_ok=True)
    plain = [{k: cell(v, i) if k == "image" else v for k, v in row.items()} for i, row in enumerate(rows)]
    for shard in range(shards):
        part = datasets.Dataset.from_list(plain[shard * len(plain) // shards : (shard + 1) * len(plain) // shards])
        if "image" in part.column_names:
            part = part.cast_column("image", datasets.Image(decode=False)).cast_column("image", datasets.Image())
        file = subfolder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        part.to_parquet(str(file))
        if not schema:
            pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    return folder


def cell(image: Image.Image | bytes | None, i: int) -> dict[str, Any] | None:
    """What the hub has in an image column."""
    return None if image is None else {"bytes": image if isinstance(image, bytes) else encoded(image), "path": f"{i}.png"}


def picture(seed: int = 0, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Image.Image:
    """A tiny image, another one for each seed. ``size``: width, height."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def build(name: str, folder: Path, **changes: Any) -> Any:
    """The benchmark of conf/benchmark/<name>.yaml on a folder, with other settings; what it raises comes as it was raised."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    preset = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    inherited = [
        yaml.safe_load((CONF / f"{base}.yaml").read_text(encoding="utf-8")) for base in preset.pop("defaults", []) if base != "_self_"
    ]
    settings = {k: v for part in (*inherited, preset) for k, v in part.items()} | {"path": str(folder)} | changes
    root = {"judge": None, "seed": 0, "benchmark": settings}  # what a benchmark's config refers to
    try:
        return instantiate(OmegaConf.create(root, flags={"allow_objects": True}).benchmark, _convert_="all")
    except InstantiationException as error:
        raise (error.__cause__ or error) from None


MAKERS: dict[str, Callable[[Path], Path]] = {}


def maker(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Enters a maker under the name of its benchmark, which is the function's."""
    MAKERS[function.__name__] = function
    return function


@maker
def mme(folder: Path) -> Path:
    def pair(category, name, image, yes, no):
        row = {"question_id": f"{category}/{name}.png", "image": image, "category": category}
        return [row | {"question": f"{q} Please answer yes or no.", "answer": a} for q, a in ((yes, "Yes"), (no, "No"))]

    rows = [
        *pair("existence", "0001", picture(1), "Is there a dog in this image?", "Is there a cat in this image?"),
        *pair("count", "0001", picture(2, mode="L"), "Are there two dogs?", "Are there three dogs?"),
        *pair("code_reasoning", "0020", picture(3, mode="P"), "Is the output 'Hello'?", "Is the output 'World'?"),
    ]
    return write(folder, "test", rows, shards=2)


@maker
def pope(folder: Path) -> Path:
    rows = []
    for category in ("adversarial", "popular", "random"):
        for k, (thing, answer) in enumerate((("snowboard", "yes"), ("car", "no"), ("person", "yes"), ("fork", "no"))):
            source = f"COCO_val2014_{k // 2:012d}"
            question = {"question_id": str(k + 1), "question": f"Is there a {thing} in the image?", "answer": answer}
            rows.append({"id": str(len(rows)), **question, "image_source": source, "image": picture(k // 2), "category": category})
    return write(folder, "test", rows)


@maker
def gqa(folder: Path) -> Path:
    questions = [
        {"id": "201307251", "imageId": "n2", "question": "Is it overcast?", "answer": "no", "types": {"structural": "verify"}},
        {"id": "201640614", "imageId": "n1", "question": "Who is wearing the dress?", "answer": "woman", "types": {"structural": "query"}},
        {"id": "202225914", "imageId": "n2", "question": "What is the cup made of?", "answer": "plastic", "types": {"structural": "query"}},
    ]
    images = [{"id": "n1", "image": picture(1)}, {"id": "n2", "image": picture(2)}]
    write(folder, "testdev", questions, config="testdev_balanced_instructions")
    return write(folder, "testdev", images, config="testdev_balanced_images")


def ten(*answers: str) -> list[str]:
    """Ten people's answers: the given ones, the first filled up to ten."""
    return [answers[0]] * (10 - len(answers[1:])) + list(answers[1:])


def vqav2_row(question_id: int, question: str, answers: list[str] | None, kind: str | None = "other") -> dict[str, Any]:
    people = [{"answer": a, "answer_confidence": "yes", "answer_id": k + 1} for k, a in enumerate(answers or [])]
    row = {"question_id": question_id, "image_id": question_id // 1000, "question": question, "question_type": "what", "answer_type": kind}
    common = {"multiple_choice_answer": answers[0] if answers else None, "answers": people if answers else None}
    return row | common | {"image": picture(question_id // 1000)}


@maker
def vqav2(folder: Path) -> Path:
    rows = [
        vqav2_row(262148000, "Where is he looking?", ten("down", "up", "at table", "skateboard")),
        vqav2_row(262148001, "How many people are there?", ten("two", "2"), "number"),
        vqav2_row(393225000, "Is it sunny?", ten("yes"), "yes/no"),
    ]
    write(folder, "testdev", [vqav2_row(1000 + k, "What is this?", None, None) for k in range(3)])
    return write(folder, "validation", rows)


@maker
def vizwiz(folder: Path) -> Path:
    def row(split, k, question, answers, category):
        stem = f"VizWiz_{split}_{k:08d}"
        return {"question_id": stem, "image": picture(k), "question": question, "answers": answers, "category": category}

    rows = [
        row("val", 0, "Ok. There is another picture I hope it is a better one. What IS this?", ten("unanswerable", "mug"), "unanswerable"),
        row("val", 1, "What colour is it?", ten("red", "dark red", "Red."), "other"),
    ]
    write(folder, "test", [row("test", k, "What is this?", None, None) for k in range(3)])
    return write(folder, "val", rows)


@maker
def textvqa(folder: Path) -> Path:
    def row(k, question, answers, tokens):
        fields = {"question_id": 34602 + k, "image_id": f"0054c91397f2fe0{k}", "question": question}
        return fields | {"answers": answers, "ocr_tokens": tokens, "image": picture(k)}

    rows = [
        row(0, "what is the brand of this camera on DAKOTA street?", ten("dakota", "dakota digital"), ["DAKOTA", "DIGITAL", "Single-Use"]),
        row(1, "what does it say?", ten("stop"), []),
    ]
    write(folder, "test", [row(2, "what year?", [""] * 10, ["2009"])])
    return write(folder, "validation", rows)


@maker
def chartqa(folder: Path) -> Path:
    rows = [
        {"type": "human_test", "question": "How many food items are shown in the bar graph?", "answer": "14", "image": picture(1)},
        {"type": "augmented_test", "question": "What was the share in 2010?", "answer": "57.5%", "image": picture(2, mode="RGBA")},
        {"type": "augmented_test", "question": "Which country leads?", "answer": "Yemen", "image": picture(3)},
    ]
    return write(folder, "test", rows)


@maker
def ocrbench(folder: Path) -> Path:
    def row(k, dataset, question, kind, answer):
        return {"dataset": dataset, "question": question, "question_type": kind, "answer": answer, "image": picture(k)}

    rows = [
        row(0, "IIIT5K", "what is written in the image?", "Regular Text Recognition", ["CENTRE"]),
        row(1, "ct80", "what is written in the image?", "Irregular Text Recognition", ["RONALDO"]),
        row(2, "docVQA", "What is the date?", "Doc-oriented VQA", ["1/8/93", "January 8"]),
        row(3, "HME100k", "Please write out the expression in LaTeX.", "Handwritten Mathematical Expression Recognition", ["x ^ { 2 }"]),
    ]
    return write(folder, "test", rows)


@maker
def realworldqa(folder: Path) -> Path:
    choice = "\n\nA. Left.\nB. Right.\nPlease answer directly with only the letter of the correct option and nothing else."
    rows = [
        {"question": f"Where is the dog?{choice}", "answer": "B", "image": picture(1, (80, 60)), "image_path": "0.webp"},
        {"question": "How many cars? Please answer directly with a single word or number.", "answer": "3", "image": picture(2)},
        {"question": "Is it wet? Please answer directly with a single word or number.", "answer": "Yes", "image": picture(3)},
    ]
    return write(folder, "test", [{"image_path": "1.webp"} | row for row in rows])


def refcoco_row(answer: Any, bbox: Any, image: Image.Image | bytes | None, number: str = "000000000001_10") -> dict[str, Any]:
    """A row of RefCOCO as the hub has it, whose question asks for a caption. ``number``: of the COCO image and of the annotation."""
    question = "Please carefully observe the area circled in the image and come up with a caption for the area."
    row = {"question_id": number.partition("_")[2], "question": question, "answer": answer, "bbox": bbox}
    return row | {"segmentation": [1.0, 2.0, 3.0, 4.0], "iscrowd": 0, "file_name": f"COCO_train2014_{number}.jpg", "image": image}


@maker
def refcoco(folder: Path) -> Path:
    """A wide image with two objects, and a tall one."""
    rows = [
        refcoco_row(["left cup", "the blue one"], [0, 0, 24, 16], picture(1)),
        refcoco_row(["right cup"], [24, 8, 24, 16], picture(1), "000000000001_11"),
        refcoco_row(["man in red"], [4, 12, 16, 24], picture(2, (32, 48)), "000000000002_12"),
    ]
    return write(folder, "testA", rows)
