"""Text around a table: meaning of columns and marks, reasons for empty cells, commits of the measurements."""

from __future__ import annotations

from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import ColumnGroup, TableDocument, TableRow
from blink_exp.reports.cells import (
    CONTROL,
    DERIVED,
    LEVEL,
    PUBLISHED,
    SETTINGS,
    SIGNIFICANT,
    columns,
    group_label,
    paired_test,
    printed,
    rows,
)

TESTS = {  # of ``statistics``
    "McNemar": "McNemar's exact test",
    "bootstrap": "bootstrap over images",
    "McNemar and image bootstrap": "the larger p of McNemar's exact test and a bootstrap over images",
}


def gaps(document: TableDocument) -> list[str]:
    """What is not there, for readers without a pointer: controls (not in the paper), what it does not print and for which reason,
    runs on fewer questions than the others of their group, and what failed."""
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
    controls = [row["point"] for row in document["rows"] if row.get("control")]
    ours = [_sentence(f"{CONTROL}: {', '.join(controls)}")] if controls else []
    missing = [f"Published, {why}: {', '.join(where)}." for why, where in reasons.items()]
    return ours + missing + fewer(document) + skipped(document) + failed


def skipped(document: TableDocument) -> list[str]:
    """A sentence for each benchmark some of whose samples could not be read: which rows lack how many, and why the first of them."""
    out = []
    for group in document["groups"]:
        lacking = [(row["point"], run) for row, run in _done(document, group) if run.get("skipped_samples")]
        rows_of = ", ".join(f"{point} ({run['skipped_samples']} of {run['skipped_samples'] + run['samples']})" for point, run in lacking)
        first = f" First {lacking[0][1]['first_skipped']}." if lacking and lacking[0][1].get("first_skipped") else ""
        out += [f"Skipped on {group['benchmark']}, as they could not be read: {rows_of}.{first}"] if lacking else []
    return out


def fewer(document: TableDocument) -> list[str]:
    """A sentence for each benchmark that some rows answered only in part, as where an image could not be read or a run was limited."""
    out = []
    for group in document["groups"]:
        samples = {row["point"]: run["samples"] for row, run in _done(document, group) if run.get("samples") is not None}
        largest = max(samples.values(), default=0)
        short_of = [f"{point} ({n} of {largest})" for point, n in samples.items() if n < largest]
        where = f" of {group['benchmark']}" if len(document["groups"]) > 1 else ""
        out += [f"Measured on fewer questions{where}: {', '.join(short_of)}."] if short_of else []
    return out


def commits(document: TableDocument) -> list[str]:
    """The commits behind a table's measured numbers, in its order. Points are kept, so they may be older than the table."""
    hashes = [run.get("commit") for group in document["groups"] for _, run in _done(document, group)]
    return list(dict.fromkeys(short(commit) for commit in hashes if commit))


def short(commit: str) -> str:
    """A commit's first ten digits, and its mark for uncommitted changes."""
    digest, plus, changes = commit.partition("+")
    return digest[:10] + plus + changes


def lines(document: TableDocument) -> list[str]:
    """What the groups and marks mean and which commits measured: one sentence for each that occurs."""
    heads, body = columns(document), [cells for _, cells in rows(document)]
    groups = {column.group for column in heads}
    pairs = [(column, cell) for cells in body for column, cell in zip(heads, cells, strict=True)]
    measured = [cell for column, cell in pairs if column.group not in (PUBLISHED, SETTINGS)]
    published = [cell for column, cell in pairs if column.group == PUBLISHED]
    out = [_sentence(group_label(document, PUBLISHED))] if PUBLISHED in groups else []
    out += [_sentence(group_label(document, SETTINGS))] if SETTINGS in groups else []
    out += [_measured_on(document, group) for group in document["groups"]]
    measured_with = commits(document)
    if measured_with:
        out.append(f"Measured with commit{'s' * (len(measured_with) > 1)} {', '.join(measured_with)}.")
    if PUBLISHED in groups and document["groups"]:
        out.append(_comparison_note(document))
    if any("±" in cell.text for cell in measured):
        out.append(f"±: standard error over {document.get('error_over') or 'questions or images'}.")
    if any(cell.delta for _, cell in pairs):
        out.append(f"In brackets: difference from {_baselines(document)}, within the same column.")
    if any(SIGNIFICANT in cell.mark + cell.text for cell in measured):
        out.append(f"{SIGNIFICANT}: p < {LEVEL:g} in a paired test ({_tests(document)}), not corrected for the number of rows.")
    out += detectable(document)
    if any(DERIVED in cell.mark for cell in published):
        out.append(f"{DERIVED}: not printed, follows from printed numbers.")
    if any(row.get("ranges") for row in document["rows"]):
        out.append("In square brackets: the range over several sources that print the number; before it the anchor's, if it prints one.")
    if any(cell.best for cell in measured):
        out.append("Bold: the best measured value of its column.")
    empty = (["not printed"] if any(not cell.text for cell in published) else []) + (
        ["not measured"] if any(not cell.text for cell in measured) else []
    )
    return out + ([f"Empty: {' or '.join(empty)}."] if empty else [])


def detectable(document: TableDocument) -> list[str]:
    """A sentence with the smallest difference that each column's tests could have found, as a range over the rows; none without tests."""
    several, parts = len(document["groups"]) > 1, []
    for group in document["groups"]:
        for heading, column in group["columns"].items():
            tests = [paired_test(row, group["benchmark"], heading) for row in document["rows"]]
            smallest = [least for test in tests if (least := test.get("detectable")) is not None]
            ends = (
                [printed(end / column.get("per", 1), column.get("digits", 2)) for end in (min(smallest), max(smallest))] if smallest else []
            )
            where = f"{heading} ({group['benchmark']})" if several else heading
            parts += [f"{where} {' to '.join(dict.fromkeys(ends))}"] if ends else []
    means = f"p < {LEVEL:g}, two-sided, with a power of 80 %, by the answers that differ"
    return [f"Smallest difference that could be detected ({means}): {', '.join(parts)}."] if parts else []


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _measured_on(document: TableDocument, group: ColumnGroup) -> str:
    if not _done(document, group):
        return f"{group['benchmark']}: nothing measured."
    if document.get("scale") and "scale model" not in group["label"]:
        return f"Measured here on the scale model: {group['label']}."
    return f"Measured here: {group['label']}."


def _done(document: TableDocument, group: ColumnGroup) -> list[tuple[TableRow, PointRun]]:
    """(row, run) of what was measured on a group's benchmark."""
    runs = [(row, (row.get("runs") or {}).get(group["benchmark"]) or {}) for row in document["rows"]]
    return [(row, run) for row, run in runs if run.get("status") == "done"]


def _comparison_note(document: TableDocument) -> str:
    if document.get("scale"):
        return "Published and measured are two different models and benchmarks: compare differences within a group, never levels across."
    return "Published and measured may differ in model, split and rules: read the labels before comparing levels."


def _baselines(document: TableDocument) -> str:
    names = list(dict.fromkeys(row["baseline"] for row in document["rows"] if row.get("baseline")))
    return names[0] if len(names) == 1 else "the row's baseline" + (f" ({', '.join(names)})" if names else "")


def _tests(document: TableDocument) -> str:
    names = [d.get("test") for row in document["rows"] for group in (row.get("deltas") or {}).values() for d in group.values()]
    return "; ".join(dict.fromkeys(TESTS.get(name, name) for name in names if name))
