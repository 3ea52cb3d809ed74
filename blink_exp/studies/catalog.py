"""Runs the experiments of sweep.py: table=... and figure=... one of them; tables=... and figures=... all of them, or their list."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import time
import traceback
from dataclasses import asdict
from datetime import date
from pathlib import Path

from blink_exp import tracking
from blink_exp.cli import one_line
from blink_exp.documents.experiments import Experiment
from blink_exp.documents.runs import PointRun, Provenance
from blink_exp.documents.tables import Document, FigureDocument, TableDocument
from blink_exp.errors import UserError
from blink_exp.evaluation import locks, results
from blink_exp.evaluation.shared_runs import run_together
from blink_exp.files import read_object, write_json
from blink_exp.reports import html, terminal, text
from blink_exp.reports.entries import duration
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies import plan
from blink_exp.studies.experiments import KINDS, experiments, load_experiment
from blink_exp.studies.figure_runs import measure_figure
from blink_exp.studies.listing import show_list
from blink_exp.studies.tables import measure_table

SAME_TABLE = ("model", "model.device", "batch_size", "cost", "data_root", "logger")  # settings that do not change what a table measures
LONGEST = 120  # characters in a folder name
log = logging.getLogger(__name__)


def run_experiments(sweep: SweepSettings, out: Path) -> Document | None:
    """Measures the experiments named by ``table``, ``tables``, ``figure`` and ``figures`` and writes each to ``out`` and, for the
    overall report, to ``report``."""
    user_overrides = plan.command_line_overrides()
    settings = asdict(sweep)
    selected = {kind: settings[f"{kind}s"] for kind in KINDS}
    if "list" in selected.values():
        show_list(
            sweep, [experiment for kind in KINDS if selected[kind] or settings[kind] for experiment in experiments(kind)], user_overrides
        )
        return None
    named = [(k, e) for k in KINDS for e in (experiments(k) if selected[k] else [settings[k]] if settings[k] else [])]
    problems = [plan.problem(experiment, user_overrides) for _, experiment in named]
    if problems and all(problems):
        raise UserError(str(problems[0]))
    failed = [f"{experiment['name']}: {problem}" for (_, experiment), problem in zip(named, problems, strict=True) if problem]
    wanted = [each for each, problem in zip(named, problems, strict=True) if not problem]
    answer_together(sweep, wanted, user_overrides)
    document = None
    for kind, experiment in wanted:
        folder = out / experiment["name"] if len(named) > 1 else out
        try:
            document = measure(sweep, kind, experiment, user_overrides, folder)
            failed += [f"{experiment['name']}: {failure}" for failure in failures(document)]
        except Exception as error:
            if len(named) == 1:
                raise
            if not isinstance(error, UserError):
                log.error("%s failed:\n%s", experiment["name"], traceback.format_exc())
            failed.append(f"{experiment['name']}: {one_line(error)}")
            print(f"{experiment['name']} failed: {one_line(error)}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} points failed, first {failed[0]}")
    if len(wanted) > 1:
        print(f"{len(wanted)} tables and figures, none failed: {out}")
    return document


def answer_together(sweep: SweepSettings, wanted: list[tuple[str, Experiment]], user_overrides: list[str]) -> None:
    """Answers the questions of all points of all experiments together if ``share`` is set."""
    if not sweep.share:
        return
    points = []
    for kind, experiment in wanted:
        with contextlib.suppress(UserError):  # reported when the experiment is measured
            points += plan.settings_of(sweep, kind, experiment, user_overrides)
    run_together(points)


def measure(sweep: SweepSettings, kind: str, experiment: Experiment, user_overrides: list[str], out: Path) -> Document:
    """Measures one table or figure, writes it to ``out``, copies it to the report and rebuilds the report."""
    started = time.time()
    count = len(plan.points(experiment))
    many = f", {count} points" if count else ""
    print(f"{experiment['name']}: {experiment['title']}{many}{last_time(kind, experiment, user_overrides, Path(sweep.report))}", flush=True)
    embedded = []
    document: Document
    if kind == "table":
        document = measure_table(sweep, experiment, user_overrides)
        write_json(out / "table.json", document)  # before drawing: a failing picture must not lose the measurements
        names = experiment.get("figures") or []
        embedded = [
            embedded_figure(sweep, load_experiment("figure", name), user_overrides, out / name, document, experiment) for name in names
        ]
    else:
        document = measure_figure(sweep, experiment, user_overrides, out)
    document["model"] = model_name(experiment, user_overrides)
    document["provenance"] = provenance(sweep, time.time() - started)
    write_json(out / f"{kind}.json", document)
    if document["kind"] == "table":
        text.write(document, out)
        terminal.show(document)
    else:
        terminal.show_claims(document)
    page = html.page(document, out, embedded)
    output, group = tracking.output_and_group()
    for embedded_document, folder in [*embedded, (document, out)]:
        if "error" not in embedded_document:
            tracking.log_summary(embedded_document, folder, asdict(sweep), f"{experiment['name']} {group}", output)
    print(f"{kind}: {out / ('table.md' if kind == 'table' else 'figure.json')}\npage:  {page}")
    if worth_keeping(document):
        report = Path(sweep.report)
        with locks.waited(report / "report.html"):
            copy_to_report(out, report / experiment["name"] / variant(document["model"], user_overrides))
            print(f"all:   {html.gather(report)}")
    return document


def last_time(kind: str, experiment: Experiment, user_overrides: list[str], report: Path) -> str:
    """ "; last time 1 min 50 s (2026-11-28)" by the copy in the report of the same command; "" where there is none."""
    path = report / experiment["name"] / variant(model_name(experiment, user_overrides), user_overrides) / f"{kind}.json"
    with contextlib.suppress(UserError, OSError, KeyError, TypeError):
        provenance = read_object(path, {"provenance": dict}, "it is left out")["provenance"]
        return f"; last time {duration(float(provenance['seconds']))} ({provenance['date']})"
    return ""


def runs_of(document: Document) -> list[PointRun]:
    """The runs of a table (one per row and benchmark) or of a figure (one per row)."""
    if document["kind"] == "figure":
        return document["rows"]
    return [run for row in document["rows"] for run in row["runs"].values()]


def worth_keeping(document: Document) -> bool:
    """Whether a document has a measured run, or needs none. A failed run must not replace a successful one in the report."""
    runs = runs_of(document)
    return not runs or any(run["status"] == "done" for run in runs)


def copy_to_report(out: Path, target: Path) -> None:
    """Copies a run's folder to ``target``, replacing an older copy only once the new one is complete."""
    if target.resolve() == out.resolve():
        return
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(out, part, ignore=shutil.ignore_patterns(".hydra", locks.NAME, "*.log", "wandb", "tensorboard", "mlflow*"))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def embedded_figure(
    sweep: SweepSettings, figure: Experiment, user_overrides: list[str], folder: Path, document: TableDocument, table: Experiment
) -> tuple[FigureDocument, Path]:
    """The document and folder of a figure on a table's page. If drawing fails, the document holds the error and the table is kept."""
    figure_document: FigureDocument
    try:
        figure_document = measure_figure(sweep, figure, user_overrides, folder, document, table)
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            log.error("%s failed:\n%s", figure["name"], traceback.format_exc())
        figure_document = {"kind": "figure", "name": figure["name"], "title": figure["title"], "error": one_line(error)}
    write_json(folder / "figure.json", figure_document)
    return figure_document, folder


def model_name(experiment: Experiment, user_overrides: list[str]) -> str:
    model = composed("sweep", [*experiment.get("overrides", []), *user_overrides]).model
    return str(model["name"] or Path(model["path"]).name)


def variant(model: str, user_overrides: list[str]) -> str:
    """Folder name of a run in the report: model and user overrides, so that a shortened run never replaces a full one."""
    words = [word for word in user_overrides if plan.key(word) not in SAME_TABLE and not plan.key(word).startswith("logger.")]
    label = ",".join([model, *sorted(words)])
    name = re.sub(r"[^\w.,=+-]+", "_", label)
    return name if name == label and len(name) <= LONGEST else f"{name[:LONGEST]},{hashlib.sha256(label.encode()).hexdigest()[:6]}"


def provenance(sweep: SweepSettings, seconds: float) -> Provenance:
    return {**results.provenance(sweep.seed, seconds), "date": date.today().isoformat()}


def failures(document: Document) -> list[str]:
    """The failed runs of a document as "label: error"."""
    return [f"{run['point']}: {run['error']}" for run in runs_of(document) if run["status"] == "failed"]
