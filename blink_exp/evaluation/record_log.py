"""The answers of an evaluation on disk while it runs, from which a killed evaluation resumes.

One process writes ``records.part``. Where several answer together, each appends to its own ``records.rank<n>.part``, and none changes
``records.part``, so that all of them start from the same answers. Whoever opens the log next, with however many processes, takes the
answers of all these files over into ``records.part``.
"""

from __future__ import annotations

import json
from pathlib import Path

from blink_exp.benchmarks.base import Benchmark, Sample
from blink_exp.disk import writing
from blink_exp.documents import Record
from blink_exp.evaluation.identity import file_stamp
from blink_exp.evaluation.records import graded, write_lines, wrong_prediction
from blink_exp.files import parse_json, write_bytes

RECORD_LOG = "records.part"  # the file
RANKS = "records.rank*.part"
FILE = "image_file"  # key of a line: size and mtime of the image file of the sample


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
