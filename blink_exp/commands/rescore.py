"""``python -m blink_exp rescore``: scores the records of earlier runs again, without a model."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from blink_exp.evaluation.terminal import show_run
from blink_exp.settings.values import typed
from blink_exp.studies.rescoring import score_again


def run(cfg: DictConfig) -> dict[str, float]:
    """Returns the scores by name."""
    out = Path(HydraConfig.get().runtime.output_dir)
    return show_run(score_again(typed(cfg), out), out)
