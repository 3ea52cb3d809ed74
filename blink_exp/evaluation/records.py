"""Records: one per sample, with question, prediction and layer decisions, and the log of an evaluation that runs.

One process writes ``records.part``. Where several answer together, each appends to its own ``records.rank<n>.part``, and none changes
``records.part``, so that all of them start from the same answers. Whoever opens the log next, with however many processes, takes the
answers of all these files over into ``records.part``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.core.sequence import Drop, Expand
from blink_exp.disk import writing
from blink_exp.documents.records import LayerStep, Record
from blink_exp.documents.runs import BlinkSummary, LayerSummary
from blink_exp.errors import UserError, flat
from blink_exp.evaluation.identity import file_stamp
from blink_exp.files import brief, encodable, kind, parse_json, read_text, write_bytes

RECORDS = "records.jsonl"  # of a finished evaluation
RECORD_LOG = "records.part"  # the log of one that runs
RANKS = "records.rank*.part"  # of each of several processes
FILE = "image_file"  # key in a log: size and mtime of the image file of the sample
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


def summary(records: list[Record], visual: int) -> BlinkSummary:
    """Per layer: mean rho, shares of expansions and of effective drops, mean visual tokens."""
    layers: dict[int, list[LayerStep]] = {}
    for r in records:
        for step in r["layers"]:
            layers.setdefault(step["layer"], []).append(step)
    out: dict[int, LayerSummary] = {}
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
    return list(each(folder))


def each(folder: str | Path) -> Iterator[Record]:
    """The same one by one, for who needs the first few: a line is parsed when it is asked for."""
    path = Path(folder) / RECORDS
    if not path.is_file():
        raise UserError(f"{path} is not there; measure the point again")
    for _, record in numbered(path, wrong_layers, "measure the point again"):
        yield record


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


class RecordLog:
    """Append-only file of an evaluation's records.

    ``settings``: digest of everything that the records depend on. It is the first line; a file with another digest is overwritten.
    ``records``: {id: record} of the complete lines when the log was opened. ``rank``: of one process among several, whose answers go to
    a file of its own."""

    def __init__(self, path: Path, settings: str, rank: int | None = None):
        self.path, self.settings = path, settings
        self.files: dict[str, list[int] | None] = {}  # {sample id: ``file_stamp`` of its image}
        self.records: dict[str, Record] = {}
        self.stamps: dict[str, list[int] | None] = {}  # {sample id: ``file_stamp`` stored with its record}
        self.file = path  # the one that is appended to
        self.whole = len(self._read(path))  # bytes up to the end of its last complete line
        if rank is None:
            self._take_over()
        else:
            self.begin_rank(rank)
        self.earlier = len(self.records)  # answers of an earlier run

    @property
    def head(self) -> bytes:
        return json.dumps({"settings": self.settings}).encode() + b"\n"

    def _read(self, file: Path) -> bytes:
        """Reads the complete lines of a file, of which a later one replaces an earlier one with its id. Returns them, with the head; empty
        for a file of other settings."""
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        if not lines or lines[0] != self.head:
            return b""
        whole = [self.head]
        for line in lines[1:]:
            try:
                entry = parse_json(line.decode())
            except ValueError:
                break
            if not line.endswith(b"\n") or wrong_prediction(entry) or not isinstance(entry.get("question"), str):
                break
            whole.append(line)
            self.stamps[entry["id"]] = entry.pop(FILE, None)
            self.records[entry["id"]] = entry
        return b"".join(whole)

    def _take_over(self) -> None:
        """Moves the answers of ranks into ``records.part``."""
        others = rank_files(self.path)
        if not others:
            return
        before = self._read(self.path) or self.head
        known = set(before.splitlines(keepends=True))  # those of a take-over that was killed before it removed the files
        fresh = b"".join(line for other in others for line in self._read(other).splitlines(keepends=True) if line not in known)
        if fresh:
            write_bytes(self.path, before + fresh)
            self.whole = len(before) + len(fresh)
        with writing(self.path):
            for file in others:
                file.unlink(missing_ok=True)

    def address(self) -> dict[str, str]:
        """What another process needs to open the log."""
        return {"path": str(self.path.absolute()), "settings": self.settings}

    def begin_rank(self, rank: int) -> None:
        """From here on answers go to the file of ``rank``."""
        self.file, self.whole = self.path.with_name(RANKS.replace("*", str(rank))), 0

    def gather(self) -> None:
        """Takes over what all ranks have answered."""
        self.file, self.whole = self.path, len(self._read(self.path))
        self._take_over()

    def done(self, benchmark: Benchmark, samples: list[Sample]) -> dict[str, Record]:
        """{id: record} of the samples whose prompt and image file are unchanged."""
        self.files = {s.id: file_stamp(s.image) for s in samples}
        stored = [(s, self.records[s.id]) for s in samples if s.id in self.records and self.stamps[s.id] == self.files[s.id]]
        same = [(s, r) for s, r in stored if r["question"] == benchmark.prompt(s)]
        return {s.id: {**r, **graded(benchmark, s, r["prediction"])} for s, r in same}

    def adopt(self, records: list[Record], samples: list[Sample]) -> None:
        """Takes over the ``records`` of a finished run with the same settings and images, which are not asked for again."""
        self.records |= {r["id"]: r for r in records}
        self.stamps |= {s.id: file_stamp(s.image) for s in samples}

    def add(self, records: list[Record]) -> None:
        """Appends ``records`` and writes them to disk. The first call creates the file."""
        lines = write_lines([{**r, **({FILE: stamp} if (stamp := self.files.get(r["id"])) else {})} for r in records])
        data = (b"" if self.whole else self.head) + lines.encode()
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("r+b" if self.whole else "wb") as file:
                file.seek(self.whole)
                file.truncate()
                file.write(data)
        self.whole += len(data)

    def remove(self) -> None:
        """Removes the log, those of ranks included."""
        for file in files_of(self.path):
            file.unlink(missing_ok=True)


def rank_files(path: Path) -> list[Path]:
    """The files of ranks beside the log ``path``."""
    return sorted(path.parent.glob(RANKS))


def files_of(path: Path) -> list[Path]:
    """All files of the log ``path``, and one that was being written when its run was killed."""
    return [file for file in (path, *rank_files(path), path.with_name(path.name + ".part")) if file.is_file()]
