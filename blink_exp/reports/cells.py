"""What stands in every cell of a table and what its marks mean; the one place that Markdown, LaTeX, the page and the terminal share.

A document is what a table leaves behind (table.json): columns of published numbers, then one group of columns for each benchmark that was
measured. The two never share a column, and a cell that was not measured stays empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

PUBLISHED, SETTINGS = "published", "settings"  # groups that are no benchmark
DERIVED, SIGNIFICANT = "*", "†"
LEVEL = 0.05  # a delta whose p is below carries SIGNIFICANT


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


def columns(document: dict[str, Any]) -> list[Column]:
    """Published columns, then settings, then those of each benchmark, in the document's order."""
    return [
        *(Column(heading, PUBLISHED) for heading in document["published_columns"]),
        *([Column("ours", SETTINGS)] if _has_settings(document) else []),
        *(Column(heading, group["benchmark"]) for group in document["groups"] for heading in group["columns"]),
    ]


def rows(document: dict[str, Any]) -> list[tuple[str, list[Cell]]]:
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


def group_label(document: dict[str, Any], group: str) -> str:
    """A column's ``group`` in words: which model, benchmark and how many questions."""
    if group == PUBLISHED:
        return f"published: {document['published_on']}" if document.get("published_on") else "published"
    if group == SETTINGS:
        return "settings of this project"
    label = next(g["label"] for g in document["groups"] if g["benchmark"] == group)
    return f"measured: {label}"


def tag(document: dict[str, Any], column: Column) -> str:
    """A column's group in a word or two, for headings: published, this project, measured, or "measured, gqa" where there are several."""
    if column.group in (PUBLISHED, SETTINGS):
        return {PUBLISHED: "published", SETTINGS: "this project"}[column.group]
    return "measured" if len(document["groups"]) == 1 else f"measured, {column.group}"


def gaps(document: dict[str, Any]) -> list[str]:
    """Why cells are empty, for readers without a pointer: what the paper does not print and for which reason, and what failed."""
    reasons: dict[str, list[str]] = {}
    for row in document["rows"]:
        for heading in document["published_columns"]:
            why = (row.get("missing") or {}).get(heading)
            if why and (row.get("published") or {}).get(heading) is None:
                reasons.setdefault(why, []).append(f"{row['point']} ({heading})")
    failed = [
        f"Failed: {row['point']}, {benchmark}: {run.get('error') or 'no reason known'}"
        for row in document["rows"]
        for benchmark, run in (row.get("runs") or {}).items()
        if run.get("status") != "done"
    ]
    return [f"Published, {why}: {', '.join(where)}." for why, where in reasons.items()] + failed


def legend(document: dict[str, Any]) -> list[str]:
    """What the groups and marks mean: one sentence for each that occurs."""
    heads, body = columns(document), [cells for _, cells in rows(document)]
    groups = {column.group for column in heads}
    pairs = [(column, cell) for cells in body for column, cell in zip(heads, cells, strict=True)]
    here = [cell for column, cell in pairs if column.group not in (PUBLISHED, SETTINGS)]
    said = [cell for column, cell in pairs if column.group == PUBLISHED]
    out = [_sentence(group_label(document, PUBLISHED))] if PUBLISHED in groups else []
    out += [_sentence(group_label(document, SETTINGS))] if SETTINGS in groups else []
    out += [_measured_on(document, group) for group in document["groups"]]
    if PUBLISHED in groups and document["groups"]:
        out.append(_apart(document))
    if any("±" in cell.text for cell in here):
        out.append(f"±: standard error over {document.get('error_over') or 'questions or images'}.")
    if any(cell.delta for _, cell in pairs):
        out.append(f"In brackets: difference from {_baselines(document)}, within the same column.")
    if any(SIGNIFICANT in cell.mark for cell in here):
        out.append(f"{SIGNIFICANT}: p < {LEVEL:g} in a paired test ({_tests(document)}), not corrected for the number of rows.")
    if any(DERIVED in cell.mark for cell in said):
        out.append(f"{DERIVED}: not printed, follows from printed numbers.")
    if any(cell.best for cell in here):
        out.append("Bold: the best measured value of its column.")
    empty = (["not printed"] if any(not cell.text for cell in said) else []) + (
        ["not measured"] if any(not cell.text for cell in here) else []
    )
    return out + ([f"Empty: {' or '.join(empty)}."] if empty else [])


def value(run: dict[str, Any] | None, where: str) -> float | None:
    """The number at "scores.accuracy" of a run; None where the run failed, or has no such number or NaN there."""
    if run is None or run.get("status") != "done":
        return None
    found: Any = run
    kind, _, name = where.partition(".")
    steps = [kind, name] if kind == "scores" else where.split(".")  # a score's name may hold a dot
    for step in steps:
        found = found.get(step) if isinstance(found, dict) else None
    return None if found is None or isinstance(found, str) or math.isnan(found) else float(found)


def error(run: dict[str, Any], where: str) -> float | None:
    """The standard error of the score at ``where``; None where it has none."""
    kind, _, name = where.partition(".")
    found = (run.get("stderr") or {}).get(name) if kind == "scores" else None
    return None if found is None or math.isnan(found) else float(found)


def printed(number: float | str | None, digits: int | None) -> str:
    """A number with that many decimals, or as the paper prints it (None); empty for no number."""
    if number is None or isinstance(number, str) or digits is None:
        return "" if number is None else str(number)
    return "" if math.isnan(number) else f"{number:.{digits}f}"


def signed(delta: float | None, digits: int | None) -> str:
    """A difference as the papers print it: +2.50, -13.84; never -0.00. Without ``digits``, as many as it takes."""
    if delta is None or math.isnan(delta):
        return ""
    said = f"{delta:+.10g}" if digits is None else f"{delta:+.{digits}f}"
    return said.replace("-", "+") if float(said) == 0 else said


