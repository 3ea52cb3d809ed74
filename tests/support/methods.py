"""Methods as their presets make them."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from blink_exp.cli import CONF

METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))


def method_of(name: str, scale):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", [f"method={name}", "retention_ratio=0.25"])
        return instantiate(cfg.method, _partial_=True, _convert_="all")(scale)
