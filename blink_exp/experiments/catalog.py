"""sweep.py table=... and figure=...: one experiment, all of them, or a list of what there is."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp import tracking
from blink_exp.cli import CONF, one_line
from blink_exp.errors import UserError
from blink_exp.experiments import plan, results
from blink_exp.experiments.sweep import digests

KINDS = ("table", "figure")
SAME_TABLE = ("model", "model.path", "model.device", "batch_size", "cost", "data_root")  # settings that leave a table what it is
ELSEWHERE = ("all", "list", "parity")  # presets that are no experiment of their own


def run_experiments(cfg: DictConfig, out: Path) -> dict[str, Any] | None:
    """Measures what ``cfg.table`` and ``cfg.figure`` name and writes each to ``out``, and all that is known to ``cfg.report``."""
    own = plan.own_words()
    tracking.check(results.plain(cfg))
    asked = {kind: results.plain(cfg)[kind] for kind in KINDS if OmegaConf.select(cfg, kind) is not None}
    if any(experiment["name"] == "list" for experiment in asked.values()):
        show_list(cfg, [kind for kind in KINDS if kind in asked], own)
        return None
    several = any(experiment["name"] == "all" for experiment in asked.values()) or len(asked) > 1
    document, failed = None, []
    for kind, experiment in asked.items():
        for found in everything(kind) if experiment["name"] == "all" else [experiment]:
            folder = out / found["name"] if several else out
            try:
                document = measure(cfg, kind, found, own, folder)
                failed += [f"{found['name']}: {said}" for said in failures(document)]
            except UserError as error:
                if not several:
                    raise
                failed.append(f"{found['name']}: {one_line(error)}")
                print(f"{found['name']} failed: {one_line(error)}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} points failed, first {failed[0]}")
    return document


def measure(cfg: DictConfig, kind: str, experiment: dict[str, Any], own: list[str], out: Path) -> dict[str, Any]:
    """One table or figure, measured, written to ``out`` and copied to the report, which is made anew."""
    from blink_exp.experiments.studies import measure_figure
    from blink_exp.experiments.tables import measure_table
    from blink_exp.reports import html, terminal, text

    started = time.time()
    print(f"{experiment['name']}: {experiment['title']}", flush=True)
    embedded = []
    if kind == "table":
        document = measure_table(cfg, experiment, own)
        embedded = [drawn(cfg, named("figure", name), own, out / name, document, experiment) for name in experiment.get("figures") or []]
    else:
        document = measure_figure(cfg, experiment, own, out)
    document |= {"model": model_name(experiment, own), "provenance": provenance(cfg, time.time() - started)}
    results.write_json(out / f"{kind}.json", document)
    if kind == "table":
        text.write(document, out)
        terminal.show(document)
    page = html.page(document, out, embedded)
    place, group = tracking.place()
    for found, folder in [*embedded, (document, out)]:
        if "error" not in found:
            tracking.log_summary(found, folder, results.plain(cfg), f"{experiment['name']} {group}", place)
    report = Path(cfg.report)
    kept = report / experiment["name"] / variant(document["model"], own)
    if kept.resolve() != out.resolve():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(out, kept, ignore=shutil.ignore_patterns(".hydra", "*.log", "wandb", "tensorboard", "mlflow*"))
    print(f"{kind}: {out / ('table.md' if kind == 'table' else 'figure.json')}\npage:  {page}\nall:   {html.gather(report)}")
    return document


def drawn(
    cfg: DictConfig, figure: dict[str, Any], own: list[str], folder: Path, document: dict[str, Any], table: dict[str, Any]
) -> tuple[dict[str, Any], Path]:
    """A figure on the page of a table, and its folder; where it cannot be drawn its document says why, and the table stands without."""
    from blink_exp.experiments.studies import measure_figure

    try:
        found = measure_figure(cfg, figure, own, folder, document, table)
    except (UserError, OSError) as error:
        found = {"kind": "figure", "name": figure["name"], "title": figure["title"], "error": one_line(error)}
    results.write_json(folder / "figure.json", found)
    return found, folder


def everything(kind: str) -> Iterator[dict[str, Any]]:
    """Every experiment of conf/table or conf/figure."""
    for path in sorted((CONF / kind).glob("*.yaml"), key=lambda p: natural(p.stem)):
        if path.stem not in ELSEWHERE:
            yield named(kind, path.stem)


def named(kind: str, name: str) -> dict[str, Any]:
    """The experiment in conf/<kind>/<name>.yaml."""
    from hydra import compose

    return results.plain(compose("sweep", overrides=[f"{kind}={name}"]))[kind]


def natural(name: str) -> list[Any]:
    """So that table10 stands behind table9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def model_name(experiment: dict[str, Any], own: list[str]) -> str:
    from hydra import compose

    return str(compose("sweep", overrides=[*experiment.get("overrides", []), *own]).model.name)


