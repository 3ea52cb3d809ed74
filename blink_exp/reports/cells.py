"""The cells of a table, shared by Markdown, LaTeX, the page and the terminal. Marks: see ``legend``.

A document is the content of table.json: columns of published numbers, then one group of columns for each benchmark that was
measured. The two never share a column, and a cell that was not measured stays empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from blink_exp.documents.runs import Measure, PairedTest, PointRun
from blink_exp.documents.tables import MeasuredColumn, PublishedColumn, TableDocument, TableRow

PUBLISHED, SETTINGS = "published", "settings"  # groups that are no benchmark
DERIVED, SIGNIFICANT = "*", "†"
CONTROL = "control, not in the paper"
LEVEL = 0.05  # a delta whose p is below carries SIGNIFICANT
NOTHING = 1e-9  # points of a score; a standard error below is rounding


@dataclass(frozen=True)
class Column:
    """``group``: "published", a benchmark of the document's groups, or "settings" (this project's own)."""

    heading: str
    group: str


@dataclass(frozen=True)
class Cell:
    """``text``: the number as printed, with ± standard error; empty where there is none. ``best``: of its column, among measured rows.
    ``delta``: signed difference from the row's baseline, without brackets. ``mark``: "*" derived, "†" significant delta, or both.
    ``note``: one line for the pointer: samples, standard error, interval and p, or why nothing is here. ``command``: of the run behind."""

    text: str = ""
    best: bool = False
    delta: str = ""
    mark: str = ""
    note: str = ""
    command: str = ""


def columns(document: TableDocument) -> list[Column]:
    """Published columns, then settings, then those of each benchmark, in the document's order."""
    return [
        *(Column(heading, PUBLISHED) for heading in document["published_columns"]),
        *([Column("ours", SETTINGS)] if _has_settings(document) else []),
        *(Column(heading, group["benchmark"]) for group in document["groups"] for heading in group["columns"]),
    ]


def rows(document: TableDocument) -> list[tuple[str, list[Cell]]]:
    """(label, a cell for each of ``columns``) of every row."""
    best = {(g["benchmark"], h): _best(document, g["benchmark"], c) for g in document["groups"] for h, c in g["columns"].items()}
    return [
        (
            row["point"],
            [
                *(_published(row, heading, column) for heading, column in document["published_columns"].items()),
                *([_setting(row)] if _has_settings(document) else []),
                *(
                    _measured(row, g["benchmark"], heading, column, best[g["benchmark"], heading])
                    for g in document["groups"]
                    for heading, column in g["columns"].items()
                ),
            ],
        )
        for row in document["rows"]
    ]


def group_label(document: TableDocument, group: str) -> str:
    """A column's ``group`` in words: which model, benchmark and how many questions."""
    if group == PUBLISHED:
        return f"published: {document['published_on']}" if document.get("published_on") else "published"
    if group == SETTINGS:
        return "settings of this project"
    label = next(g["label"] for g in document["groups"] if g["benchmark"] == group)
    return f"measured: {label}"


def tag(document: TableDocument, column: Column) -> str:
    """A column's group in a word or two, for headings: published, this project, measured, or "measured, gqa" where there are several."""
    if column.group in (PUBLISHED, SETTINGS):
        return {PUBLISHED: "published", SETTINGS: "this project"}[column.group]
    return "measured" if len(document["groups"]) == 1 else f"measured, {column.group}"


def value(run: PointRun | None, where: str) -> float | None:
    """The number at a path such as "scores.accuracy" of a run; None if the run failed, or the number is missing or NaN."""
    if run is None or run.get("status") != "done":
        return None
    node: Any = run
    kind, _, name = where.partition(".")
    steps = [kind, name] if kind == "scores" else where.split(".")  # a score's name may hold a dot
    for step in steps:
        node = node.get(step) if isinstance(node, dict) else None
    return None if not isinstance(node, Real) or math.isnan(node) else float(node)


def error(run: PointRun, where: str) -> float | None:
    """The standard error of the score at ``where``; None where it is not known. 0 is not known: too few questions to have differed."""
    stderr = _stderr(run, where)
    return None if stderr is None or stderr < NOTHING else stderr


def _stderr(run: PointRun, where: str) -> float | None:
    kind, _, name = where.partition(".")
    stderr = (run.get("stderr") or {}).get(name) if kind == "scores" else None
    return None if stderr is None or math.isnan(stderr) else float(stderr)


def printed(number: float | str | None, digits: int | None) -> str:
    """A number with that many decimals, or as the paper prints it (None); empty for no number."""
    if number is None or isinstance(number, str) or digits is None:
        return "" if number is None else str(number)
    return "" if math.isnan(number) else f"{number:.{digits}f}"


def paired_test(row: TableRow, benchmark: str, heading: str) -> PairedTest:
    """The test of a row against its baseline, by a measured column; empty where there is none."""
    return ((row.get("deltas") or {}).get(benchmark) or {}).get(heading) or {}


def in_unit(test: PairedTest, name: Measure, per: float) -> float | None:
    """A measure of a paired test in its column's unit."""
    points = test.get(name)
    return None if points is None else points / per


def p_value(p: float | None) -> str:
    """Three decimals, or "< 0.001"; "" for None."""
    return "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def signed(delta: float | None, digits: int | None) -> str:
    """A difference as the papers print it: +2.50, -13.84; never -0.00. Without ``digits``, as many as it takes."""
    if delta is None or math.isnan(delta):
        return ""
    text = f"{delta:+.10g}" if digits is None else f"{delta:+.{digits}f}"
    return text.replace("-", "+") if float(text) == 0 else text


