"""A table of a paper, its points measured here and set beside the published numbers, the two kept apart by label.

A table is a file of conf/table:

    overrides           of every point, before its own; what the user says on the command line comes last and wins
    points              label, overrides, and optionally ``published`` ({table, row, ...} of the reference data, see ``reference.entry``)
                        and ``match``, a setting to be searched until the tokens are those asked for (see ``matching``)
    published, measured the two groups of columns: {heading: column of the paper} and {heading: where the number stands in a point's
                        row, "scores.accuracy"}, or {value, per, digits} for another unit. ``columns`` ({score: column of the paper})
                        says both where every score has its published counterpart
    split_by            label of a point: the accuracy of the others, among questions that it gets right and among those it gets wrong
    digits, error_digits, published_digits: decimals (2, 0 and 2; null: as printed); figures, note, error_over: see ``report``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from blink_exp import reference
from blink_exp.cli import one_line
from blink_exp.errors import UserError
from blink_exp.experiments import results
from blink_exp.experiments.sweep import guarded, write_summary

DERIVED = "*"  # marks a published number that follows from printed ones and is not itself printed
OWN_SETTINGS = ("table=", "store=", "force=", "hydra.")  # of the sweep, not of its points
KEPT = ("name", "title", "paper", "published_on", "note", "figures", "error_over", "split_by")  # of a table in its document
WIDE = 10  # columns of numbers; above, the terminal gets a table for each group


def run_table(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Measures every point of ``cfg.table`` and writes table.md, table.json, summary.csv and page.html to ``out``."""
    from hydra.core.hydra_config import HydraConfig

    from blink_exp.experiments.report import write_page

    table = results.plain(cfg)["table"]
    own = [word for word in HydraConfig.get().overrides.task if not word.startswith(OWN_SETTINGS)]
    set_here = sorted({key(word) for word in own} & {key(w) for p in table["points"] for w in words(table, p)})
    if set_here:
        print(f"your own {', '.join(set_here)} replaces the table's", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for point in table["points"]:
        print(f"[{len(rows) + 1}/{len(table['points'])}] {point['label']}", flush=True)
        rows.append(measured_row(cfg, table, point, own) | {"published": published(table, point)})
    if table.get("split_by"):
        split(rows, table["split_by"])
    document = {k: table[k] for k in KEPT if k in table} | columns(table) | {"rows": rows, "command": command(table["name"], own)}
    results.write_json(out / "table.json", document)
    results.write(out / "table.md", markdown(document))
    write_summary(rows, out, shown=False)
    show(document)
    page = write_page(document, out)
    print(f"table: {out / 'table.md'}\npage:  {page}")
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} points failed, first {failed[0]['point']}: {failed[0]['error']}")
    return document


def measured_row(cfg: DictConfig, table: dict[str, Any], point: dict[str, Any], own: list[str]) -> dict[str, Any]:
    """A point measured, or why it could not be."""
    from hydra import compose

    sweep = [f"store={cfg.store}", f"force={cfg.force}"]
    first = words(table, point)
    if point.get("match"):
        from blink_exp.experiments.matching import matched

        try:
            first += matched(compose("sweep", overrides=[*first, *own, *sweep]), point["match"])
        except UserError as error:
            return {"point": point["label"], "status": "failed", "error": one_line(error)}
    return guarded(compose("sweep", overrides=[*first, *own, *sweep]), point["label"])


