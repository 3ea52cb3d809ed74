"""``python sweep.py``: the points of tables and figures, one job of a multirun, or a dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from blink_exp import tracking
from blink_exp.errors import UserError
from blink_exp.settings.doors import EXPERIMENTS
from blink_exp.settings.messages import HYDRA_ERRORS
from blink_exp.settings.values import typed
from blink_exp.studies import dashboards
from blink_exp.studies.catalog import run_experiments
from blink_exp.studies.jobs import on_own_devices, write_job_row
from blink_exp.studies.point import failed, guarded
from blink_exp.studies.tuning import prepared, returned


def run(cfg: DictConfig) -> Any:
    """One job of a multirun, which returns the value that a search maximises; without -m, all experiments, or a dashboard."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
        settings = typed(cfg)
        tracking.check(settings.logger)
        if settings.dashboard is not None:
            dashboards.run(settings, out)
            return None
        return run_experiments(settings, out)
    chosen = next((key for key in EXPERIMENTS if cfg[key] is not None), None)
    if chosen is not None:
        name = cfg[chosen] if chosen.endswith("s") else cfg[chosen].name
        raise UserError(f"{chosen}={name} brings its own points; leave -m away")
    words = list(hydra.overrides.task)
    label = " ".join(words)
    try:
        settings = typed(cfg)
    except (UserError, *HYDRA_ERRORS) as error:
        row = failed(label, error)
    else:
        row = guarded(on_own_devices(prepared(settings)), label)
    row |= {"overrides": words}
    write_job_row(row)
    return returned(row, cfg.objective, cfg.token_price)
