"""Schemas of the settings of every command. Hydra composes conf/ into them and checks types.

Importing this module registers them in Hydra's ConfigStore, which conf/ requires.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from blink_exp import plugins
from blink_exp.settings import groups, limits


def _shard(value: Any) -> bool:
    if value is None:
        return True
    k, _, n = str(value).partition("/")
    return all(map(limits.is_digits, (k, n))) and 1 <= int(k) <= int(n)


def _files(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or (limits.is_list(value, lambda v: isinstance(v, str)) and len(value) > 0)


def _devices(value: Any) -> bool:
    return value == "auto" or limits.is_whole(value, 1, limits.PROCESSES)


@dataclass
class PointSettings:
    """An evaluation of one configuration: what evaluate.py runs, and what every point of a table or sweep is."""

    model: Any = MISSING
    method: Any = MISSING
    benchmark: Any = MISSING
    saliency: groups.Saliency = MISSING
    grid: groups.Grid = MISSING
    thresholds: groups.Thresholds = MISSING
    layers: groups.Layers = MISSING
    resolution: groups.Resolution = MISSING
    tokensr: groups.TokenSR = MISSING
    fill: groups.Fill = MISSING
    hero: groups.Hero = MISSING
    hero_alpha: groups.HeroAlpha = MISSING
    hero_low: groups.EncoderLayers = MISSING
    hero_high: groups.EncoderLayers = MISSING
    newline_policy: groups.NewlinePolicy = MISSING
    positions: groups.Positions = MISSING
    judge: Any = MISSING
    image_loading: groups.ImageLoading = MISSING
    logger: Any = MISSING
    layer: int | None = limits.whole(0, most=limits.LAYERS - 1)
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    data_root: str | None = limits.folder()
    shard: Any = limits.such("a part k/n with k from 1 to n, e.g. 1/8, or null", _shard)
    part: str = limits.words("all", "validation", "test")
    limit: int | None = limits.whole(1)
    skip_limit: float = limits.number(0, 1)
    batch_size: int = limits.whole(1)
    workers: int | None = limits.whole(0, most=limits.PROCESSES)
    shared_gb: float | None = limits.number(0, most=1_000_000, above=True)
    cost: int = limits.whole(0)
    seed: int = limits.seed()


@dataclass
class EvaluateSettings(PointSettings):
    store: str = limits.path()
    force: bool = limits.flag()
    devices: Any = limits.such("a whole number of devices from 1, or auto", _devices)


@dataclass
class ViewSettings(EvaluateSettings):
    sample: str | None = limits.text("a sample's id")
    image: str | None = limits.path()
    question: str | None = limits.text("a question")
    compare: list[str] | None = limits.preset_list()


@dataclass
class RescoreSettings(EvaluateSettings):
    predictions: Any = limits.such("a file, a folder, a pattern or a list of them", _files)


@dataclass
class CompareSettings(RescoreSettings):
    against: str = limits.path()


@dataclass
class ParitySettings(EvaluateSettings):
    title: str = limits.text("a title")
    overrides: list[str] = limits.preset_list()
    points: list[Any] = field(default_factory=list)


@dataclass
class SweepSettings(EvaluateSettings):
    table: Any = None
    tables: str | None = limits.words("list", "all")
    figure: Any = None
    figures: str | None = limits.words("list", "all")
    search: Any = None
    share: bool = limits.flag()
    objective: str | None = limits.text("the name of a score")
    token_price: float = limits.number(0)
    dashboard: str | None = limits.words("wandb")
    train: str = limits.text("words of train.py", blank=True)
    report: str = limits.path()


@dataclass
class TrainSettings:
    model: Any = MISSING
    layers: groups.Layers = MISSING
    tokensr: groups.TokenSR = MISSING
    loss: groups.Loss = MISSING
    saliency: groups.Saliency = MISSING
    grid: groups.Grid = MISSING
    thresholds: groups.Thresholds = MISSING
    resolution: groups.Resolution = MISSING
    trainer: groups.Trainer = MISSING
    optim: groups.Optim = MISSING
    data: Any = MISSING
    image_loading: groups.ImageLoading = MISSING
    logger: Any = MISSING
    layer: int | None = limits.whole(0, most=limits.LAYERS - 1)
    seed: int = limits.seed()
    checkpoint_activations: bool = limits.flag()
    channels_last: bool = limits.flag()
    measure: bool = limits.flag()
    output: str | None = limits.path()
    resume: str | None = limits.path()


ROOTS: dict[str, type] = {
    **{"evaluate": EvaluateSettings, "sweep": SweepSettings, "train": TrainSettings},
    **{"view": ViewSettings, "rescore": RescoreSettings, "compare": CompareSettings, "parity": ParitySettings},
}
GROUP = "settings"  # of Hydra's config store: conf/<root>.yaml names its schema as the first of its defaults


for _name, _schema in ROOTS.items():
    ConfigStore.instance().store(group=GROUP, name=_name, node=_schema, package="_global_")

for _name in plugins.installed(plugins.SCORERS):  # a preset per scorer of installed packages
    ConfigStore.instance().store(group="saliency", name=_name, node={"scorer": _name})
