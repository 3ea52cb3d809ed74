"""Template values of a table or figure: its document as plain values, so that the templates hold no logic."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from blink_exp.documents.runs import PairedTest, PointRun, Provenance
from blink_exp.documents.tables import ColumnGroup, Document, FigureDocument, MeasuredColumn, TableDocument
from blink_exp.reports import cells, effects, legend
from blink_exp.reports.entry_types import (
    CellParts,
    DifferenceLine,
    Entry,
    FigureParts,
    Head,
    ProvenanceLine,
    RunLine,
    TableParts,
)
from blink_exp.reports.inline import picture

Embedded = list[tuple[FigureDocument, Path]]  # documents of figures and their folders

PAPERS = {"blink": "Blink", "hero": "HERO"}  # in their order on a page; what has no paper comes last
FILES = ("page.html", "table.md", "table.csv", "table.tex", "table.json", "figure.json", "data.json")  # linked where they are
VERDICTS = {True: ("yes", "✓ holds here"), False: ("no", "✗ does not hold here"), None: ("open", "? cannot be told here")}
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII")
SIDES = {True: ("scale", "scale model"), False: ("backbone", "named backbone"), None: ("none", "")}


def entry(
    document: Document, folder: Path, root: Path, embedded: Embedded, titles: Mapping[str, str] | None = None, within: str = ""
) -> Entry:
    """A table or figure for the templates. ``root``: the folder of the page; ``titles``: titles of the page's sections by id, to be linked;
    ``within``: id of the table that the figure is shown below. The report's folders name what the user set behind the model."""
    name = (f"{within}--" if within else "") + anchor(document["name"], folder)
    kind, runs = document["kind"], _runs(document.get("rows", []))
    if within:  # what it was drawn from stands with the table, unless it has points of its own
        runs = [run for row in document.get("rows") or [] if "series" in row or "x" in row for run in _runs([row])]
    model = document.get("model") or "" if runs or kind == "figure" else ""  # a recipe is measured on nothing
    side, word = SIDES[document.get("scale") if model else None]
    linked = [anchor(figure, folder) for figure in document.get("figures") or []]
    embedded_names = {where.name for _, where in embedded}
    head: Head = {
        "id": name,
        "name": document["name"],
        "title": document["title"],
        "short": document["title"].removeprefix(f"{PAPERS.get(document.get('paper') or '', '')}, "),
        "paper": document.get("paper") or "",
        "source": document.get("source") or "",
        "cited": citation(document.get("source") or ""),
        "side": side,
        "label": f"{model} ({word})" if word else model,
        "variant": folder.name.partition(",")[2].replace(",", " ") if folder.parent.parent == root else "",
        "error": document.get("error") if document["kind"] == "figure" else None,
        "note": document.get("note"),
        "command": document.get("command"),
        "footnotes": document.get("footnotes") or [],
        "provenance": _provenance(document.get("provenance") or {}),
        "files": _linked(FILES if folder != root else FILES[1:], folder, root),  # no page links to itself
        "runs": runs,
        "figures": [entry({**figure, "model": figure.get("model") or model}, where, root, [], within=name) for figure, where in embedded],
        "links": [
            (target, titles[target]) for target in linked if titles and target in titles and target.partition("--")[0] not in embedded_names
        ],
    }
    if document["kind"] == "figure":
        return {**head, **_figure(document, folder, root, name)}
    return {**head, **_table(document)}


