"""A table of a paper, its points measured here and set beside the published numbers, the two kept apart by label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from blink_exp import reference
from blink_exp.errors import UserError
from blink_exp.experiments import results
from blink_exp.experiments.sweep import guarded, write_summary

DERIVED = "*"  # marks a published number that follows from printed ones and is not itself printed
OWN_SETTINGS = ("table=", "store=", "force=", "hydra.")  # of the sweep, not of its points


def run_table(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Measures every point of ``cfg.table`` and writes table.md, table.json, summary.csv and page.html to ``out``."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    from blink_exp.experiments.report import write_page

    table = results.plain(cfg)["table"]
    own = [word for word in HydraConfig.get().overrides.task if not word.startswith(OWN_SETTINGS)]
    rows: list[dict[str, Any]] = []
    for point in table["points"]:
        print(f"[{len(rows) + 1}/{len(table['points'])}] {point['label']}", flush=True)
        overrides = [*point["overrides"], *own, f"store={cfg.store}", f"force={cfg.force}"]
        rows.append(guarded(compose("sweep", overrides=overrides), point["label"]) | {"published": published(table, point)})
    document = {k: table[k] for k in ("name", "title", "columns", "published_on")} | {"rows": rows, "command": command(table["name"], own)}
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


def command(name: str, own: list[str]) -> str:
    return " ".join(["python sweep.py", f"table={name}", *own])


def published(table: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """The paper's row for a point, by measured score name; empty where the paper has none."""
    source = point.get("published")
    if source is None:
        return {}
    values = reference.row(table["paper"], source["table"], source["row"])
    derived = {"mme_total": _total(values)}
    return {score: values.get(column, derived.get(column)) for score, column in table["columns"].items()} | {
        "derived": [s for s, c in table["columns"].items() if c in values.get("derived", []) or (c not in values and c in derived)]
    }


def _total(values: dict[str, Any]) -> float | None:
    """Table 1 prints perception and cognition and leaves the sum to the reader."""
    perception, cognition = values.get("mme_perception"), values.get("mme_cognition")
    return None if perception is None or cognition is None else round(perception + cognition, 2)


def cells(document: dict[str, Any]) -> list[list[str]]:
    """Rows of text: label, published columns, measured columns, empty where there is no number."""
    out = []
    for row in document["rows"]:
        derived = row["published"].get("derived", [])
        said = [_number(row["published"].get(score)) + DERIVED * (score in derived) for score in document["columns"]]
        measured = []
        for score in document["columns"]:
            value, error = row.get("scores", {}).get(score), row.get("stderr", {}).get(score)
            measured.append(_number(value) + (f" ± {error:.0f}" if error is not None else ""))
        out.append([row["point"], *said, *measured])
    return out


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def measured_on(document: dict[str, Any]) -> str:
    """The second label: which model the measured columns come from, and on how many questions."""
    done = [row for row in document["rows"] if row["status"] == "done"]
    return f"{done[0]['backbone']}, {done[0]['samples']} questions" if done else "nothing measured"


def markdown(document: dict[str, Any]) -> str:
    names = list(document["columns"])
    head = ["", *[f"{n} (published)" for n in names], *[f"{n} (measured)" for n in names]]
    lines = [
        f"**{document['title']}**",
        "",
        f"published: {document['published_on']}. measured here: {measured_on(document)} (value ± standard error). The two are different",
        "models and benchmarks: compare differences within a column group, never levels across.",
        f"{DERIVED}: not printed, follows from printed numbers; empty: not printed.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in cells(document)),
        "",
        f"`{document['command']}`",
    ]
    return "\n".join(lines) + "\n"


def show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from blink_exp.experiments.results import console

    names = list(document["columns"])
    table = Table(
        title=document["title"],
        caption=f"left: published on {document['published_on']}; right: measured here on {measured_on(document)}",
    )
    table.add_column("")
    for name in names:
        table.add_column(f"{name}\npublished", justify="right", style="dim")
    for name in names:
        table.add_column(f"{name}\nmeasured", justify="right")
    for row in cells(document):
        table.add_row(*row)
    console().print(table)
