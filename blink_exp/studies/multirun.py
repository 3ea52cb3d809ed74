"""A multirun of sweep.py: what its jobs do together before Hydra runs them one by one, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp import tracking
from blink_exp.cli import guard
from blink_exp.evaluation import results
from blink_exp.evaluation.shared_runs import run_together
from blink_exp.settings.check import check
from blink_exp.studies.jobs import Jobs, end, name_points, noted
from blink_exp.studies.summary import write_summary
from blink_exp.studies.tuning import on_part, searches


def check_settings(cfg: DictConfig) -> None:
    """Raises UserError for what would fail every point: settings outside their limits, and what a logger refuses."""
    check(cfg, whole=False)
    tracking.check({"logger": OmegaConf.to_container(cfg.logger, resolve=True)})


class Summary(Jobs):
    """Hydra callback: the table at the end of a multirun, on the terminal and as summary.csv and summary.md."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        guard(check_settings, config)
        super().on_multirun_start(config)

    def end(self, config: DictConfig) -> None:
        if searches(config.hydra):
            return  # Search has the last word
        folder = Path(config.hydra.sweep.dir)
        rows = noted(config)
        common = name_points(rows)
        write_summary(rows, folder)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # Hydra's lacks the number of a job
        tracking.log_summary(rows, folder, results.plain(own))
        if common:
            print("at every point: " + " ".join(common))
        end(rows, "points")


def run_jobs(configs: Iterable[DictConfig]) -> None:
    """``run_together`` for the jobs of a multirun; ``configs``: as Hydra composes them, its own settings included."""
    wanted = []
    for cfg in configs:
        if not cfg.share or any(OmegaConf.select(cfg, kind) is not None for kind in ("table", "figure", "dashboard")):
            continue
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        wanted.append(on_part(own, "validation") if searches(cfg.hydra) else own)
    run_together(wanted)
