"""sweep.py tables=list and figures=list: experiments, at once; then their finished points, and the estimated time for the rest."""

from __future__ import annotations

import contextlib
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import get_class

from blink_exp import reference
from blink_exp.documents.experiments import Experiment, ExperimentPoint
from blink_exp.errors import UserError
from blink_exp.evaluation import results, store
from blink_exp.evaluation.evaluator import incomplete
from blink_exp.evaluation.shared_runs import point_folder
from blink_exp.evaluation.terminal import bar
from blink_exp.files import read_text
from blink_exp.reports.console import show_table
from blink_exp.settings.budgets import displaced
from blink_exp.settings.compose import composed
from blink_exp.settings.roots import EvaluateSettings, SweepSettings
from blink_exp.studies import matching, plan

LIMIT = re.compile(r"^limit: (\S+)$", re.M)


def show_list(sweep: SweepSettings, experiments: list[Experiment], user_overrides: list[str]) -> None:
    """Prints two tables: id, title and what varies; then, where the store has points, number of points, finished ones, and the estimated
    time for the others."""
    show_table(("id", "title", "what varies"), [(one["name"], one["title"], varies(one)) for one in experiments])
    finished_points = Store(sweep)
    rows = []
    with bar(len(experiments), "looking into the store", True) as advance:
        for experiment in experiments:
            listed = finished_points.listed(experiment, user_overrides)
            left = finished_points.seconds([point for point in listed if not point.done])
            done = sum(point.done for point in listed)
            rows.append((experiment["name"], str(len(listed)), str(done), "" if left is None else f"{left / 60:.0f} min"))
            advance(1)
    title = "points: on the benchmarks of this model; left: by the points in the store, on this machine"
    show_table(("id", "points", "done", "left"), rows, title, right=("points", "done", "left"))


def limit_of(folder: Path) -> str:
    """The ``limit`` of a stored point, as ``str`` writes it. Read as text: to parse the settings of every point takes seconds."""
    with contextlib.suppress(OSError, ValueError):
        match = LIMIT.search(read_text(folder / results.CONFIG))
        return "None" if match is None or match[1] == "null" else match[1]
    return "None"


def varies(experiment: Experiment) -> str:
    """What the paper's table or figure varies, from the reference data; empty for experiments of this project."""
    source = experiment.get("source")
    if not source:
        return ""
    return reference.source_of(experiment["paper"], source)["experiment"]["varies"]


@dataclass(frozen=True)
class Listed:
    """A point of the list. ``model``, ``limit``: its settings; ``done``: whether the store has it, finished."""

    model: str
    benchmark: str
    limit: int | None
    done: bool = False


class Store:
    """The finished points of a sweep's store, and their pace."""

    def __init__(self, sweep: SweepSettings):
        self.sweep, self.root = sweep, Path(sweep.store)
        self.pace: dict[tuple[str, str], list[float]] = {}  # {(backbone, benchmark): seconds per sample}
        self.samples: dict[str, int] = {}  # {benchmark: largest number of samples in a point}
        self.measured: set[tuple[str, str, str]] = set()  # (model, benchmark, limit) of finished points
        self.finished: set[Path] = set()
        for folder, metrics in store.paces(self.root.glob("*/metrics.json")):
            self.finished.add(folder)
            name = metrics["benchmark"]
            self.pace.setdefault((metrics["backbone"], name), []).append(metrics["seconds"] / max(1, metrics["samples"]))
            self.samples[name] = max(self.samples.get(name, 0), metrics["samples"])
            self.measured.add((metrics["backbone"].partition("@")[0], name, limit_of(folder)))

    def listed(self, experiment: Experiment, user_overrides: list[str]) -> list[Listed]:
        """Every point on every benchmark. Where the store has no point of the model and benchmark at this ``limit``, none is composed,
        which takes half a second each."""
        out: list[Listed] = []
        points = plan.points(experiment)
        for name in plan.benchmarks(experiment, user_overrides, plan.on_scale_model(experiment, user_overrides)) if points else ():
            of_all = plan.composed_once((*plan.words(experiment, {"overrides": []}, name), *user_overrides))
            base = Listed(str(of_all.model["name"]), name, of_all.limit)
            measured = get_class(of_all.benchmark["_target_"]).name  # type: ignore[attr-defined]
            some_done = (base.model, measured, str(of_all.limit)) in self.measured
            for point in points:
                if not some_done and not any(plan.key(word).partition(".")[0] == "model" for word in point["overrides"]):
                    out.append(base)
                    continue
                first = [*plan.words(experiment, point, name), *self.modules(experiment, user_overrides, point)]
                out.append(self.point(first, user_overrides, name, point.get("match")))
        return out

    def modules(self, experiment: Experiment, user_overrides: list[str], point: ExperimentPoint) -> list[str]:
        """The override with the path of the modules that a point uses; they need not be trained yet."""
        try:
            training_run = plan.training(self.sweep, experiment, user_overrides, point)
        except UserError:
            return []
        return [f"tokensr.path={training_run[1] / 'tokensr'}"] if training_run else []

    def point(self, first: list[str], user_overrides: list[str], benchmark: str, match: str | None = None) -> Listed:
        settings = self.settings(first, user_overrides, match)
        return Listed(str(settings.model["name"]), benchmark, settings.limit, self.done(point_folder(settings)))

    def settings(self, first: list[str], user_overrides: list[str], match: str | None = None) -> EvaluateSettings:
        words = [*user_overrides, f"store={self.root}"]
        first = displaced(first, user_overrides)
        settings: EvaluateSettings = composed("sweep", [*first, *words])
        if match and (match_result := matching.stored_match(matching.match_file(settings, match))) is not None:
            settings = composed("sweep", [*first, *words, *matching.match_overrides(settings, match, match_result["value"])])
        return settings

    def done(self, folder: Path) -> bool:
        metrics = store.metrics_of(folder) if folder in self.finished else None
        return metrics is not None and not incomplete(len(metrics["skipped"]), metrics["samples"], self.sweep.skip_limit)

    def seconds(self, points: list[Listed]) -> float | None:
        """Estimated seconds for points; None if there is no estimate for one of them."""
        spent = [self.typical(point.model, point.benchmark, point.limit) for point in points]
        return None if None in spent else sum(s for s in spent if s is not None)

    def typical(self, model: str, benchmark: str, limit: int | None) -> float | None:
        """Estimated seconds of a point by the median pace, on ``limit`` samples or the largest number measured so far."""
        paces = [p for (backbone, name), values in self.pace.items() if name == benchmark and backbone.startswith(model) for p in values]
        return statistics.median(paces) * (limit or self.samples[benchmark]) if paces else None
