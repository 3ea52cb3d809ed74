"""``python -m blink_exp view``: writes the page of one question."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from blink_exp.settings.values import typed
from blink_exp.viewer.run import view


def run(cfg: DictConfig) -> None:
    print(f"written to {view(typed(cfg), Path(HydraConfig.get().runtime.output_dir))}")
