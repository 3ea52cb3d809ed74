"""One record a sample: what was asked, answered and decided; read back to be scored again."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.errors import UserError
from blink_exp.sequence import Drop, Expand


def record(benchmark: Benchmark, sample: Sample, prediction: str, decisions: list[Any]) -> dict[str, Any]:
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
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def predicted(paths: str | list[str]) -> dict[str, dict[str, Any]]:
    """{id: record} of earlier runs: records.jsonl files or the folders that hold them; a pattern with * names many (the shards of a
    run).

    Raises UserError if there is no such file, a line is damaged, or two files answer one question differently.
    """
    files = [Path(p) for path in ([paths] if isinstance(paths, str) else paths) for p in (sorted(glob.glob(path)) or [path])]
    out: dict[str, dict[str, Any]] = {}
    for file in (f / "records.jsonl" if f.is_dir() else f for f in files):
        if not file.is_file():
            raise UserError(f"predictions={file} is not there; give the records.jsonl of a finished run, or its folder")
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                found = json.loads(line)
                same = out.setdefault(found["id"], found)["prediction"] == found["prediction"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(f"line {number} of {file} is no record with id and prediction; the file is damaged, run it again") from None
            if not same:
                raise UserError(f"{found['id']} is answered twice and differently, last in {file}; give the files of one run only")
    return out


def scored_again(benchmark: Benchmark, samples: list[Sample], earlier: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier predictions as records under the benchmark's rule of today. Raises UserError if they answer other samples."""
    known = {sample.id for sample in samples}
    foreign = [key for key in earlier if key not in known]
    if foreign:
        asked = f"{benchmark.name}{'/' + benchmark.split if hasattr(benchmark, 'split') else ''}"
        cure = "choose the benchmark and split that they were made on"
        raise UserError(f"{len(foreign)} of {len(earlier)} predictions are not of {asked}, first {foreign[0]}; {cure}")
    return [{"layers": []} | earlier[s.id] | graded(benchmark, s, earlier[s.id]["prediction"]) for s in samples if s.id in earlier]
