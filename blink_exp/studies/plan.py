"""What an experiment runs. A file of conf/table or conf/figure is data:

overrides       of every point, before its own, as for evaluate.py; the user's command-line overrides come last and win
benchmarks      those that it runs on: ``scale`` on a model that ships with this project, ``published`` on any other. The user's
                ``benchmark=`` wins
at              {benchmark: overrides of every point on that one}
points          label, overrides; optionally ``published`` ({table, row, ...}, see ``reference.entry``), ``baseline`` (label of the
                point that it is compared with), ``control`` (true: ours, not in the paper), ``needs: regions`` (runs only on benchmarks
                that say where the answer is to be seen), ``match`` (see ``matching``), and for figures ``series`` and ``x``
budgets         {name: {overrides, tokens: the number of tokens that it is published for}}: all points but those with ``once`` run at
                each of them, as "label, name", except at those of its ``not_at``; a point's ``rival`` is its name in the reference data
sweeps          short for many points: series, x (a list) and overrides in which {x} stands for each
trains          overrides of a training whose modules the points use; a point's own ``trains`` come behind them and make a training
                of its own, and what was measured of it stands in the point's run under ``training``
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from blink_exp.backbone.load import check_there
from blink_exp.backbone.shipped import shipped
from blink_exp.cli import under_torchrun
from blink_exp.documents.experiments import Experiment, ExperimentPoint
from blink_exp.documents.runs import PointRun, TrainingMetrics
from blink_exp.errors import UserError
from blink_exp.evaluation import identity, locks, store
from blink_exp.evaluation.evaluator import prepare_benchmark
from blink_exp.evaluation.ranks import OF_TORCHRUN
from blink_exp.files import read_object
from blink_exp.settings.budgets import GROUP, ROOT_SETTINGS, displaced
from blink_exp.settings.check import SHORT_FOR
from blink_exp.settings.compose import composed, composed_plain
from blink_exp.settings.doors import command_line, training_process
from blink_exp.settings.roots import EvaluateSettings, SweepSettings
from blink_exp.studies.matching import matched
from blink_exp.studies.point import failed, guarded

# settings of the sweep, not of its points
SWEEP_SETTINGS = (
    "table=",
    "tables=",
    "table.",
    "figure=",
    "figures=",
    "figure.",
    "store=",
    "force=",
    "devices=",
    "report=",
    "dashboard=",
    "train=",
    "share=",
    "hydra.",
    "hydra/",
)


def command_line_overrides() -> list[str]:
    """The user's command-line overrides that apply to every point."""
    from hydra.core.hydra_config import HydraConfig

    return [word for word in HydraConfig.get().overrides.task if not word.startswith(SWEEP_SETTINGS)]


SAME = SHORT_FOR | dict.fromkeys(ROOT_SETTINGS, GROUP)  # {setting: that which it sets as well}


def key(word: str) -> str:
    return word.split("=")[0].lstrip("+~")


def points(experiment: Experiment) -> list[ExperimentPoint]:
    """The points of an experiment, ``budgets`` and ``sweeps`` expanded."""
    written_out = list(experiment.get("points") or [])
    if budgets := experiment.get("budgets"):
        once = [_with_rival(experiment, point, None) for point in written_out if point.get("once")]
        each = [
            _at_budget(experiment, point, name)
            for name in budgets
            for point in written_out
            if not point.get("once") and name not in point.get("not_at", ())
        ]
        written_out = [*once, *each]
    for sweep in experiment.get("sweeps") or []:
        for x in sweep["x"]:
            overrides = [word.replace("{x}", str(x)) for word in sweep["overrides"]]
            written_out.append({"label": f"{sweep['series']}: {x}", "series": sweep["series"], "x": x, "overrides": overrides})
    return written_out


def at_budget(label: str, budget: str | None) -> str:
    return label if budget is None else f"{label}, {budget}"


def _at_budget(experiment: Experiment, point: ExperimentPoint, name: str) -> ExperimentPoint:
    budget = experiment["budgets"][name]
    baseline: ExperimentPoint = {"baseline": at_budget(point["baseline"], name)} if point.get("baseline") else {}
    changed: ExperimentPoint = {
        "label": at_budget(point["label"], name),
        "budget": name,
        "overrides": [*point["overrides"], *budget["overrides"]],
        **baseline,
    }
    return _with_rival(experiment, {**point, **changed}, budget["tokens"])


def _with_rival(experiment: Experiment, point: ExperimentPoint, tokens: int | None) -> ExperimentPoint:
    if not point.get("rival"):
        return point
    return {**point, "rival_cell": {"backbone": experiment["rivals_on"], "tokens": tokens, "method": point["rival"]}}


