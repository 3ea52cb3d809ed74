"""A multirun of sweep.py: the shared run of its jobs before Hydra runs them one by one, and the summary at its end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp import tracking
from blink_exp.cli import guard, one_line
from blink_exp.errors import UserError
from blink_exp.evaluation.pace import closer
from blink_exp.evaluation.records import each
from blink_exp.evaluation.shared_runs import run_together
from blink_exp.settings.doors import EXPERIMENTS
from blink_exp.settings.messages import HYDRA_ERRORS
from blink_exp.settings.roots import SweepSettings
from blink_exp.settings.values import plain, typed
from blink_exp.studies.jobs import Jobs, end, multirun
from blink_exp.studies.summary import write_summary
from blink_exp.studies.sweep_folder import name_points
from blink_exp.studies.sweep_pace import announcement
from blink_exp.studies.tuning import CHOOSING, searches

log = logging.getLogger(__name__)


class Summary(Jobs):
    """Hydra callback: the table at the end of a multirun, on the terminal and as summary.csv and summary.md."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        guard(tracking.check, plain(config.logger))
        announced = guard(announced_by, config)  # before multirun.yaml, whose time it reads, is that of this sweep
        super().on_multirun_start(config)
        print(announced, flush=True)

    def end(self, config: DictConfig) -> None:
        if searches(config.hydra):
            return  # the callback Search writes the summary
        folder = Path(config.hydra.sweep.dir)
        rows = multirun(config).rows()
        common = name_points(rows)
        write_summary(rows, folder)
        settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # Hydra's lacks the number of a job
        tracking.log_summary(rows, folder, plain(settings))
        if common:
            print("at every point: " + " ".join(common))
        for row in rows:
            with contextlib.suppress(UserError, KeyError):  # a failed point has no folder
                if (command := closer(each(row["folder"]), row["overrides"])) is not None:
                    print(f"one question of it, layer by layer: {command}")
                    break
        end(rows, "points")


def announced_by(config: DictConfig) -> str:
    command: Any = OmegaConf.to_container(config)  # not all of Hydra's interpolations have values before a job
    return announcement(command, Path(config.hydra.sweep.dir))


def run_jobs(configs: Iterable[DictConfig]) -> None:
    """``run_together`` for the jobs of a multirun; ``configs``: as Hydra composes them, its own settings included."""
    run_together(settings for settings in map(shared_settings, configs) if settings is not None)


def shared_settings(cfg: DictConfig) -> SweepSettings | None:
    """The settings of a job that may run together with others; None for one that runs alone or fails."""
    if not cfg.share or any(OmegaConf.select(cfg, kind) is not None for kind in (*EXPERIMENTS, "dashboard")):
        return None
    try:
        settings: SweepSettings = typed(cfg)
    except (UserError, *HYDRA_ERRORS) as error:
        log.info("not run together with the others: %s", one_line(error))
        return None
    return replace(settings, part=CHOOSING) if searches(cfg.hydra) else settings
