"""One record a sample: what was asked, answered and decided; read back to be scored again."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.errors import UserError
from blink_exp.sequence import Drop, Expand

LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}  # str.splitlines would end a record at them, JSON does not
# of a metrics.json: what changes predictions; not where and how fast they were made (device, batch_size), so that shards may differ in it
MADE_WITH = ("backbone", "method", "layers", "dtype", "attn_implementation", "quantization", "pad", "system_prompt", "revision", "seed")


def record(benchmark: Benchmark, sample: Sample, prediction: str, decisions: list[Any]) -> dict[str, Any]:
    """A sample's line in records.jsonl. ``decisions``: what a policy recorded of it, by layer."""
    return graded(benchmark, sample, prediction) | {
        "layers": [
            {
                "layer": d.scan.layer,
                "image": d.scan.image,
                "rho": None if d.scan.rho is None else round(d.scan.rho, 5),
                "region": d.decision.region if isinstance(d.decision, Expand) else d.scan.region,
                "decision": type(d.decision).__name__.lower(),
                "effective": not isinstance(d.decision, Drop) or d.scan.expanded,
                "visual_tokens": d.visual_tokens,
            }
            for d in decisions
        ],
    }


def graded(benchmark: Benchmark, sample: Sample, prediction: str) -> dict[str, Any]:
    """What a benchmark says of a prediction."""
    return {
        "id": sample.id,
        "image_id": sample.image_id,
        "category": sample.category,
        "question": benchmark.prompt(sample),
        "answer": sample.answer,
        "prediction": prediction,
        "correct": benchmark.correct(sample, prediction),
        "fields": sample.fields,
        "regions": sample.regions,
    }


def summary(records: list[dict[str, Any]], visual: int) -> dict[str, Any]:
    """By layer: mean rho, shares of expansions and of drops that had something to drop, mean visual tokens."""
    layers: dict[int, list[dict[str, Any]]] = {}
    for r in records:
        for step in r["layers"]:
            layers.setdefault(step["layer"], []).append(step)
    out = {}
    for layer, steps in sorted(layers.items()):
        rho = [s["rho"] for s in steps if s["rho"] is not None]
        out[layer] = {
            "rho": round(sum(rho) / len(rho), 4) if rho else None,
            "expand": sum(s["decision"] == "expand" for s in steps) / len(steps),
            "drop": sum(s["decision"] == "drop" and s["effective"] for s in steps) / len(steps),
            "visual_tokens": sum(s["visual_tokens"] for s in steps) / len(steps),
        }
    return {"visual_tokens_of_the_image": visual, "layers": out}


def write_lines(records: list[dict[str, Any]]) -> str:
    """One line of JSON a record."""
    return "".join(json.dumps(r, ensure_ascii=False).translate(LINE_ENDS) + "\n" for r in records)


