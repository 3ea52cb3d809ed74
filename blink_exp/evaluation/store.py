"""Reads the files of earlier runs, which may have been copied, edited or truncated, and validates them.

A damaged entry is reported once and counts as missing: the point is measured again.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blink_exp.documents.records import Record
from blink_exp.documents.runs import Metrics, SharedRun
from blink_exp.errors import UserError
from blink_exp.evaluation.records import read
from blink_exp.files import read_object
from blink_exp.settings.values import read_settings

log = logging.getLogger(__name__)
NUMBER = (int, float)
EMPTY = type(None)
# keys of metrics.json that tables, sweeps and lists read
METRICS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "scores": dict,
    "samples": int,
    "skipped": list,
    **{key: (str, EMPTY) for key in ("backbone", "benchmark", "protocol", "headline")},
    "seconds": (*NUMBER, EMPTY),
    "blink": (dict, EMPTY),
}
PACE: dict[str, type | tuple[type, ...]] = {"backbone": str, "benchmark": str, "seconds": NUMBER, "samples": int}


def finished(folder: Path) -> bool:
    """Whether a training in the store is finished. A damaged metrics.json is reported and counts as unfinished."""
    try:
        return (folder / "metrics.json").is_file() and isinstance(read_object(folder / "metrics.json", {}, "it is trained again"), dict)
    except UserError as error:
        name_once(str(error))
        return False


def metrics_of(folder: Path, needed: dict[str, type | tuple[type, ...]] = METRICS) -> Metrics | None:
    """The metrics.json of a finished point; None if it is missing or damaged. ``needed``: {required key: type}."""
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    try:
        metrics: Any = read_object(path, needed, "the point is measured again")
        for name, score in metrics.get("scores", {}).items():
            if not isinstance(score, dict) or not all(isinstance(score.get(key), (*NUMBER, EMPTY)) for key in ("value", "stderr")):
                raise UserError(f"{path} has no value and standard error of {name}; the point is measured again")
    except UserError as error:
        name_once(str(error))
        return None
    return metrics  # type: ignore[no-any-return]


def point_of(folder: Path) -> tuple[Metrics, list[Record]] | None:
    """(metrics, records) of a finished point; None if its metrics.json, records.jsonl or config.yaml is damaged."""
    metrics = metrics_of(folder)
    if metrics is None:
        return None
    try:
        records = read(folder)
        if metrics["samples"] and not records:
            raise UserError(f"{folder / 'records.jsonl'} is empty; the point is measured again")
        if (folder / "config.yaml").is_file():
            read_settings(folder / "config.yaml", "the point is measured again")
    except (UserError, OSError) as error:
        name_once(str(error))
        return None
    return metrics, records


def paces(paths: Iterable[Path]) -> list[tuple[Path, Metrics]]:
    """(folder, metrics) of the finished points among the metrics.json ``paths`` that hold their duration."""
    entries = ((path.parent, metrics_of(path.parent, PACE)) for path in paths)
    return [(folder, metrics) for folder, metrics in entries if metrics is not None]


@functools.lru_cache(maxsize=4096)
def name_once(text: str) -> None:
    """Logs a problem with a file once, although a sweep reads the file several times."""
    log.warning(text)


SHARED_NOTE = "together.json"  # in a point's folder until it is measured: number of points that ran together, and seconds


def pop_shared_note(folder: Path) -> SharedRun | None:
    """Reads and removes the note that ``shared_runs.run_together`` left for a point."""
    path = folder / SHARED_NOTE
    if not path.is_file():
        return None
    try:
        note: Any = read_object(path, {"points": int, "seconds": NUMBER}, "the time of the run together is left out")
    except UserError as error:
        name_once(str(error))
        note = None
    path.unlink()
    shared: SharedRun | None = note if note and note["points"] > 0 else None
    return shared