def benchmarks(experiment: Experiment, user_overrides: list[str], scale: bool) -> list[str]:
    """The benchmark presets of an experiment: the user's, else those of ``benchmarks`` for this kind of model."""
    chosen = [word.partition("=")[2] for word in user_overrides if key(word) == "benchmark"]
    listed = chosen[-1:] or (experiment.get("benchmarks") or {}).get("scale" if scale else "published") or []
    return [listed] if isinstance(listed, str) else list(listed)


def on_scale_model(experiment: Experiment, user_overrides: list[str]) -> bool:
    """Whether an experiment runs on a model that ships with this project."""
    return shipped(composed_once((*(experiment.get("overrides") or []), *user_overrides)).model["path"]) is not None


def problem(experiment: Experiment, user_overrides: list[str]) -> str | None:
    """Why no point of an experiment can run, for what all of them share: a device, the model, or modules that are not there. None: they may
    run."""
    try:
        settings = composed_once((*(experiment.get("overrides") or []), *user_overrides))
        check_there(**settings.model)
        if (modules := settings.tokensr.path) is not None and not Path(modules).is_dir():
            raise UserError(f"tokensr.path={modules} is not there; give the folder of modules that a training wrote")
    except UserError as error:
        return str(error)
    return None


def words(experiment: Experiment, point: ExperimentPoint, benchmark: str) -> list[str]:
    """The overrides of a point on a benchmark. Of two with the same key, Hydra uses the later."""
    benchmark_overrides = (experiment.get("at") or {}).get(benchmark, [])
    return [*experiment.get("overrides", []), f"benchmark={benchmark}", *benchmark_overrides, *point["overrides"]]


def runs_on(point: ExperimentPoint, first: list[str], user_overrides: list[str]) -> bool:
    """Whether a point runs on the benchmark of its overrides ``first``: one that needs annotated regions, where there are any."""
    if point.get("needs") != "regions":
        return True
    try:
        return _annotated((*first, *user_overrides))
    except (UserError, OSError):
        return True  # reported when the point is measured


@functools.lru_cache(maxsize=64)
def _annotated(overrides: tuple[str, ...]) -> bool:
    return any(sample.regions for sample in prepare_benchmark(composed_once(overrides)).samples())


def command(overrides: list[str], root: str = "evaluate") -> str:
    """The command that runs a point alone: the last override per key, without logger settings."""
    last = {key(word): word for word in overrides if key(word).partition(".")[0] != "logger"}
    return command_line(root, list(last.values()))


def refuse_collisions(experiment: Experiment, user_overrides: list[str]) -> None:
    """Raises UserError if the user sets what the points vary: the row labels would then be wrong."""
    varied = {key(word): point["label"] for point in points(experiment) for word in point["overrides"]}
    if (training_point := next((point for point in points(experiment) if point.get("trains")), None)) is not None:
        varied["tokensr.path"] = training_point["label"]
    for word in user_overrides:
        mine = SAME.get(key(word), key(word))
        for name, label in varied.items():
            theirs = SAME.get(name, name)
            inner = mine.partition(".")[0] == theirs and mine.partition(".")[0] not in ("method", "model", "benchmark")
            if mine == theirs or theirs.startswith(mine + ".") or inner:
                raise UserError(
                    f"{word} would replace {name} of {experiment['name']}'s point {label}; leave it away, or run that point alone"
                )


def point_settings(
    sweep: EvaluateSettings, first: list[str], user_overrides: list[str], match: str | None = None
) -> tuple[EvaluateSettings, list[str]]:
    """The settings of a point and its overrides. ``sweep``: settings of the sweep; ``match``: see ``matching``."""
    store_overrides = (f"store={sweep.store}", f"force={sweep.force}", f"devices={sweep.devices}")
    first = displaced(first, user_overrides)
    if match:
        first = [*first, *matched(composed_once((*first, *user_overrides, *store_overrides)), match)]
    return composed_once((*first, *user_overrides, *store_overrides)), [*first, *user_overrides]


@functools.lru_cache(maxsize=1024)
def composed_once(overrides: tuple[str, ...]) -> EvaluateSettings:
    """The settings of a point with ``overrides``; composed once a process."""
    return composed("sweep", overrides)  # type: ignore[no-any-return]


def measured_run(
    sweep: EvaluateSettings, first: list[str], user_overrides: list[str], label: str, match: str | None = None, **logged: Any
) -> PointRun:
    """The run of a point, measured or failed. ``sweep``, ``match``: see ``point_settings``; ``logged``: ``experiment`` and ``x``, see
    ``point.guarded``."""
    overrides = [*displaced(first, user_overrides), *user_overrides]
    try:
        settings, overrides = point_settings(sweep, first, user_overrides, match)
    except Exception as error:  # also errors wrapped by Hydra, and of models and data sets during matching
        run = failed(label, error)
    else:
        run = guarded(settings, label, **logged)
    return run | {"command": command(overrides)}