def words(table: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """The overrides of a point. Of two with the same key, Hydra takes the later."""
    return [*table.get("overrides", []), *point["overrides"]]


def key(word: str) -> str:
    return word.split("=")[0].lstrip("+~")


def command(name: str, own: list[str]) -> str:
    return " ".join(["python sweep.py", f"table={name}", *own])


def columns(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The two groups of columns: ``published_columns`` {heading: {column, digits}} and ``measured_columns`` {heading: {value, per,
    digits, error_digits}}."""
    both = table.get("columns", {})
    said = table.get("published", both)
    here = table.get("measured", {score: f"scores.{score}" for score in both})
    own = {"per": 1, "digits": table.get("digits", 2), "error_digits": table.get("error_digits", 0)}
    return {
        "published_columns": {h: {"column": c, "digits": table.get("published_digits", 2)} for h, c in said.items()},
        "measured_columns": {h: own | (c if isinstance(c, dict) else {"value": c}) for h, c in here.items()},
    }


def published(table: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """The paper's row for a point, by heading; empty where the paper has none."""
    source = dict(point.get("published") or {})
    if not source:
        return {}
    values = reference.row(table["paper"], source.pop("table"), source.pop("row"), **source)
    derived = {"mme_total": _total(values)}
    wanted = {heading: c["column"] for heading, c in columns(table)["published_columns"].items()}
    return {heading: values.get(column, derived.get(column)) for heading, column in wanted.items()} | {
        "derived": [h for h, c in wanted.items() if c in values.get("derived", []) or (c not in values and c in derived)]
    }


def _total(values: dict[str, Any]) -> float | None:
    """Table 1 prints perception and cognition and leaves the sum to the reader."""
    perception, cognition = values.get("mme_perception"), values.get("mme_cognition")
    return None if perception is None or cognition is None else round(perception + cognition, 2)


def split(rows: list[dict[str, Any]], label: str) -> None:
    """Adds to the scores of the rows ``right_too`` and ``wrong_there``: their accuracy in per cent among the questions that the point
    ``label`` answers right, and among those it answers wrong. That point's own would be 100 and 0 and are left out.

    Questions are told by their ids; those that one of the two points skipped do not count. Nothing is added where ``label`` failed.
    """
    from blink_exp.benchmarks.base import mean

    base = next((row for row in rows if row["point"] == label and row["status"] == "done"), None)
    if base is None:
        return
    right = _right(base)
    for row in rows:
        if row is base or row["status"] != "done":
            continue
        hits = _right(row)
        for name, wanted in (("right_too", True), ("wrong_there", False)):
            score = mean(hit for sample, hit in hits.items() if sample in right and right[sample] is wanted)
            if score.samples:
                row["scores"][name], row["stderr"][name] = score.value, score.stderr


def _right(row: dict[str, Any]) -> dict[str, bool]:
    """{sample id: whether it was answered right} of a measured point."""
    lines = (Path(row["folder"]) / "records.jsonl").read_text().splitlines()
    return {r["id"]: bool(r["correct"]) for r in map(json.loads, lines)}


def number(row: dict[str, Any], path: str) -> float | None:
    """What stands in a row at "scores.accuracy"; None where nothing does."""
    found: Any = row
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def cells(document: dict[str, Any]) -> list[list[str]]:
    """Rows of text: label, published columns, measured columns, empty where there is no number."""
    out = []
    for row in document["rows"]:
        derived = row["published"].get("derived", [])
        said = [
            _number(row["published"].get(heading), column["digits"]) + DERIVED * (heading in derived)
            for heading, column in document["published_columns"].items()
        ]
        out.append([row["point"], *said, *(_measured(row, column) for column in document["measured_columns"].values())])
    return out


def _measured(row: dict[str, Any], column: dict[str, Any]) -> str:
    kind, _, name = column["value"].partition(".")
    value, error = number(row, column["value"]), row.get("stderr", {}).get(name) if kind == "scores" else None
    said = _number(None if value is None else value / column["per"], column["digits"])
    return said + (f" ± {error / column['per']:.{column['error_digits']}f}" if said and error is not None else "")


def _number(value: float | None, digits: int | None) -> str:
    return "" if value is None else str(value) if digits is None else f"{value:.{digits}f}"


def measured_on(document: dict[str, Any]) -> str:
    """The second label: which model the measured columns come from, and on how many questions."""
    done = [row for row in document["rows"] if row["status"] == "done"]
    return f"{done[0]['backbone']}, {done[0]['samples']} questions" if done else "nothing measured"


def markdown(document: dict[str, Any]) -> str:
    said, here = list(document["published_columns"]), list(document["measured_columns"])
    head = ["", *[f"{n} (published)" for n in said], *[f"{n} (measured)" for n in here]]
    source = said and [
        f"published: {document['published_on']}. measured here: {measured_on(document)} (value ± standard error). The two are different",
        "models and benchmarks: compare differences within a column group, never levels across.",
        f"{DERIVED}: not printed, follows from printed numbers; empty: not printed.",
    ]
    lines = [
        f"**{document['title']}**",
        "",
        *(source or [f"measured here: {measured_on(document)} (value ± standard error)."]),
        *([document["note"]] if document.get("note") else []),
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in cells(document)),
        "",
        f"`{document['command']}`",
    ]
    return "\n".join(lines) + "\n"


def show(document: dict[str, Any]) -> None:
    """The table on the terminal; a wide one as two, one a group of columns."""
    from rich.table import Table

    said, here = list(document["published_columns"]), list(document["measured_columns"])
    left, right = f"published on {document.get('published_on')}", f"measured here on {measured_on(document)}"
    groups: list[tuple[str, str | None, list[str], list[str]]] = [(document["title"], f"left: {left}; right: {right}", said, here)]
    apart = not said or not here or len(said) + len(here) > WIDE
    if apart:
        groups = [(f"{document['title']}\n{left}", None, said, [])] if said else []
        groups += [(f"{document['title']}\n{right}", None, [], here)]
    rows, console = cells(document), results.console()
    if apart and not console.is_terminal:
        console.width = 190  # a dozen columns
    for title, caption, first, second in groups:
        table = Table(title=title, caption=caption)
        table.add_column("", overflow="fold" if apart else "ellipsis")
        for name in first:
            table.add_column(f"{name}\npublished", justify="right", style="dim")
        for name in second:
            table.add_column(f"{name}\nmeasured", justify="right", overflow="fold" if apart else "ellipsis")
        for row in rows:
            cut = [*row[1 : 1 + len(first)], *(row[1 + len(said) :] if second else [])]
            table.add_row(row[0], *cut)
        console.print(table)
