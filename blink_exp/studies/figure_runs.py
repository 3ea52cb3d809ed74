"""Measures the points of a paper's figure, draws it (``blink_exp.figures``) and computes its claims."""

from __future__ import annotations

from pathlib import Path

from blink_exp import reference
from blink_exp.documents.experiments import Experiment
from blink_exp.documents.tables import FigureDocument, TableDocument
from blink_exp.errors import UserError
from blink_exp.figures.base import Study, write_drawing
from blink_exp.settings.budgets import displaced
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies import plan


def measure_figure(
    sweep: SweepSettings,
    figure: Experiment,
    user_overrides: list[str],
    out: Path,
    table: TableDocument | None = None,
    table_experiment: Experiment | None = None,
) -> FigureDocument:
    """The document of a figure, with its pictures written to ``out``.

    ``table``, ``table_experiment``: document and experiment of the table whose page embeds the figure. The figure then uses the table's
    model and benchmark, and the table's points if it has none."""
    plan.refuse_collisions(figure, user_overrides)
    base = table_experiment if table_experiment is not None else figure
    first = [*figure.get("overrides", []), *(base.get("overrides", []) if table_experiment is not None else [])]
    scale = plan.on_scale_model(base, user_overrides)
    names = plan.benchmarks(base, user_overrides, scale) or plan.benchmarks(figure, user_overrides, scale)
    if not names:
        where = "a scale model" if scale else "a published backbone"
        raise UserError(f"{figure['name']} names no benchmark for {where}; choose one: benchmark=mosaic_open")
    name = names[0]
    points = plan.points(figure)
    modules = plan.trained(sweep, figure, user_overrides)
    rows = [row["runs"][name] for row in table["rows"] if name in row["runs"]] if table is not None and not points else []
    for k, point in enumerate(points):
        print(f"[{k + 1}/{len(points)}] {point['label']}, {name}", flush=True)
        run = plan.measured_run(
            sweep, [*plan.words(figure, point, name), *modules], user_overrides, point["label"], experiment=figure["name"], x=point.get("x")
        )
        if "series" in point:
            run["series"] = point["series"]
        if "x" in point:
            run["x"] = point["x"]
        rows.append(run)
    benchmark_overrides = (figure.get("at") or {}).get(name, [])
    settings = composed(
        "sweep", [*displaced([*first, f"benchmark={name}", *benchmark_overrides, *modules], user_overrides), *user_overrides]
    )
    drawing = build(figure["draw"], Study(figure["name"], settings, rows))
    files = write_drawing(drawing, out)
    source = figure.get("source")
    published = reference.figure(figure["paper"], source) if source else None
    return {
        "kind": "figure",
        "name": figure["name"],
        "title": figure["title"],
        "paper": figure.get("paper"),
        "source": source,
        "note": figure.get("note"),
        "scale": scale,
        "command": plan.command([f"figure={figure['name']}", *user_overrides], "sweep"),
        "plots": published["plots"] if published else None,
        "claim": published["claim"] if published else None,
        "footnotes": reference.footnotes(figure["paper"], source) if source else [],
        "caption": drawing.caption,
        "measured_on": drawing.measured_on,
        "claims": [claim.entry() for claim in drawing.claims],
        "pictures": {stem: [path.name for path in paths] for stem, paths in files.items()},
        "rows": rows,
    }
