"""Measures the points of a paper's table and sets them beside the published numbers, in separate labelled columns.

A table is an experiment of conf/table (see ``plan``) with a layout:

    source               entry in the reference data; its notes become footnotes
    published            {heading: column of the reference}
    measured             {benchmark: {heading: where the number stands in a run, "scores.accuracy" or "training.cosine_tokensr" (of modules
                         that the point ``trains``), or {value, per, digits, error_digits, published: the heading that it belongs
                         beside}}}; a benchmark that is not named shows its headline scores
    recipe               instead of points: {config, overrides, values: {row: where the value stands in that config}}
    split_by             label of a point: the accuracy of the others among questions that it gets right, and among those it gets wrong
    untouched            label of a point: all scores also in per cent of its own ("share.accuracy")
    best_control         a score: its difference from the best control at the same budget, with a paired test ("over_control.accuracy")
    digits, error_digits, published_digits   decimals (2, 0 and 2; null: as printed)
    figures              figures of conf/figure that its page shows, drawn from its own points where they have none
    effects              region effects, see ``effects``; with ``tokens`` see ``reports.effects.conclusion``
    note, error_over     see ``blink_exp.reports``
"""

from __future__ import annotations

import functools
import operator
from typing import TypeVar

from blink_exp import reference
from blink_exp.documents.experiments import Experiment, ExperimentPoint
from blink_exp.documents.runs import PointRun
from blink_exp.documents.tables import ColumnGroup, MeasuredColumn, PublishedColumn, TableDocument, TableRow
from blink_exp.errors import UserError
from blink_exp.reports.effects import conclusion
from blink_exp.settings.compose import composed_plain
from blink_exp.settings.doors import as_typed
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies import plan
from blink_exp.studies.comparisons import add_shares, split
from blink_exp.studies.deltas import add_deltas
from blink_exp.studies.effects import region_effects
from blink_exp.studies.point import failed

T = TypeVar("T")


def measure_table(sweep: SweepSettings, table: Experiment, user_overrides: list[str]) -> TableDocument:
    """The document of a table: every point measured on every benchmark, beside the published numbers."""
    plan.refuse_collisions(table, user_overrides)
    scale = plan.on_scale_model(table, user_overrides)
    names = plan.benchmarks(table, user_overrides, scale)
    points = plan.points(table)
    rows = [new_row(table, point) for point in points] if points else recipe_rows(table)
    for n, name in enumerate(names):
        for k, (point, row) in enumerate(zip(points, rows, strict=False)):
            print(f"[{n * len(points) + k + 1}/{len(names) * len(points)}] {point['label']}, {name}", flush=True)
            if not plan.runs_on(point, plan.words(table, point, name), user_overrides):
                continue
            row["runs"][name] = repeated_failure(rows, name, point["label"]) or point_run(sweep, table, user_overrides, point, name)
        for budget in dict.fromkeys(row.get("budget") for row in rows) if table.get("split_by") else ():
            same = [row for row in rows if row.get("budget") == budget and name in row["runs"]]
            split((row["runs"][name] for row in same), plan.at_budget(table["split_by"], budget))
        if table.get("untouched"):
            add_shares(rows, name, table["untouched"])
    document: TableDocument = {
        "kind": "table",
        "name": table["name"],
        "title": table["title"],
        "paper": table.get("paper"),
        "source": table.get("source"),
        "published_on": table.get("published_on"),
        "note": as_typed(table.get("note") or "") or None,
        "error_over": table.get("error_over"),
        "split_by": table.get("split_by"),
        "scale": scale,
        "command": plan.command([f"table={table['name']}", *user_overrides], "sweep"),
        "footnotes": reference.footnotes(table["paper"], source) if (source := table.get("source")) else [],
        "published_columns": published_columns(table),
        "groups": [group(table, name, rows) for name in names],
        "rows": rows,
    }
    add_deltas(document, table.get("best_control"))
    if effects := table.get("effects"):
        document["effects"] = region_effects(document, effects)
        document["conclusion"] = conclusion(document, effects["reference"], effects["tokens"])
    return document


def point_run(sweep: SweepSettings, table: Experiment, user_overrides: list[str], point: ExperimentPoint, name: str) -> PointRun:
    """The run of a point on a benchmark, with what was measured of the modules that it trains."""
    label = point["label"]
    try:
        modules = plan.trained(sweep, table, user_overrides, point)
        measures = plan.training_measures(sweep, table, user_overrides, point)
    except UserError as error:
        if not point.get("trains"):
            raise
        return failed(label, error)  # the others have modules of their own
    first = [*plan.words(table, point, name), *modules]
    run = plan.measured_run(sweep, first, user_overrides, label, point.get("match"), experiment=table["name"])
    return {**run, "training": measures} if measures else run


def repeated_failure(rows: list[TableRow], benchmark: str, label: str) -> PointRun | None:
    """A failed run for a point to skip, if all runs so far (at least two) failed with the same error: a model that cannot be loaded is
    not tried again for every point."""
    runs = [row["runs"][benchmark] for row in rows if benchmark in row["runs"]]
    errors = {run.get("error") for run in runs}
    return {**runs[0], "point": label} if len(runs) >= 2 and len(errors) == 1 and None not in errors else None


def new_row(table: Experiment, point: ExperimentPoint) -> TableRow:
    row: TableRow = {"point": point["label"], "baseline": point.get("baseline"), "runs": {}, "deltas": {}, **published(table, point)}
    if point.get("budget"):
        row["budget"] = point["budget"]
    return {**row, "control": True} if point.get("control") else row