def _has_settings(document: TableDocument) -> bool:
    return any(row.get("settings") for row in document["rows"])


def _setting(row: TableRow) -> Cell:
    """The values of our configuration for this row, and their setting names."""
    settings = {where: v for where, v in (row.get("settings") or {}).items() if v is not None}
    return Cell(text=", ".join(str(v) for v in settings.values()), note=", ".join(f"{where}={v}" for where, v in settings.items()))


def _published(row: TableRow, heading: str, column: PublishedColumn) -> Cell:
    number, digits = (row.get("published") or {}).get(heading), column.get("digits")
    ends = (row.get("ranges") or {}).get(heading)
    if number is None and not ends:
        return Cell(note=CONTROL if row.get("control") else _why(row, heading))
    derived = heading in (row.get("derived") or [])
    delta = signed((row.get("published_deltas") or {}).get(heading), digits)
    notes = ["published", "not printed, follows from printed numbers" if derived else "", _against(row, delta)]
    notes.append((row.get("sources") or {}).get(heading, ""))
    text = " ".join(filter(None, [printed(number, digits), f"[{' to '.join(printed(end, digits) for end in ends)}]" if ends else ""]))
    return Cell(text, delta=delta, mark=DERIVED * derived, note="; ".join(filter(None, notes)))


def _why(row: TableRow, heading: str) -> str:
    """Why a published cell is empty. Conjectures appear only here."""
    missing, conjecture = (row.get("missing") or {}).get(heading), row.get("conjecture") or {}
    guess = conjecture.get(heading)
    basis = f" ({conjecture['basis']})" if guess is not None and conjecture.get("basis") else ""
    return "; ".join(
        filter(None, [missing or "not printed", f"conjecture, not a number of the paper: {guess}{basis}" if guess is not None else ""])
    )


def _measured(row: TableRow, benchmark: str, heading: str, column: MeasuredColumn, best: float | None) -> Cell:
    run = (row.get("runs") or {}).get(benchmark)
    if run is None:
        return Cell(note="not measured")
    command = run.get("command") or ""
    if run.get("status") != "done":
        return Cell(note=f"failed: {run.get('error') or 'no reason known'}", command=command)
    number, per, digits = value(run, column["value"]), column.get("per", 1), column.get("digits", 2)
    if number is None:
        return Cell(note="this run has no such number", command=command)
    stderr, error_digits = error(run, column["value"]), column.get("error_digits", 0)
    test = paired_test(row, benchmark, heading)
    delta = signed(in_unit(test, "delta", per), digits)
    p = test.get("p")
    notes = [
        f"{run['samples']} samples" if run.get("samples") is not None else "",
        f"{run['skipped_samples']} more skipped" if run.get("skipped_samples") else "",
        _error_in_words(run, column["value"]) if stderr is None else f"standard error {_spread(stderr / per, error_digits + 1)}",
        _against(row, delta),
        _tested(test, per, digits),
        f"against {test['against']}" if test.get("against") else "",
    ]
    significant = SIGNIFICANT * (p is not None and p < LEVEL)
    if test.get("against"):  # the number is itself a difference, so it carries the mark
        return Cell(text=signed(number / per, digits) + significant, note="; ".join(filter(None, notes)), command=command)
    return Cell(
        text=printed(number / per, digits) + ("" if stderr is None else f" ± {_spread(stderr / per, error_digits)}"),
        best=best is not None and _rounded(number / per, digits) == best,
        delta=delta,
        mark=significant,
        note="; ".join(filter(None, notes)),
        command=command,
    )


def _spread(stderr: float, digits: int) -> str:
    """A standard error with ``digits`` decimals, or more until it is not printed as 0."""
    tries = (printed(stderr, digits + more) for more in range(12))
    return next((text for text in tries if float(text)), "")


def _error_in_words(run: PointRun, where: str) -> str:
    """Why a number has no standard error; costs never have one."""
    if not where.startswith("scores."):
        return ""
    return "standard error not known" + ("" if _stderr(run, where) is None else " from so few questions")


def _against(row: TableRow, delta: str) -> str:
    return f"{delta} against {row['baseline']}" if delta and row.get("baseline") else ""


def _tested(test: PairedTest, per: float, digits: int | None) -> str:
    """The interval, p, count and smallest detectable difference behind a delta."""
    if test.get("p") is None:
        return ""
    low, high = signed(in_unit(test, "low", per), digits), signed(in_unit(test, "high", per), digits)
    interval = f"95 % interval {low} to {high}, " if low and high else ""
    p = p_value(test["p"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    least = printed(in_unit(test, "detectable", per), digits)
    return f"{interval}{p} ({test['test']}, {test['n']} shared samples)" + (f", detectable from {least}" if least else "")


def _best(document: TableDocument, benchmark: str, column: MeasuredColumn) -> float | None:
    """The best of a column's measured values as they are printed, so that what looks equal is equal; None where fewer than two differ.

    Scores are the better the higher. Costs have no best unless the column says ``better: low`` or ``high``: dropping more tokens always
    costs less."""
    better = column.get("better", "high" if column["value"].startswith("scores.") else None)
    values = [value((row.get("runs") or {}).get(benchmark), column["value"]) for row in document["rows"]]
    rounded = [_rounded(v / column.get("per", 1), column.get("digits", 2)) for v in values if v is not None]
    return None if better is None or len(set(rounded)) < 2 else max(rounded) if better == "high" else min(rounded)


def _rounded(number: float, digits: int | None) -> float:
    return number if digits is None else float(f"{number:.{digits}f}")