class Kept:
    """The records of an evaluation in ``path`` as they come, so that one that was killed goes on.

    ``settings``: a digest of all that they depend on. It is the file's first line; a file with another one is started anew. ``records``:
    {id: record} of what is there, less a last line that was cut off."""

    def __init__(self, path: Path, settings: str):
        self.path, self.head = path, json.dumps({"settings": settings}).encode() + b"\n"
        self.records: dict[str, dict[str, Any]] = {}
        self.whole = 0  # bytes up to the end of the last whole line
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if not lines or lines[0] != self.head:
            return
        self.whole = len(self.head)
        for line in lines[1:]:
            try:
                found = json.loads(line)
                self.records[found["id"]] = found
            except (ValueError, KeyError, TypeError):
                return
            if not line.endswith(b"\n"):
                del self.records[found["id"]]
                return
            self.whole += len(line)

    def done(self, benchmark: Benchmark, samples: list[Sample]) -> dict[str, dict[str, Any]]:
        """{id: record} of the samples that were asked as they would be now."""
        found = [(s, self.records[s.id]) for s in samples if s.id in self.records]
        return {s.id: r | graded(benchmark, s, r["prediction"]) for s, r in found if r["question"] == benchmark.prompt(s)}

    def add(self, records: list[dict[str, Any]]) -> None:
        """Appends; on the disk when this returns. The first call makes the file."""
        with self.path.open("r+b" if self.whole else "wb") as file:
            file.seek(self.whole)
            file.truncate()
            self.whole += file.write((b"" if self.whole else self.head) + write_lines(records).encode())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def predicted(paths: str | list[str]) -> dict[str, dict[str, Any]]:
    """{id: record} of earlier runs: records.jsonl files or the folders that hold them; a pattern with * names many (the shards of a
    run).

    Raises UserError if there is no such file, none holds a record, a line is damaged, or two files answer one question differently.
    """
    out: dict[str, dict[str, Any]] = {}
    files = files_of(paths)
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                found = json.loads(line)
                same = out.setdefault(found["id"], found)["prediction"] == found["prediction"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(f"line {number} of {file} is no record with id and prediction; the file is damaged, run it again") from None
            if not same:
                raise UserError(f"{found['id']} is answered twice and differently, last in {file}; give the files of one run only")
    if not out:
        raise UserError(f"predictions={files[0] if files else '[]'} holds no record; give the records.jsonl of a finished run")
    return out


def files_of(paths: str | list[str]) -> list[Path]:
    """The files that ``predicted`` reads. Raises UserError if one is not there."""
    named = [Path(p) for path in ([paths] if isinstance(paths, str) else paths) for p in (sorted(glob.glob(path)) or [path])]
    files = [f / "records.jsonl" if f.is_dir() else f for f in named]
    for file in files:
        if not file.is_file():
            raise UserError(f"predictions={file} is not there; give the records.jsonl of a finished run, or its folder")
    return files


def made_with(paths: str | list[str]) -> dict[str, Any]:
    """What predictions were made with, by the metrics.json beside each records.jsonl: MADE_WITH and ``visual_tokens_of_the_image``. Empty
    where a file lacks it.

    Raises UserError if two files were made differently, or a metrics.json is damaged.
    """
    files = files_of(paths)
    beside = {f: f.with_name("metrics.json") for f in files if f.name == "records.jsonl"}
    found = [(file, _made_with(metrics)) for file, metrics in beside.items() if metrics.is_file()]
    for file, made in found[1:]:
        first, before = found[0]
        for key in made.keys() | before.keys():
            if made.get(key) != before.get(key):
                here, there = f"{file} was made with {key}={made.get(key)}", f"{first} with {before.get(key)}"
                raise UserError(f"{here}, {there}; give the files of one run only")
    return found[0][1] if found and len(found) == len(set(files)) else {}


def _made_with(metrics: Path) -> dict[str, Any]:
    try:
        said = json.loads(metrics.read_text())
        made = {key: said[key] for key in MADE_WITH if key in said}
        tokens = (said.get("blink") or {}).get("visual_tokens_of_the_image")
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{metrics} is damaged; remove it, and what the predictions were made with is left out") from None
    return made if tokens is None else made | {"visual_tokens_of_the_image": tokens}


def scored_again(benchmark: Benchmark, samples: list[Sample], earlier: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier predictions as records under the benchmark's rule of today. Raises UserError if they answer other samples, or the
    same ones asked in other words."""
    known = {sample.id for sample in samples}
    foreign = [key for key in earlier if key not in known]
    if foreign:
        asked = f"{benchmark.name}{'/' + benchmark.split if hasattr(benchmark, 'split') else ''}"
        cure = "choose the benchmark and split that they were made on"
        raise UserError(f"{len(foreign)} of {len(earlier)} predictions are not of {asked}, first {foreign[0]}; {cure}")
    for sample in (s for s in samples if "question" in earlier.get(s.id, {})):
        if earlier[sample.id]["question"] != benchmark.prompt(sample):
            now = f"{benchmark.name} asks now (protocol {benchmark.protocol})"
            cure = "choose the protocol and the copy of the data that the predictions were made with"
            raise UserError(f"{sample.id} was asked in other words than {now}; {cure}")
    return [{"layers": []} | earlier[s.id] | graded(benchmark, s, earlier[s.id]["prediction"]) for s in samples if s.id in earlier]