def _has_settings(document: dict[str, Any]) -> bool:
    return any(row.get("settings") for row in document["rows"])


def _setting(row: dict[str, Any]) -> Cell:
    """What our configuration says in this row's place, and where it says so."""
    found = {where: v for where, v in (row.get("settings") or {}).items() if v is not None}
    return Cell(text=", ".join(str(v) for v in found.values()), note=", ".join(f"{where}={v}" for where, v in found.items()))


def _published(row: dict[str, Any], heading: str, column: dict[str, Any]) -> Cell:
    number, digits = (row.get("published") or {}).get(heading), column.get("digits")
    if number is None:
        return Cell(note=_why(row, heading))
    derived = heading in (row.get("derived") or [])
    delta = signed((row.get("published_deltas") or {}).get(heading), digits)
    notes = ["published", "not printed, follows from printed numbers" if derived else "", _against(row, delta)]
    return Cell(printed(number, digits), delta=delta, mark=DERIVED * derived, note="; ".join(filter(None, notes)))


def _why(row: dict[str, Any], heading: str) -> str:
    """Why a published cell is empty. A conjecture is told here and nowhere else."""
    missing, conjecture = (row.get("missing") or {}).get(heading), row.get("conjecture") or {}
    guess = conjecture.get(heading)
    basis = f" ({conjecture['basis']})" if guess is not None and conjecture.get("basis") else ""
    return "; ".join(
        filter(None, [missing or "not printed", f"conjecture, not a number of the paper: {guess}{basis}" if guess is not None else ""])
    )


def _measured(row: dict[str, Any], benchmark: str, heading: str, column: dict[str, Any], best: float | None) -> Cell:
    run = (row.get("runs") or {}).get(benchmark)
    if run is None:
        return Cell(note="not measured")
    command = run.get("command") or ""
    if run.get("status") != "done":
        return Cell(note=f"failed: {run.get('error') or 'no reason known'}", command=command)
    number, per, digits = value(run, column["value"]), column.get("per", 1), column.get("digits", 2)
    if number is None:
        return Cell(note="this run has no such number", command=command)
    stderr = error(run, column["value"])
    test = ((row.get("deltas") or {}).get(benchmark) or {}).get(heading) or {}
    delta = signed(None if test.get("delta") is None else test["delta"] / per, digits)
    p = test.get("p")
    spread = "" if stderr is None else printed(stderr / per, column.get("error_digits", 0))
    notes = [
        f"{run['samples']} samples" if run.get("samples") is not None else "",
        f"standard error {printed(stderr / per, column.get('error_digits', 0) + 1)}" if stderr is not None else "",
        _against(row, delta),
        _tested(test, per, digits),
    ]
    return Cell(
        text=printed(number / per, digits) + (f" ± {spread}" if spread else ""),
        best=best is not None and _rounded(number / per, digits) == best,
        delta=delta,
        mark=SIGNIFICANT * (p is not None and p < LEVEL),
        note="; ".join(filter(None, notes)),
        command=command,
    )


def _against(row: dict[str, Any], delta: str) -> str:
    return f"{delta} against {row['baseline']}" if delta and row.get("baseline") else ""


def _tested(test: dict[str, Any], per: float, digits: int | None) -> str:
    """The interval, p and count behind a delta."""
    if test.get("p") is None:
        return ""
    low, high = (signed(None if test.get(k) is None else test[k] / per, digits) for k in ("low", "high"))
    interval = f"95 % interval {low} to {high}, " if low and high else ""
    p = f"p = {test['p']:.3f}" if test["p"] >= 0.001 else "p < 0.001"
    return f"{interval}{p} ({test['test']}, {test['n']} shared samples)"


def _best(document: dict[str, Any], benchmark: str, column: dict[str, Any]) -> float | None:
    """The best of a column's measured values as they are printed, so that what looks equal is equal; None where fewer than two are there.

    Scores are the better the higher. Costs have no best unless the column says ``better: low`` or ``high``: dropping more tokens always
    costs less."""
    better = column.get("better", "high" if column["value"].startswith("scores.") else None)
    found = [value((row.get("runs") or {}).get(benchmark), column["value"]) for row in document["rows"]]
    shown = [_rounded(v / column.get("per", 1), column.get("digits", 2)) for v in found if v is not None]
    return None if better is None or len(shown) < 2 else max(shown) if better == "high" else min(shown)


def _rounded(number: float, digits: int | None) -> float:
    return number if digits is None else float(f"{number:.{digits}f}")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _measured_on(document: dict[str, Any], group: dict[str, Any]) -> str:
    runs = [(row.get("runs") or {}).get(group["benchmark"]) or {} for row in document["rows"]]
    if not any(run.get("status") == "done" for run in runs):
        return f"{group['benchmark']}: nothing measured."
    if document.get("scale") and "scale model" not in group["label"]:
        return f"Measured here on the scale model: {group['label']}."
    return f"Measured here: {group['label']}."


def _apart(document: dict[str, Any]) -> str:
    if document.get("scale"):
        return "Published and measured are two different models and benchmarks: compare differences within a group, never levels across."
    return "Published and measured may differ in model, split and rules: read the labels before comparing levels."


def _baselines(document: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["baseline"] for row in document["rows"] if row.get("baseline")))
    return names[0] if len(names) == 1 else "the row's baseline" + (f" ({', '.join(names)})" if names else "")


def _tests(document: dict[str, Any]) -> str:
    found = [d.get("test") for row in document["rows"] for group in (row.get("deltas") or {}).values() for d in group.values()]
    return " or ".join(dict.fromkeys(name for name in found if name))
