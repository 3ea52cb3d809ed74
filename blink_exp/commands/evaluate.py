"""``python evaluate.py``: measures one configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from blink_exp import tracking
from blink_exp.errors import UserError
from blink_exp.evaluation import results
from blink_exp.evaluation.evaluator import Incomplete, measure, prepare_benchmark
from blink_exp.evaluation.terminal import show_run
from blink_exp.settings.check import check


def run(cfg: DictConfig) -> dict[str, float]:
    """Measures ``cfg``, writes the output folder, prints a table. Returns the scores by name."""
    check(cfg)
    out = Path(HydraConfig.get().runtime.output_dir)
    tracking.check(results.plain(cfg))
    try:
        finished = measure(cfg, out)
    except Incomplete as error:
        raise UserError(f"{error}; with hydra.run.dir={out} the same command goes on from the answers that are there") from None
    name = f"{finished['method']}-{finished['benchmark']}"
    tracking.log_point(results.plain(cfg), out, out, name, benchmark=partial(prepare_benchmark, cfg.copy()))
    return show_run(finished, out)
