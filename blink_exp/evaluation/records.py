"""Records: one per sample, with question, prediction and layer decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.core.sequence import Drop, Expand
from blink_exp.documents import LayerStep, Record
from blink_exp.errors import UserError, flat
from blink_exp.files import brief, encodable, kind, parse_json, read_text

LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}  # line ends to str.splitlines, but not to JSON


def record(benchmark: Benchmark, sample: Sample, prediction: str, decisions: list[Any]) -> Record:
    """The record of a sample in records.jsonl. ``decisions``: the policy's decisions on it, by layer."""
    full: Record = graded(benchmark, sample, prediction) | {
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
    return full


def graded(benchmark: Benchmark, sample: Sample, prediction: str) -> Record:
    """The record fields that a benchmark computes for a prediction."""
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


def summary(records: list[Record], visual: int) -> dict[str, Any]:
    """Per layer: mean rho, shares of expansions and of effective drops, mean visual tokens."""
    layers: dict[int, list[LayerStep]] = {}
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


def write_lines(records: Sequence[Mapping[str, Any]]) -> str:
    """JSON Lines, one record per line."""
    return "".join(encodable(json.dumps(r, ensure_ascii=False)).translate(LINE_ENDS) + "\n" for r in records)


def read(folder: str | Path) -> list[Record]:
    """The records in the folder of a finished point. Raises UserError if the file is missing, truncated or damaged."""
    path = Path(folder) / "records.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is not there; measure the point again")
    return [record for _, record in numbered(path, wrong_layers, "measure the point again")]


def numbered(path: Path, wrong_with: Callable[[Any], str | None], cure: str) -> Iterator[tuple[int, Record]]:
    """(line number, record) of a JSON Lines file; blank lines are skipped. Raises UserError with the line number, the problem and
    ``cure`` if ``wrong_with`` returns a problem."""
    try:
        lines = read_text(path).split("\n")  # not splitlines: JSON may hold U+2028 as it is
    except ValueError as error:
        raise UserError(f"{path} is {error}; {cure}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            wrong = wrong_with(value)
        except ValueError as error:
            wrong = f"is {str(error).partition(' at line')[0]}"
        if wrong is not None:
            raise UserError(f"line {number} of {path} {wrong}; {cure}")
        yield number, value


def wrong_prediction(value: Any) -> str | None:
    """Why a value read from JSON is no record {"id": text, "prediction": text, ...}; None for one."""
    if not isinstance(value, dict):
        return f"is {kind(value)}, not a record with id and prediction"
    for key in ("id", "prediction"):
        if key not in value:
            return f"has no {key}, so it is no record with id and prediction"
    if not isinstance(value["id"], str):
        return f"has id={brief(value['id'])}, which is no text"
    if not isinstance(value["prediction"], str):
        return f"({flat(value['id'], 80)}) has prediction={brief(value['prediction'])}, which is no text"
    return wrong_layers(value)


def wrong_layers(value: Any) -> str | None:
    """Why a value read from JSON is not a record; None if it is one."""
    if not isinstance(value, dict):
        return f"is {kind(value)}, not a record"
    steps = value.get("layers", [])
    if not isinstance(steps, list) or not all(map(_is_step, steps)):
        return f"has layers={brief(steps)}, no list of decisions"
    return None


def _is_step(step: Any) -> bool:
    """Whether a value has the form of a decision written by ``record``."""
    number = (int, float)
    return (
        isinstance(step, dict)
        and isinstance(step.get("layer"), int)
        and isinstance(step.get("rho"), (*number, type(None)))
        and isinstance(step.get("decision"), str)
        and isinstance(step.get("effective"), bool)
        and isinstance(step.get("visual_tokens"), number)
    )
