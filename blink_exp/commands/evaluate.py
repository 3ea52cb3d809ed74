"""``python evaluate.py``: measures one configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from blink_exp import tracking
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import Incomplete, measure, prepare_benchmark
from blink_exp.evaluation.pace import announcement, closer
from blink_exp.evaluation.records import each
from blink_exp.evaluation.terminal import show_run
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import as_type, typed
from blink_exp.studies.jobs import on_own_devices


def run(cfg: DictConfig) -> dict[str, float]:
    """Measures a configuration, writes the output folder, prints a table. Returns the scores by name."""
    settings = on_own_devices(typed(cfg))
    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    point = as_type(PointSettings, settings)
    print(f"evaluating {announcement(point, hydra.runtime.choices, out)}", flush=True)
    tracking.check(settings.logger)
    try:
        finished = measure(point, out, devices=settings.devices)
    except Incomplete as error:
        raise UserError(f"{error}; with hydra.run.dir={out} the same command goes on from the answers that are there") from None
    name = f"{finished['method']}-{finished['benchmark']}"
    tracking.log_point(settings, out, out, name, benchmark=partial(prepare_benchmark, settings))
    scores = show_run(finished, out)
    if (command := closer(each(out), hydra.overrides.task)) is not None:
        print(f"one question, layer by layer: {command}")
    return scores
