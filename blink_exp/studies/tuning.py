"""sweep.py -m search=blink: settings that Optuna chooses on the validation part of a benchmark, reported on its test part.

The parts are those of ``benchmarks.parts``. Every point of a search runs on the validation part, regardless of the command line. The
test part is used once, at the end, for two points: the best one, and the command without its search. The search is then finished.

The value of a point is ``objective`` (null: the benchmark's headline score) minus ``token_price`` per visual token per layer. It is always
maximised, regardless of the sweeper's ``direction``: the plugin's default is to minimise.
"""

from __future__ import annotations

import logging
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from blink_exp.cli import guard
from blink_exp.documents.runs import PointRun
from blink_exp.documents.searches import SearchDocument, SearchPart
from blink_exp.errors import UserError, nearest
from blink_exp.evaluation import results
from blink_exp.files import write_json, write_text
from blink_exp.reports.search import show, text
from blink_exp.reports.statistics import compare
from blink_exp.settings import compose
from blink_exp.settings.compose import composed
from blink_exp.settings.doors import command_name
from blink_exp.settings.roots import SweepSettings
from blink_exp.studies.deltas import benchmark_of, records_of
from blink_exp.studies.jobs import multirun
from blink_exp.studies.plan import key
from blink_exp.studies.point import guarded
from blink_exp.studies.summary import write_summary

PRESETS = ("model", "method", "benchmark")  # config groups that conf/search may select
SEARCH_SETTINGS = (
    "search",
    "objective",
    "token_price",
    "part",
    "store",
    "force",
    "devices",
    "report",
)  # settings of a search, not of its points
SETTINGS = ("default", "best")
CHOOSING = "validation"  # the part that a search optimises on


class Search(Callback):
    """Hydra callback: checks a search before it starts and writes its result when it ends."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if searches(config.hydra):
            guard(check, config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if searches(config.hydra):
            guard(finish, config)


def searches(hydra: Any) -> bool:
    """Whether Optuna proposes the points of this multirun."""
    return "optuna" in str(hydra.sweeper._target_)


def check(config: DictConfig) -> None:
    """Raises UserError if a search would optimise on the test part, or has nothing to optimise."""
    from hydra.utils import get_object

    folder = Path(config.hydra.sweep.dir)
    refuse_test(config.part)
    sweeper = config.hydra.sweeper
    if not sweeper.get("params") and not swept(config):
        raise UserError("hydra/sweeper=optuna has nothing to search; add search=blink, or thresholds.tau_exp=interval(0.3,0.9)")
    if sweeper.get("n_trials", 1) < 1:
        raise UserError(f"hydra.sweeper.n_trials must be a whole number of at least 1, got {sweeper.n_trials}")
    if OmegaConf.is_list(sweeper.direction):
        raise UserError(f"hydra.sweeper.direction={list(sweeper.direction)} is more than one aim; use maximize (and token_price=...)")
    if hasattr(get_object(config.benchmark._target_), "probe"):
        name = config.benchmark._target_.rpartition(".")[2].lower()
        raise UserError(f"benchmark={name} runs no method, so nothing can be tuned on it; use one with questions")
    if (folder / "tuning.json").is_file():
        raise UserError(f"{folder} holds a search that has been measured on the test part, so it is over; give another hydra.sweep.dir")
    if "seed" in sweeper.sampler and sweeper.sampler.seed is None:
        sweeper.sampler.seed = config.seed  # the same command proposes the same points, so an interrupted search resumes from the store
    logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's storage logs every table that it creates
    print("searching on the validation part; the test part is looked at once, at the end", flush=True)


def refuse_test(part: str) -> None:
    if part == "test":
        raise UserError("part=test is what a search is reported on, so it cannot choose there; leave part away")


def prepared(settings: SweepSettings) -> SweepSettings:
    """The settings of this job; in a search, set to the validation part."""
    from hydra.core.hydra_config import HydraConfig

    if not searches(HydraConfig.get()):
        return settings
    refuse_test(settings.part)
    return replace(settings, part=CHOOSING)


def returned(row: PointRun, objective: str | None, price: float) -> Any:
    """The return value of a job for Hydra: its row; in a search the value of the point, -inf (to maximise) for a failed one."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if not searches(hydra):
        return row
    value = worth(row, objective, price) if row["status"] == "done" else -math.inf
    return -value if str(hydra.sweeper.direction).endswith("minimize") else value


def worth(row: PointRun, objective: str | None, price: float) -> float:
    """The score ``objective`` (None: the headline) of a measured row, less ``price`` a visual token of a layer."""
    value = row["scores"].get(aim(row, objective))
    if value is None:
        scores = [k for k, v in row["scores"].items() if v is not None]
        cure = nearest(str(aim(row, objective)), scores) if scores else "use a benchmark, or a split of it, that has answers"
        raise UserError(f"objective={aim(row, objective)} is no score of {row['benchmark']}; {cure}")
    if not price:
        return float(value)
    tokens = row["tokens"].get("layer")
    if tokens is None:
        raise UserError(f"token_price={price}: the tokens of {row['method']} are not known; use token_price=0")
    return float(value) - price * float(tokens)


