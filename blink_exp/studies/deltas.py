"""Differences of table rows from their baselines: as published, and as measured on the same questions with a paired test."""

from __future__ import annotations

from collections.abc import Mapping

from blink_exp.benchmarks.base import Benchmark
from blink_exp.documents.records import Record
from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import ColumnGroup, TableDocument
from blink_exp.errors import UserError
from blink_exp.evaluation import results, store
from blink_exp.evaluation.evaluator import prepare_benchmark
from blink_exp.evaluation.records import read
from blink_exp.reports.statistics import compare
from blink_exp.studies.comparisons import best_control

Published = Mapping[str, float | str | None]  # values of a row by heading


def add_deltas(document: TableDocument, over_control: str | None = None) -> None:
    """Fills ``published_deltas`` and ``deltas`` of every row with a baseline, in place. ``over_control``: a score that is also compared
    with that of the best control at the row's budget."""
    by_label = {row["point"]: row for row in document["rows"]}
    for row in document["rows"]:
        base = by_label.get(row["baseline"])
        row["published_deltas"] = {} if base is None or base is row else printed(row["published"], base["published"])
    for group in document["groups"]:
        name = group["benchmark"]
        scores = [c["value"].removeprefix("scores.") for c in group["columns"].values() if c["value"].startswith("scores.")]
        pairs = [(row, by_label[row["baseline"]]) for row in document["rows"] if row["baseline"] in by_label]
        pairs = [(a, b) for a, b in pairs if a is not b and all(name in r["runs"] and r["runs"][name]["status"] == "done" for r in (a, b))]
        if not pairs:
            continue
        try:
            benchmark = benchmark_of(pairs[0][0]["runs"][name])
        except UserError as error:  # a missing file must not lose the measurements
            store.name_once(f"no differences on {name}: {error}")
            continue
        records = {r["point"]: records_of(r["runs"][name]) for pair in pairs for r in pair}
        for row, base in pairs:
            wanted = [s for s in scores if s in row["runs"][name]["scores"] and s in base["runs"][name]["scores"]]
            differences = compare(benchmark, records[row["point"]], records[base["point"]], wanted)
            by_heading = {h: c["value"].removeprefix("scores.") for h, c in group["columns"].items()}
            row["deltas"][name] = {heading: differences[score] for heading, score in by_heading.items() if score in differences}
        if over_control:
            _compare_with_controls(document, group, benchmark, over_control)


def _compare_with_controls(document: TableDocument, group: ColumnGroup, benchmark: Benchmark, score: str) -> None:
    """Fills ``over_control`` of every run that a control at its budget can be compared with, and its test."""
    name = group["benchmark"]
    headings = [heading for heading, column in group["columns"].items() if column["value"] == f"over_control.{score}"]
    for row in document["rows"]:
        run, control = row["runs"].get(name), best_control(document["rows"], row, name, score)
        if control is None or run is None or run["status"] != "done":
            continue
        test = compare(benchmark, records_of(run), records_of(control["runs"][name]), [score]).get(score)
        if test is None:
            continue
        run["over_control"] = {score: test["delta"]}
        for heading in headings:  # the cell itself is the difference
            row["deltas"].setdefault(name, {})[heading] = {**test, "delta": None, "against": control["point"]}


def printed(values: Published, base: Published) -> dict[str, float]:
    """Differences of published numbers, by heading."""
    pairs = [(heading, value, base.get(heading)) for heading, value in values.items()]
    return {h: round(a - b, 4) for h, a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float)}


def records_of(run: PointRun) -> dict[str, Record]:
    """{id: record} of a measured point."""
    return {r["id"]: r for r in read(run["folder"])}


def benchmark_of(run: PointRun) -> Benchmark:
    """The benchmark that a point was measured on."""
    return prepare_benchmark(results.settings_of(run["folder"]))
