"""Published numbers, as the papers print them. Facts only; never measured here, never mixed with what is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.lru_cache
def published(paper: str) -> dict[str, Any]:
    """The reference file of a paper ("blink")."""
    return yaml.safe_load((Path(__file__).parent / f"{paper}.yaml").read_text())


def row(paper: str, table: str, label: str) -> dict[str, Any]:
    """The values of one row of a published table, None where a cell is lost or was not reported; ``derived`` lists the columns that
    follow from printed numbers without being printed."""
    for entry in published(paper)["tables"]:
        if entry["id"] == table:
            for candidate in entry["rows"]:
                if candidate["label"] == label:
                    return candidate["values"] | {"derived": candidate.get("derived", [])}
    raise KeyError(f"{paper}: {table} has no row {label!r}")
