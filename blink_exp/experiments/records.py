"""One record a sample: what was asked, answered and decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.disk import writing
from blink_exp.experiments.identity import file_stamp
from blink_exp.sequence import Drop, Expand

FILE = "image_file"  # beside a record while it is kept: size and time of the file that its image was read from
LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}  # str.splitlines would end a record at them, JSON does not


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


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a finished point, by its folder."""
    return [json.loads(line) for line in (Path(folder) / "records.jsonl").read_text(encoding="utf-8").splitlines()]


class Kept:
    """The records of an evaluation in ``path`` as they come, so that one that was killed goes on.

    ``settings``: a digest of all that they depend on. It is the file's first line; a file with another one is started anew. ``records``:
    {id: record} of what is there, less a last line that was cut off."""

    def __init__(self, path: Path, settings: str):
        self.path, self.head = path, json.dumps({"settings": settings}).encode() + b"\n"
        self.files: dict[str, list[int] | None] = {}  # {id of a sample: what ``file_stamp`` says of its image}
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
        """{id: record} of the samples that were asked as they would be now, on an image whose file has not changed."""
        self.files = {s.id: file_stamp(s.image) for s in samples}
        known = [(s, dict(self.records[s.id])) for s in samples if s.id in self.records]
        same = [(s, r) for s, r in known if r.pop(FILE, None) == self.files[s.id] and r["question"] == benchmark.prompt(s)]
        return {s.id: r | graded(benchmark, s, r["prediction"]) for s, r in same}

    def add(self, records: list[dict[str, Any]]) -> None:
        """Appends; on the disk when this returns. The first call makes the file."""
        lines = write_lines([r | ({FILE: stamp} if (stamp := self.files.get(r["id"])) else {}) for r in records])
        data = (b"" if self.whole else self.head) + lines.encode()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.whole else "wb") as file:
                file.seek(self.whole)
                file.truncate()
                file.write(data)
        self.whole += len(data)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