def anchor(name: str, folder: Path) -> str:
    """The id of a section: the name of its table or figure, and its folder's: the model, and what else the user set."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{name}--{folder.name}")


def _linked(names: Iterable[str], folder: Path, root: Path) -> list[tuple[str, str]]:
    """(name, address from the page) of the files that are there."""
    return [(name, Path(os.path.relpath(folder / name, root)).as_posix()) for name in names if (folder / name).is_file()]


def _table(document: TableDocument) -> TableParts:
    """Template values of a table: columns, cells, legend and differences."""
    columns = cells.columns(document)
    side, _ = SIDES[document.get("scale")]
    kinds = [column.group if column.group in (cells.PUBLISHED, cells.SETTINGS) else side for column in columns]
    first = [k == 0 or columns[k - 1].group != column.group for k, column in enumerate(columns)]
    starts = [k for k, new in enumerate(first) if new]
    ends = [*starts[1:], len(columns)]
    return {
        "kind": "table",
        "columns": [(column.heading, kind, new) for column, kind, new in zip(columns, kinds, first, strict=True)],
        "groups": [
            (cells.group_label(document, columns[start].group), kinds[start], end - start) for start, end in zip(starts, ends, strict=False)
        ],
        "rows": [
            {"label": label, "cells": [_cell(*parts) for parts in zip(line, kinds, first, strict=True)]}
            for label, line in cells.rows(document)
        ],
        "effect_headings": effects.HEADINGS,
        "effects": effects.lines(document),
        "effect_meaning": effects.MEANING,
        "conclusion": document.get("conclusion") or [],
        "benchmarks": [group["benchmark"] for group in document["groups"]],
        "legend": [*legend.lines(document), *legend.fewer(document), *legend.skipped(document)],
        "differences": [
            line
            for group in document["groups"]
            for heading, column in group["columns"].items()
            for line in _tests(document, group, heading, column)
        ],
    }


def _cell(cell: cells.Cell, kind: str, first: bool) -> CellParts:
    number, _, error = cell.text.partition(" ± ")
    return {
        "number": number,
        "error": error,
        "star": cells.DERIVED if cells.DERIVED in cell.mark else "",
        "delta": cell.delta,
        "dagger": cells.SIGNIFICANT if cells.SIGNIFICANT in cell.mark else "",
        "best": cell.best,
        "kind": f"{kind} first" if first else kind,
        "title": "\n".join(filter(None, [cell.note, cell.command])),
    }


def _runs(rows: Iterable[Any]) -> list[RunLine]:
    """One line per run: of a table's rows by benchmark, or of a figure's points."""
    out = []
    for row in rows:
        runs = row.get("runs") or ({"": row} if "status" in row else {})
        out += [_run(row.get("point", ""), benchmark, run) for benchmark, run in runs.items()]
    return out


def _run(point: str, benchmark: str, run: PointRun) -> RunLine:
    return {
        "point": point,
        "benchmark": benchmark,
        "failed": run.get("status") != "done",
        "error": run.get("error") or "no reason known",
        "samples": run.get("samples"),
        "skipped": run.get("skipped_samples"),
        "seconds": duration(run.get("seconds")),
        "backbone": run.get("backbone") or "",
        "commit": legend.short(run.get("commit") or ""),
        "command": run.get("command") or "",
    }


def _tests(document: TableDocument, group: ColumnGroup, heading: str, column: MeasuredColumn) -> list[DifferenceLine]:
    """A line for each delta of a column, its interval placed (0 to 100, no difference at 50) on a scale that these lines share."""
    per, digits = column.get("per", 1), column.get("digits", 2)
    candidates = [(row, cells.paired_test(row, group["benchmark"], heading)) for row in document["rows"]]
    tests = [(row, test) for row, test in candidates if test.get("delta") is not None]
    reach = max((abs(value) for _, test in tests for value in _ends(test).values()), default=0) or 1
    return [
        {
            "heading": heading,
            "benchmark": group["benchmark"],
            "point": row["point"],
            "baseline": row.get("baseline") or "",
            "delta": cells.signed(test["delta"] / per, digits),
            "interval": [cells.signed(value / per, digits) for k, value in _ends(test).items() if k != "delta"],
            "p": cells.p_value(test.get("p")),
            "significant": (p := test.get("p")) is not None and p < cells.LEVEL,
            "test": test.get("test") or "",
            "n": test.get("n"),
            "at": {k: round(50 + 46 * value / reach, 2) for k, value in _ends(test).items()},
        }
        for row, test in tests
    ]


def _ends(test: PairedTest) -> dict[str, float]:
    """A difference and the ends of its interval, those that are known."""
    ends = {"low": test.get("low"), "delta": test.get("delta"), "high": test.get("high")}
    return {name: value for name, value in ends.items() if value is not None}


def _figure(document: FigureDocument, folder: Path, root: Path, name: str) -> FigureParts:
    """Template values of a figure: pictures, and the paper's claims with the computed numbers."""
    alt = f"{document['title']}. {document.get('caption') or ''}".strip()
    pictures = [
        (stem, picture(stem, names, folder, f"{name}-{k}-", alt))
        for k, (stem, names) in enumerate((document.get("pictures") or {}).items())
    ]
    return {
        "kind": "figure",
        "pictures": [
            {"markup": Markup(p.markup), "width": p.width, "files": _linked(p.files, folder, root)} for _, p in pictures if p is not None
        ],
        "lost": [stem for stem, p in pictures if p is None],
        "caption": document.get("caption") or "",
        "measured_on": document.get("measured_on") or "",
        "plots": document.get("plots") or "",
        "claim": document.get("claim") or "",
        "claims": [
            {
                "said": claim["said"],
                "how": claim.get("how") or "",
                "numbers": [(k, number(v)) for k, v in (claim.get("numbers") or {}).items()],
                "verdict": VERDICTS[claim.get("holds")],
            }
            for claim in document.get("claims") or []
        ],
    }


def number(value: object) -> str:
    """A number of a claim with the four digits that say something; empty for none."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 or value.is_integer() else f"{value:.4g}"
    return "" if value is None else str(value)


def citation(source: str) -> str:
    """The place in a paper: "Blink, Table 2" for blink-table-2. HERO numbers its tables in Roman."""
    match = re.fullmatch(r"([a-z]+)-(table|fig)-(\d+)", source)
    if match is None:
        return source
    paper, kind, count = match.groups()
    roman = paper == "hero" and kind == "table" and int(count) < len(ROMAN)
    return f"{PAPERS.get(paper, paper)}, {'Table' if kind == 'table' else 'Figure'} {ROMAN[int(count)] if roman else count}"


def duration(seconds: float | None) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min; empty for None."""
    if seconds is None:
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _provenance(provenance: Provenance) -> ProvenanceLine:
    return {
        "commit": legend.short(provenance.get("commit") or ""),
        "date": str(provenance.get("date") or "").partition(".")[0].replace("T", " "),
        "seconds": duration(provenance.get("seconds")),
        "seed": provenance.get("seed"),
        "versions": provenance.get("versions") or {},
    }
