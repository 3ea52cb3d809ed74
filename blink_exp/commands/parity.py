"""``python -m blink_exp parity``: the untouched model on every benchmark beside the printed numbers."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from blink_exp.settings.values import typed
from blink_exp.studies.parity import run_parity


def run(cfg: DictConfig) -> None:
    run_parity(typed(cfg), Path(HydraConfig.get().runtime.output_dir))
