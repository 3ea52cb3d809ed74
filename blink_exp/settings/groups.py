"""Schemas of the config groups whose presets share one set of settings: types and limits. Values are in conf/.

A field without a default must be in the preset. Settings are documented beside their values in conf/.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from blink_exp import plugins
from blink_exp.settings import limits

MOST_PIXELS = 178_956_970  # per image, Pillow's limit


@dataclass
class ImageLoading:
    exif: bool = limits.flag()
    alpha: str | None = limits.words("white", "drop")
    max_pixels: int = limits.whole(1, MOST_PIXELS)
    outside: bool = limits.flag()


@dataclass
class Saliency:
    scorer: str = limits.text("the name of a scorer")


@dataclass
class Grid:
    p: int = limits.whole(1, most=limits.PATCHES)
    scale_thresholds: bool = limits.flag()


@dataclass
class Thresholds:
    tau_exp: float = limits.number(0, 1)
    tau_drop: float = limits.number(0, 1)


def _layer(value: Any) -> bool:
    return limits.is_whole(value, high=limits.LAYERS - 1)


def _layers(value: Any) -> bool:
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        ends = [first, last] if dash else [first]
        return value == "all" or (all(map(str.isdecimal, ends)) and int(first) <= int(ends[-1]) < limits.LAYERS)
    return value is None or _layer(value) or (limits.is_list(value, _layer) and len(value) > 0)


@dataclass
class Layers:
    indices: Any = limits.such("a range of layers such as 12-18, a list such as [12,13], one layer, or all", _layers)
    base: int = limits.whole(0, 1)
    relative: bool = limits.flag()


@dataclass
class Resolution:
    policy: str = limits.words("threshold", "cycle", "expand_once", "copy")
    on_reexpand: str = limits.words("replace", "keep", "append")
    scan: str = limits.words("visual", "visual_and_expanded")
    interpolate: bool = limits.flag()
    positions: str = limits.words("contiguous", "inherit")


@dataclass
class TokenSR:
    architecture: str = limits.text("the name of an architecture")
    path: str | None = limits.path()


# one weight per loss of this project and of installed plugins; ``answer`` is a loss of answers, the others are of features
OWN_LOSSES = ("answer", "kl", "kl_spatial", "kl_standardised", "mse", "cosine")
LOSSES = tuple(dict.fromkeys([*OWN_LOSSES, *filter(str.isidentifier, plugins.installed(plugins.LOSSES))]))
LossWeights = dataclasses.make_dataclass("LossWeights", [(name, float, limits.number(0, default=0.0)) for name in LOSSES])


@dataclass
class Loss:
    weights: LossWeights = field(default_factory=LossWeights)  # type: ignore[valid-type]
    temperature: float = limits.number(0, most=limits.TEMPERATURE, above=True, default=1.0)
    standardise: str = limits.words("features", "norm", default="features")
    statistics_pairs: int = limits.whole(1, most=1_000_000, default=512)


def _devices(value: Any) -> bool:
    listed = limits.is_list(value, lambda device: limits.is_whole(device, high=limits.PROCESSES)) and 0 < len(value) == len(set(value))
    return value == "auto" or limits.is_whole(value, 1, limits.PROCESSES) or listed


@dataclass
class Trainer:
    _target_: str = "pytorch_lightning.Trainer"
    accelerator: str = limits.words("cpu", "gpu", "cuda", "mps", "auto")
    strategy: str = limits.text("the name of a strategy")
    devices: Any = limits.such("auto, a number of devices of at least 1, or a list of distinct numbers of GPUs", _devices)
    num_nodes: int = limits.whole(1, most=limits.PROCESSES)
    precision: str = limits.words("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "32", "64", "16", "bf16")
    max_epochs: int = limits.whole(1, most=1_000_000)
    log_every_n_steps: int = limits.whole(1)
    callbacks: dict[str, Any] = field(default_factory=dict)


def _betas(value: Any) -> bool:
    return value is None or (limits.is_list(value, lambda beta: isinstance(beta, int | float) and 0 <= beta < 1) and len(value) == 2)


@dataclass
class Optim:
    lr: float = limits.number(0, above=True)
    weight_decay: float = limits.number(0, 1)
    betas: Any = limits.such("two numbers in [0, 1), or null", _betas)
    eps: float | None = limits.number(0, 1, above=True)
    warmup: float = limits.number(0, 1, below=True)
    optimizer: Any = limits.such("a group of settings with a _target_", limits.is_target)
    schedule: Any = limits.such("a group of settings with a _target_", limits.is_target)


@dataclass
class Fill:
    policy: str = limits.words("neighbours", "recall")


@dataclass
class HeroOptions:
    allocation: str = limits.words("scores", "uniform")
    temperature_cls: float = limits.number(0, most=limits.TEMPERATURE, above=True)
    temperature_clip: float = limits.number(0, most=limits.TEMPERATURE, above=True)
    density_weight: float = limits.number(0, 1)
    cls_source: str = limits.words("pooled", "last_hidden", "projected")
    text: str = limits.words("question", "prompt")
    remainder: str = limits.words("paper", "largest_remainder")
    overflow: str = limits.words("redistribute", "truncate")
    score: str = limits.words("mean", "double_softmax")
    tile_budget: str = limits.words("rest", "own")


@dataclass
class Hero:
    tokens_per_view: int | None = limits.whole(1, most=limits.PATCHES)
    relative: bool = limits.flag()
    options: HeroOptions = field(default_factory=HeroOptions)


@dataclass
class HeroAlpha:
    alpha: float = limits.number(0, 1)


@dataclass
class EncoderLayers:
    layers: list[int] = limits.layer_list()


@dataclass
class Positions:
    policy: str | None = limits.words("contiguous", "original")


@dataclass
class NewlinePolicy:
    policy: str = limits.words("all_rows", "valid_rows", "none")