def recipe_rows(table: Experiment) -> list[TableRow]:
    """The rows of a table without measurements: published values, and those of our configuration."""
    recipe = table.get("recipe")
    if recipe is None:
        return []
    settings = composed_plain(recipe["config"], recipe["overrides"])
    rows: list[TableRow] = []
    for label, path in recipe["values"].items():
        point: ExperimentPoint = {"label": label, "published": {"table": table["source"], "row": label}}
        ours = {} if path is None else {path: functools.reduce(operator.getitem, path.split("."), settings)}
        rows.append({**new_row(table, point), "settings": ours})
    return rows


def published_columns(table: Experiment) -> dict[str, PublishedColumn]:
    return {h: {"column": c, "digits": table.get("published_digits", 2)} for h, c in (table.get("published") or {}).items()}


def published(table: Experiment, point: ExperimentPoint) -> TableRow:
    """The paper's row for a point by heading, None without a number: ``published``, and ``derived`` (headings that follow from
    printed numbers), ``missing`` {heading: why}, ``conjecture`` {heading: number, never reference data}."""
    columns = table.get("published") or {}
    if "rival_cell" in point:
        return rivals(columns, **point["rival_cell"])
    source = dict(point.get("published") or {})
    if not source:
        return {"published": {}, "derived": [], "missing": {}, "conjecture": {}}
    entry = reference.entry(table["paper"], str(source.pop("table")), str(source.pop("row")), **source)
    values = dict(entry["values"])
    derived = set(entry["derived"])
    perception, cognition = values.get("mme_perception"), values.get("mme_cognition")
    if "mme_total" not in values and isinstance(perception, int | float) and isinstance(cognition, int | float):
        values["mme_total"] = round(perception + cognition, 2)  # Table 1 leaves the sum to the reader
        derived.add("mme_total")
    guessed = entry["conjecture"]
    guesses = _by_heading(columns, guessed)
    return {
        "published": {h: values.get(c) for h, c in columns.items()},
        "derived": [h for h, c in columns.items() if c in derived],
        "missing": _by_heading(columns, entry["missing"]),
        "conjecture": guesses | ({"basis": guessed["basis"]} if guesses and "basis" in guessed else {}),
    }


def _by_heading(columns: dict[str, str], by_column: dict[str, T]) -> dict[str, T]:
    return {heading: by_column[column] for heading, column in columns.items() if column in by_column}


def rivals(columns: dict[str, str], backbone: str, tokens: int | None, method: str) -> TableRow:
    """What others print for a method at a budget, by heading: the anchor's number, or the only one there is; and where there are several,
    their range. ``sources``: each with its origin."""
    row: TableRow = {"published": {}, "derived": [], "missing": {}, "conjecture": {}, "ranges": {}, "sources": {}}
    names = reference.rivals()["sources"]
    for heading, column in columns.items():
        cells = reference.rival(backbone, tokens, method, column)
        if not cells:
            continue
        anchor = reference.rivals()["anchor"]
        row["published"][heading] = cells[anchor] if anchor in cells else next(iter(cells.values())) if len(cells) == 1 else None
        if min(cells.values()) < max(cells.values()):
            row["ranges"][heading] = [min(cells.values()), max(cells.values())]
        row["sources"][heading] = ", ".join(
            f"{names[name]['title']}: {value} ({names[name]['origin'] or 'origin not known'})" for name, value in cells.items()
        )
    return row


def group(table: Experiment, benchmark: str, rows: list[TableRow]) -> ColumnGroup:
    """The measured columns of one benchmark and their label: backbone, benchmark and number of questions."""
    runs = [row["runs"][benchmark] for row in rows if benchmark in row["runs"]]
    done = [run for run in runs if run["status"] == "done"]
    columns = (table.get("measured") or {}).get(benchmark)
    if columns is None:
        columns = {run["headline"]: f"scores.{run['headline']}" for run in done[:1]}
    if any(run.get("budget") for run in done):
        columns = with_spent(columns)
    published_headings = table.get("published") or {}
    return {
        "benchmark": benchmark,
        "label": label(benchmark, done),
        "columns": {
            h: {
                "per": 1,
                "digits": table.get("digits", 2),
                "error_digits": table.get("error_digits", 0),
                "published": h if h in published_headings else None,
                **written_out(c),
            }
            for h, c in columns.items()
        },
    }


def written_out(column: str | MeasuredColumn) -> MeasuredColumn:
    return {"value": column} if isinstance(column, str) else column


SPENT: dict[str, str | MeasuredColumn] = {  # what methods that drop tokens spend: {heading: column}
    "visual tokens in": {"value": "tokens.entering", "digits": 0},
    "visual tokens a layer": {"value": "tokens.layer", "digits": 0},
    "GFLOPs": {"value": "tokens.gflops", "digits": 2},
}


def with_spent(columns: dict[str, str | MeasuredColumn]) -> dict[str, str | MeasuredColumn]:
    """Columns of a table, with those of ``SPENT`` beside each other: where the first of them stands, else last."""
    by_value = {written_out(column)["value"]: (heading, column) for heading, column in columns.items()}
    beside = dict(by_value.get(written_out(column)["value"], (heading, column)) for heading, column in SPENT.items())
    first = next((n for n, heading in enumerate(columns) if heading in beside), len(columns))
    return dict(list(columns.items())[:first]) | beside | {heading: c for heading, c in columns.items() if heading not in beside}


def label(benchmark: str, done: list[PointRun]) -> str:
    """ "scale-llava-1.5 (scale model) on mosaic_mme, 640 questions"."""
    if not done:
        return f"{benchmark}: nothing measured"
    run = done[0]
    protocol = f", protocol {run['protocol']}" if run.get("protocol") not in (None, "own") else ""
    return (
        f"{run['backbone']}{' (scale model)' if run['scale'] else ''} on {benchmark}{protocol}, {max(r['samples'] for r in done)} questions"
    )
