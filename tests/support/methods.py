"""Methods as their presets make them."""

from __future__ import annotations

import functools

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from blink_exp.cli import CONF

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))


@functools.cache
def _config(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", [f"method={name}", "retention_ratio=0.25"])


def method_of(name: str, scale):
    return instantiate(_config(name).method, _partial_=True, _convert_="all")(scale)
