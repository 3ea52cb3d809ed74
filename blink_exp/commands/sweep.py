"""sweep.py: which of its jobs a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp.errors import UserError
from blink_exp.files import write_json
from blink_exp.studies import dashboards
from blink_exp.studies.catalog import run_experiments
from blink_exp.studies.jobs import note
from blink_exp.studies.multirun import check_settings
from blink_exp.studies.point import guarded
from blink_exp.studies.tuning import prepared, returned


def run(cfg: DictConfig) -> Any:
    """One job of a multirun, which returns what a search raises; without -m, all points of ``table`` and ``figure``, or a dashboard."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    if hydra.mode != RunMode.MULTIRUN:
        check_settings(cfg)
        if cfg.dashboard is not None:
            dashboards.run(cfg, out)
            return None
        if OmegaConf.select(cfg, "table.name") == "parity":
            raise UserError("table=parity has rules of its own; python evaluate.py table=parity model=llava_1_5_7b")
        if all(OmegaConf.select(cfg, kind) is None for kind in ("table", "figure")):
            raise UserError(
                "nothing to sweep; add -m and comma lists (thresholds=high_exp,low_drop), a table (table=blink_table2, table=list for all)"
                " or a figure (figure=blink_fig3, figure=list)"
            )
        return run_experiments(cfg, out)
    chosen = next((kind for kind in ("table", "figure") if OmegaConf.select(cfg, kind) is not None), None)
    if chosen is not None:
        raise UserError(f"{chosen}={cfg[chosen].name} brings its own points; leave -m away")
    cfg = prepared(cfg)
    words = list(hydra.overrides.task)
    row = guarded(cfg, " ".join(words)) | {"overrides": words}
    write_json(out / "job.json", row)
    note(row)
    return returned(row, cfg)
