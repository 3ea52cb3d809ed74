"""sweep.py table=... and figure=...: one experiment; tables=... and figures=...: all of them, or a list of what there is."""

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
from typing import Any

from blink_exp import tracking
from blink_exp.cli import one_line
from blink_exp.documents import Document, FigureDocument, PointRun, TableDocument
from blink_exp.errors import UserError
from blink_exp.evaluation import locks, results
from blink_exp.evaluation.shared_runs import run_together
from blink_exp.files import write_json
from blink_exp.reports import html, terminal, text
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies import plan
from blink_exp.studies.experiments import KINDS, experiments, load_experiment
from blink_exp.studies.figure_runs import measure_figure
from blink_exp.studies.listing import show_list
from blink_exp.studies.tables import measure_table

SAME_TABLE = ("model", "model.device", "batch_size", "cost", "data_root", "logger")  # settings that leave a table what it is
LONGEST = 120  # characters of a folder's name
log = logging.getLogger(__name__)


def run_experiments(sweep: SweepSettings, out: Path) -> Document | None:
    """Measures what ``table``, ``tables``, ``figure`` and ``figures`` name and writes each to ``out``. All that is known goes to
    ``report``."""
    own = plan.own_words()
    settings = asdict(sweep)
    tracking.check(settings)
    every = {kind: settings[f"{kind}s"] for kind in KINDS}
    if "list" in every.values():
        show_list(sweep, [experiment for kind in KINDS if every[kind] or settings[kind] for experiment in experiments(kind)], own)
        return None
    wanted = [(k, e) for k in KINDS for e in (experiments(k) if every[k] else [settings[k]] if settings[k] else [])]
    share(sweep, wanted, own)
    document, failed = None, []
    for kind, found in wanted:
        folder = out / found["name"] if len(wanted) > 1 else out
        try:
            document = measure(sweep, kind, found, own, folder)
            failed += [f"{found['name']}: {said}" for said in failures(document)]
        except Exception as error:
            if len(wanted) == 1:
                raise
            if not isinstance(error, UserError):
                log.error("%s failed:\n%s", found["name"], traceback.format_exc())
            failed.append(f"{found['name']}: {one_line(error)}")
            print(f"{found['name']} failed: {one_line(error)}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} points failed, first {failed[0]}")
    return document


def share(sweep: SweepSettings, wanted: list[tuple[str, dict[str, Any]]], own: list[str]) -> None:
    """Answers the questions of all points of all experiments together, where ``share`` says so."""
    if not sweep.share:
        return
    found = []
    for kind, experiment in wanted:
        with contextlib.suppress(UserError):  # said when the experiment is measured
            found += plan.settings_of(sweep, kind, experiment, own)
    run_together(found)


def measure(sweep: SweepSettings, kind: str, experiment: dict[str, Any], own: list[str], out: Path) -> Document:
    """One table or figure, measured, written to ``out`` and copied to the report, which is made anew."""
    started = time.time()
    print(f"{experiment['name']}: {experiment['title']}", flush=True)
    embedded = []
    document: Document
    if kind == "table":
        document = measure_table(sweep, experiment, own)
        write_json(out / "table.json", document)  # a picture may fail, and what was measured must not be lost
        names = experiment.get("figures") or []
        embedded = [drawn(sweep, load_experiment("figure", name), own, out / name, document, experiment) for name in names]
    else:
        document = measure_figure(sweep, experiment, own, out)
    document["model"] = model_name(experiment, own)
    document["provenance"] = provenance(sweep, time.time() - started)
    write_json(out / f"{kind}.json", document)
    if document["kind"] == "table":
        text.write(document, out)
        terminal.show(document)
    page = html.page(document, out, embedded)
    place, group = tracking.place()
    for found, folder in [*embedded, (document, out)]:
        if "error" not in found:
            tracking.log_summary(found, folder, asdict(sweep), f"{experiment['name']} {group}", place)
    print(f"{kind}: {out / ('table.md' if kind == 'table' else 'figure.json')}\npage:  {page}")
    if worth_keeping(document):
        report = Path(sweep.report)
        with locks.waited(report / "report.html"):
            keep(out, report / experiment["name"] / variant(document["model"], own))
            print(f"all:   {html.gather(report)}")
    return document


def runs_of(document: Document) -> list[PointRun]:
    """The runs behind a table, a row of which has one a benchmark, or behind a figure, whose rows are its runs."""
    if document["kind"] == "figure":
        return document["rows"]
    return [run for row in document["rows"] for run in row["runs"].values()]


def worth_keeping(document: Document) -> bool:
    """Whether anything in a document was measured, or nothing was to be: a run that failed must not take the place of one that did not."""
    runs = runs_of(document)
    return not runs or any(run["status"] == "done" for run in runs)


def keep(out: Path, kept: Path) -> None:
    """Copies a run's folder to the report, in place of an older one and only when it is there whole."""
    if kept.resolve() == out.resolve():
        return
    part = kept.with_name(kept.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(out, part, ignore=shutil.ignore_patterns(".hydra", locks.NAME, "*.log", "wandb", "tensorboard", "mlflow*"))
    shutil.rmtree(kept, ignore_errors=True)
    part.rename(kept)


def drawn(
    sweep: SweepSettings, figure: dict[str, Any], own: list[str], folder: Path, document: TableDocument, table: dict[str, Any]
) -> tuple[FigureDocument, Path]:
    """A figure on the page of a table, and its folder; where it cannot be drawn its document says why, and the table stands without."""
    found: FigureDocument
    try:
        found = measure_figure(sweep, figure, own, folder, document, table)
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            log.error("%s failed:\n%s", figure["name"], traceback.format_exc())
        found = {"kind": "figure", "name": figure["name"], "title": figure["title"], "error": one_line(error)}
    write_json(folder / "figure.json", found)
    return found, folder


def model_name(experiment: dict[str, Any], own: list[str]) -> str:
    model = composed("sweep", [*experiment.get("overrides", []), *own]).model
    return str(model["name"] or Path(model["path"]).name)


def variant(model: str, own: list[str]) -> str:
    """The folder of a run in the report: its model and what else the user set, so that a shortened run never takes a whole one's place."""
    words = [word for word in own if plan.key(word) not in SAME_TABLE and not plan.key(word).startswith("logger.")]
    said = ",".join([model, *sorted(words)])
    name = re.sub(r"[^\w.,=+-]+", "_", said)
    return name if name == said and len(name) <= LONGEST else f"{name[:LONGEST]},{hashlib.sha256(said.encode()).hexdigest()[:6]}"


def provenance(sweep: SweepSettings, seconds: float) -> dict[str, Any]:
    return results.provenance(sweep.seed, seconds) | {"date": date.today().isoformat()}


def failures(document: Document) -> list[str]:
    """What failed in a document: "label: why"."""
    return [f"{run['point']}: {run['error']}" for run in runs_of(document) if run["status"] == "failed"]