def variant(model: str, own: list[str]) -> str:
    """The folder of a run in the report: its model and what else the user set, so that a shortened run never takes a whole one's place."""
    words = [word for word in own if plan.key(word) not in SAME_TABLE]
    return re.sub(r"[^\w.,=+-]+", "_", ",".join([model, *sorted(words)]))[:150]


def provenance(cfg: DictConfig, seconds: float) -> dict[str, Any]:
    return results.provenance(cfg.seed, seconds) | {"date": date.today().isoformat()}


def failures(document: dict[str, Any]) -> list[str]:
    """What failed in a document: "label: why"."""
    runs = [run for row in document["rows"] for run in (row["runs"].values() if "runs" in row else [row])]
    return [f"{run['point']}: {run['error']}" for run in runs if run.get("status") == "failed"]


def show_list(cfg: DictConfig, kinds: list[str], own: list[str]) -> None:
    """What there is: id, what varies, points, how many of them are in the store, and how long the others will take by those."""
    from rich.table import Table

    shown = Table(title="points: on the benchmarks of this model; left: by the points in the store, on this machine")
    for column in ("id", "what varies", "points", "done", "left"):
        shown.add_column(column, justify="left" if column in ("id", "what varies") else "right", overflow="fold")
    known = Store(Path(cfg.store))
    for kind in kinds:
        for experiment in everything(kind):
            folders = [known.folder(first, own) for first in overrides_of(experiment, own)]
            left = known.seconds([f for f in folders if not known.done(f)])
            done = sum(known.done(f) for f in folders)
            shown.add_row(
                experiment["name"], experiment["title"], str(len(folders)), str(done), "" if left is None else f"{left / 60:.0f} min"
            )
    results.console().print(shown)


def overrides_of(experiment: dict[str, Any], own: list[str]) -> list[list[str]]:
    """The overrides of every point on every benchmark, but for what is found while it runs: matched settings, trained modules."""
    names = plan.benchmarks(experiment, own, plan.on_scale_model(experiment, own))
    return [plan.words(experiment, point, name) for name in names for point in plan.points(experiment)]


class Store:
    """What is done: the finished points below ``root``."""

    def __init__(self, root: Path):
        self.root = root
        self.settings: dict[Path, tuple[str, str]] = {}  # of a point's folder: model and benchmark
        self.spent: dict[tuple[str, str], list[float]] = {}
        for file in root.glob("*/metrics.json"):
            found = json.loads(file.read_text())
            self.spent.setdefault((found["backbone"], found["benchmark"]), []).append(found["seconds"])

    def folder(self, first: list[str], own: list[str]) -> Path:
        from hydra import compose

        from blink_exp.experiments.evaluate import locate

        cfg = compose("sweep", overrides=[*first, *own])
        locate(cfg)
        settings = results.plain(cfg)
        folder = self.root / results.point_hash(settings, digests(settings))
        preset = next(word.partition("=")[2] for word in reversed([*first, *own]) if plan.key(word) == "benchmark")
        self.settings[folder] = str(cfg.model.name), preset
        return folder

    def done(self, folder: Path) -> bool:
        return (folder / "metrics.json").is_file()

    def seconds(self, folders: list[Path]) -> float | None:
        """How long points will take; None where nothing like one of them has been measured."""
        spent = [self.typical(*self.settings[folder]) for folder in folders]
        return None if None in spent else sum(s for s in spent if s is not None)

    def typical(self, model: str, benchmark: str) -> float | None:
        found = [s for (backbone, name), spent in self.spent.items() if name == benchmark and backbone.startswith(model) for s in spent]
        return statistics.median(found) if found else None
