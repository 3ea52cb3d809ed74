"""Published numbers, as the papers print them. Facts only; never measured here, never mixed with what is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml


@functools.lru_cache
def published(paper: str) -> dict[str, Any]:
    """The reference file of a paper ("blink", "hero")."""
    return yaml.safe_load((Path(__file__).parent / f"{paper}.yaml").read_text())


def entry(paper: str, table: str, label: str, **params: Any) -> dict[str, Any]:
    """One row of a published table, whole. ``params``: settings that it must have, for tables that print a label for several models.

    Raises KeyError where no row or more than one fits.
    """
    rows = [r for t in published(paper)["tables"] if t["id"] == table for r in t["rows"] if r["label"] == label]
    found = [r for r in rows if all(r["params"].get(k) == v for k, v in params.items())]
    if len(found) != 1:
        said = f"{label!r}" + "".join(f", {k}={v}" for k, v in params.items())
        raise KeyError(f"{paper}: {table} has {len(found) or 'no'} row{'s' * (len(found) > 1)} {said}")
    return found[0]


def row(paper: str, table: str, label: str, **params: Any) -> dict[str, Any]:
    """The values of one row (see ``entry``), None where a cell is lost or was not reported; ``derived`` lists the columns that follow
    from printed numbers without being printed."""
    found = entry(paper, table, label, **params)
    return found["values"] | {"derived": found.get("derived", [])}