def aim(row: PointRun, objective: str | None) -> str:
    return str(objective or row["headline"])


def swept(config: DictConfig) -> list[str]:
    """The user's overrides with several values."""
    return [word for word, many in _words(config) if many]


def single(config: DictConfig) -> list[str]:
    """The user's overrides with a single value, except the part."""
    return [word for word, many in _words(config) if not many and key(word) != "part"]


def _words(config: DictConfig) -> list[tuple[str, bool]]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = list(config.hydra.overrides.task)
    return [(w, o.is_sweep_override()) for w, o in zip(words, OverridesParser.create().parse_overrides(words), strict=True)]


def finish(config: DictConfig) -> None:
    """Writes summary.csv, summary.md, tuning.json and tuning.md and prints the result. Raises UserError if all points failed."""
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    folder = Path(config.hydra.sweep.dir)
    rows = multirun(config, of_this_run=True).rows()
    fixed = single(config)
    for row in rows:
        row["point"] = " ".join(w for w in row["overrides"] if w not in fixed and key(w) != "part")
    write_summary(rows, folder)
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise UserError(f"all {len(rows)} points failed, first {rows[0]['point']}: {rows[0]['error']}")
    document = chosen(config, done, fixed, len(rows) - len(done))
    write_json(folder / "tuning.json", document)
    write_text(folder / "tuning.md", text(document))
    show(document)
    print(f"best: {document['settings']['best']['command']}\nwritten to {folder}/tuning.md and tuning.json")


def chosen(config: DictConfig, done: list[PointRun], fixed: list[str], failed: int) -> SearchDocument:
    """The document of the best point of ``done`` and of the command without its search (``fixed``), each on both parts. ``failed``: the
    number of points that failed."""

    def value(row: PointRun) -> float:
        return worth(row, config.objective, config.token_price)

    best = max(done, key=value)
    words = {"default": fixed, "best": [w for w in best["overrides"] if key(w) != "part"]}
    runs = {"validation": {"default": measured(fixed, "validation"), "best": best}}
    runs["test"] = {name: measured(words[name], "test") for name in SETTINGS}
    score = aim(best, config.objective)
    test = runs["test"]
    difference = compare(benchmark_of(test["best"]), records_of(test["best"]), records_of(test["default"]), [score])
    return {
        "benchmark": best["benchmark"],
        "protocol": best["protocol"],
        "backbone": best["backbone"],
        "objective": score,
        "token_price": config.token_price,
        "settings": {
            name: {
                "point": best["point"] if name == "best" else "",
                "command": shlex.join(standalone_command(config, words[name])),
                "validation": part_summary(runs["validation"][name], score, value(runs["validation"][name])),
                "test": part_summary(test[name], score, value(test[name])),
            }
            for name in SETTINGS
        },
        "difference": difference.get(score),
        **results.provenance(config.seed, sum(row["seconds"] for row in done)),
        "points": len(done) + failed,
        "failed": failed,
    }


def measured(words: list[str], part: str) -> PointRun:
    """Measures a point on a part. Raises UserError if it fails."""
    label = f"part={part} {' '.join(words)}"
    row = guarded(replace(composed("sweep", words), part=part), label)
    if row["status"] == "failed":
        raise UserError(f"{label} failed: {row['error']}")
    return row


def part_summary(row: PointRun, score: str, value: float) -> SearchPart:
    """The report entry of a point on a part."""
    return {
        "score": row["scores"][score],
        "stderr": row["stderr"].get(score),
        "worth": value,
        "samples": row["samples"],
        "skipped": row["skipped_samples"],
        "tokens": row["tokens"].get("layer"),
        "folder": row["folder"],
    }


def standalone_command(config: DictConfig, words: list[str]) -> list[str]:
    """The command that runs a point of a search without it, on the test part."""
    cfg = compose.config("sweep", words)
    presets = {group: f"{group}={config.hydra.runtime.choices[group]}" for group in PRESETS}
    point_settings = {key(word): word for word in words if key(word).partition(".")[0] not in SEARCH_SETTINGS}
    stands_for = {path: f"{path}={OmegaConf.select(cfg, path)}" for path in _reads_search(OmegaConf.to_container(cfg, resolve=False))}
    return [*command_name("evaluate").split(), *(presets | point_settings | stands_for).values(), "part=test"]


def _reads_search(node: Any, path: str = "") -> list[str]:
    """Key paths of a configuration that interpolate ``search``."""
    if isinstance(node, dict):
        return [key_path for k, v in node.items() for key_path in _reads_search(v, f"{path}.{k}" if path else str(k))]
    return [path] if isinstance(node, str) and "${search." in node else []