def settings_of(sweep: SweepSettings, kind: str, experiment: Experiment, user_overrides: list[str]) -> list[EvaluateSettings]:
    """The settings of every point of a table, or of a figure (measured on one benchmark). Points that cannot be composed are omitted.
    Required modules are trained first."""
    refuse_collisions(experiment, user_overrides)
    names = benchmarks(experiment, user_overrides, on_scale_model(experiment, user_overrides))[: None if kind == "table" else 1]
    out = []
    for point in points(experiment) if names else []:
        with contextlib.suppress(Exception):  # reported when the point is measured
            modules = trained(sweep, experiment, user_overrides, point)
            for name in names:
                first = [*words(experiment, point, name), *modules]
                with contextlib.suppress(Exception):
                    if not runs_on(point, first, user_overrides):
                        continue
                    out.append(point_settings(sweep, first, user_overrides, point.get("match"))[0])
    return out


def training(
    sweep: SweepSettings, experiment: Experiment, user_overrides: list[str], point: ExperimentPoint | None = None
) -> tuple[list[str], Path] | None:
    """The overrides of train.py for the modules that a point uses, and their folder in the store: what the experiment and the point
    ``trains``, with the user's model and ``train`` overrides, and for a training of the point's own the user's layers. None if it trains
    none, or the user names modules.

    Raises UserError on a published backbone without ``train`` overrides: the scale model's training settings do not fit it."""
    point_training = list((point or {}).get("trains") or [])
    words_of_training = [*(experiment.get("trains") or []), *point_training]
    if not words_of_training or any(word.startswith("tokensr.path=") for word in user_overrides):
        return None
    shared_groups = ("model", "seed", *(("layer", "layers") if point_training else ()))
    shared = [word for word in (*experiment.get("overrides", []), *user_overrides) if key(word).partition(".")[0] in shared_groups]
    train_overrides = shlex.split(sweep.train)
    overrides = [*shared, *words_of_training, *train_overrides]
    settings = composed_plain("train", overrides)
    if shipped(settings["model"]["path"]) is None and not train_overrides:
        needed = " ".join(words_of_training)
        raise UserError(
            f"{experiment['name']} needs TokenSR modules ({needed}) of {settings['model']['path']}; give tokensr.path=FOLDER, or"
            " \"train='trainer=paper data=llava_665k data.json=... data.images=...'\""
        )
    text = json.dumps([settings | {"logger": None}, identity.of_model(settings["model"]["path"])], sort_keys=True)
    folder = (Path(sweep.store) / "trained" / hashlib.sha256(text.encode()).hexdigest()[:16]).resolve()
    return [*overrides, *(word for word in user_overrides if key(word).partition(".")[0] == "logger")], folder


def trained(sweep: SweepSettings, experiment: Experiment, user_overrides: list[str], point: ExperimentPoint | None = None) -> list[str]:
    """The override with the path of the modules that a point uses (see ``training``). Trains them unless the store has them."""
    training_run = training(sweep, experiment, user_overrides, point)
    if training_run is None:
        return []
    overrides, folder = training_run
    if not store.finished(folder):
        with locks.waited(folder):
            if not store.finished(folder):
                _train(overrides, folder)
    return [f"tokensr.path={folder / 'tokensr'}"]


def training_measures(sweep: SweepSettings, experiment: Experiment, user_overrides: list[str], point: ExperimentPoint) -> dict[str, float]:
    """What a point's training measured, means over its layers (``training.quality``), and ``parameters`` of a module; empty where the point
    trains none of its own."""
    training_run = training(sweep, experiment, user_overrides, point) if point.get("trains") else None
    if training_run is None:
        return {}
    document: Any = read_object(training_run[1] / "metrics.json", {}, "it is trained again")
    finished: TrainingMetrics = document
    rows = list(finished["layers"].values())
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "samples"}
    return means | {"parameters": finished["parameters"] / len(rows)}


def _train(overrides: list[str], folder: Path) -> None:
    print(f"training first, which limit= does not shorten (tokensr.path=FOLDER spares it): {command(overrides, 'train')}", flush=True)
    resume = [f"resume={folder}"] if (folder / "last.ckpt").is_file() else []
    process = training_process([*overrides, *resume, f"hydra.run.dir={folder}"])
    environment = {k: v for k, v in os.environ.items() if k not in OF_TORCHRUN}  # of torchrun's other processes Lightning would wait for
    done = subprocess.run(process, env=environment if under_torchrun() else None)
    if done.returncode:
        raise UserError(f"the training that this needs failed; see it alone: {command(overrides, 'train')}")
