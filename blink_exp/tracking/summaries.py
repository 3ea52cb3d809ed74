"""A table, figure or multirun as columns and rows. Published and measured numbers have separate columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import FigureDocument, MeasuredColumn, TableDocument
from blink_exp.reports import cells

Table = tuple[list[str], list[list[Any]]]


def table_rows(document: TableDocument) -> Table:
    """The columns and rows of a table: point; published values and the headings among them that were derived, not printed; per benchmark
    the measured values with standard errors, changes against the baseline and p-values, all but p in the column's unit. Unknown values
    are None."""
    published = list(document["published_columns"])
    columns = ["point", *(f"{h} (published)" for h in published), "published, not printed but derived"]
    for group in document["groups"]:
        mark = f"measured on {document['model']}{' (scale model)' if document['scale'] else ''}, {group['benchmark']}"
        for heading in group["columns"]:
            columns += [f"{heading}{part} ({mark})" for part in ("", " ±", " change", " p")]
    rows = []
    for row in document["rows"]:
        line: list[Any] = [row["point"], *(number(row["published"].get(h)) for h in published), ", ".join(row.get("derived", [])) or None]
        for group in document["groups"]:
            run = row["runs"].get(group["benchmark"])
            changes = row["deltas"].get(group["benchmark"], {})
            for heading, column in group["columns"].items():
                change = changes.get(heading, {})
                line += [*measured(run, column), in_unit(number(change.get("delta")), column), number(change.get("p"))]
        rows.append(line)
    return columns, rows


def measured(run: PointRun | None, column: MeasuredColumn) -> tuple[float | None, float | None]:
    """(value, standard error) of a column in a run, in the column's unit."""
    value = cells.value(run, column["value"])
    error = None if run is None or value is None else cells.error(run, column["value"])
    return in_unit(value, column), in_unit(error, column)


def in_unit(value: float | None, column: MeasuredColumn) -> float | None:
    return None if value is None else value / column.get("per", 1)


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def sweep_table(rows: list[PointRun]) -> Table:
    """One row per point of a multirun: label, status, scores with errors, samples, skipped samples, seconds."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("scores", {})))
    columns = ["point", "status", *(f"{n}{part}" for n in names for part in ("", " ±")), "samples", "skipped", "seconds", "error"]
    return columns, [
        [
            str(row["point"]),
            row["status"],
            *(number(values.get(n)) for n in names for values in (row.get("scores", {}), row.get("stderr", {}))),
            number(row.get("samples")),
            number(row.get("skipped_samples")),
            number(row.get("seconds")),
            row.get("error"),
        ]
        for row in rows
    ]


def figure_tables(document: FigureDocument) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """(key, columns, rows) of a figure's claims: each with its numbers and whether it holds here."""
    claims = document.get("claims") or []
    if claims:
        rows = [[claim["said"], claim["how"], text(claim.get("numbers")), text(claim.get("holds"))] for claim in claims]
        yield f"claims/{document['name']}", ["claim", "computed as", "numbers", "holds here"], rows


def text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return None if value is None else str(value)


def pictures_of(folder: Path, name: str, embedded: list[str]) -> Iterator[tuple[str, Path]]:
    """("figures/NAME/1", file), ... of the PNG files in ``folder``, and "figures/ID/1", ... of those of embedded figures."""
    for figure, figure_folder in [(name, folder), *((figure, folder / figure) for figure in embedded)]:
        for k, path in enumerate(sorted(figure_folder.glob("*.png"))):
            yield f"figures/{figure}/{k + 1}", path
