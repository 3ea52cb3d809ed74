"""Schemas of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blink_exp.settings import limits

MODES = ("paper", "reference")
NEWLINES = ("all_rows", "valid_rows", "none")


@dataclass
class Untouched:
    """method=none has no settings."""


@dataclass
class Blink:
    amplify: bool = limits.flag()
    saliency: str = limits.text("the name of a scorer")
    p: int = limits.whole(1, most=limits.PATCHES)
    scale_thresholds: bool = limits.flag()
    tau_exp: float = limits.number(0, 1)
    tau_drop: float = limits.number(0, 1)
    layers: Any = limits.group()
    resolution: Any = limits.group()
    tokensr: Any = limits.group()
    seed: int = limits.seed()


@dataclass
class Hero:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    tokens_per_view: int | None = limits.whole(1, most=limits.PATCHES)
    alpha: float = limits.number(0, 1)
    low: list[int] = limits.layer_list()
    high: list[int] = limits.layer_list()
    relative: bool = limits.flag()
    newline_policy: str = limits.words(*NEWLINES)
    options: Any = limits.group()


@dataclass
class Control:
    ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class RandomControl(Control):
    seed: int = limits.seed()


@dataclass
class FasterVLM:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    layer: int | None = limits.whole(1, most=limits.LAYERS)
    mode: str = limits.words(*MODES)
    newline_policy: str | None = limits.words(*NEWLINES)


@dataclass
class GlobalCom2(FasterVLM):
    temperature: float = limits.number(0, most=limits.TEMPERATURE, above=True)


@dataclass
class HiRED:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    alpha: float = limits.number(0, 1)
    allocation_layer: int | None = limits.whole(1, most=limits.LAYERS)
    selection_layer: int | None = limits.whole(1, most=limits.LAYERS)
    mode: str = limits.words(*MODES)
    newline_policy: str | None = limits.words(*NEWLINES)


@dataclass
class CDPruner:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    relevance_sign: int = limits.such("-1 or 1", lambda value: value in (-1, 1))
    theta: float | None = limits.number(0, 1, above=True, below=True)
    mode: str = limits.words(*MODES)
    newline_policy: str | None = limits.words(*NEWLINES)


@dataclass
class VisPruner(FasterVLM):
    important_ratio: float = limits.number(0, 1)


@dataclass
class PruMergePlus:
    tokens: Any = limits.token_budget()
    layer: int | None = limits.whole(1, most=limits.LAYERS)
    neighbours: int = limits.whole(0, most=limits.PATCHES)
    iqr_factor: float = limits.number(0, most=1000)
    densify: int = limits.whole(1, most=limits.PATCHES)
    mode: str = limits.words(*MODES)
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class VisionZip:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    dominant: int | None = limits.whole(1, most=limits.PATCHES)
    contextual: int | None = limits.whole(0, most=limits.PATCHES)
    layer: int | None = limits.whole(1, most=limits.LAYERS)
    mode: str = limits.words(*MODES)
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class DivPrune:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    order: str = limits.words("sorted", "selection")
    mode: str = limits.words(*MODES)
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class FastV:
    full_layers: int = limits.whole(1, most=limits.LAYERS)
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    mode: str = limits.words(*MODES)
    relative: bool = limits.flag()


def _schedule(value: Any) -> bool:
    tokens = limits.is_list(value, lambda count: limits.is_whole(count, 1, limits.TOKENS))
    return value is None or value in (192, 128, 96, 64) or (tokens and len(value) > 0)


@dataclass
class SparseVLM:
    schedule: Any = limits.such("192, 128, 96, 64, a list of tokens to keep behind each of its layers, or null", _schedule)
    retention_ratio: float | None = limits.ratio()
    tokens: Any = limits.token_budget()
    layers: list[int] = limits.layer_list(0)
    relative: bool = limits.flag()


@dataclass
class PyramidDrop:
    retention_ratio: float = limits.ratio()
    tokens: Any = limits.token_budget()
    layers: list[int] | None = limits.layer_list()
    ratios: list[float] | None = limits.ratio_list()
    schedule: list[int] | None = limits.whole_list(1, limits.TOKENS)
    mode: str = limits.words(*MODES)
    relative: bool = limits.flag()


@dataclass
class DART(FastV):
    truncation: int | None = limits.whole(1, most=limits.TOKENS)
    visual_pivots: int = limits.whole(1, most=limits.PATCHES)
    text_pivots: int = limits.whole(0, most=limits.PATCHES)


@dataclass
class Thumbnail:
    newline_policy: str = limits.words(*NEWLINES)


@dataclass
class ThumbnailPlusTile(Thumbnail):
    metric: str = limits.words("clip_score", "cls_similarity")
    rank: int = limits.whole(1, 4)
    fewer: str = limits.words("thumbnail", "last")
    cls_source: str = limits.words("pooled", "last_hidden", "projected")


@dataclass
class TwoViews:
    region: str = limits.words("most_salient", "annotated", "wrong", "random")
    p: int = limits.whole(1, most=limits.PATCHES)
    layer: int = limits.whole(0, most=limits.LAYERS)
    relative: bool = limits.flag()
    seed: int = limits.seed()
    alone: bool = limits.flag()


@dataclass
class ViCrop:
    layer: int = limits.whole(0, most=limits.LAYERS)
    relative: bool = limits.flag()


@dataclass
class Pair:
    pruner: Any = limits.group()
    policy: Any = limits.group()
    fill: str = limits.words("neighbours", "recall")
    tokens: Any = limits.token_budget()
    name: str | None = limits.text("a name")


TARGETS: dict[str, type] = {
    "blink_exp.methods.none.none": Untouched,
    "blink_exp.methods.blink.configure": Blink,
    "blink_exp.methods.hero.configure": Hero,
    "blink_exp.methods.controls.random": RandomControl,
    "blink_exp.methods.controls.uniform": Control,
    "blink_exp.methods.controls.downsample": Control,
    "blink_exp.methods.fastervlm.configure": FasterVLM,
    "blink_exp.methods.globalcom2.configure": GlobalCom2,
    "blink_exp.methods.hired.configure": HiRED,
    "blink_exp.methods.prumerge_plus.configure": PruMergePlus,
    "blink_exp.methods.cdpruner.configure": CDPruner,
    "blink_exp.methods.vispruner.configure": VisPruner,
    "blink_exp.methods.visionzip.configure": VisionZip,
    "blink_exp.methods.divprune.configure": DivPrune,
    "blink_exp.methods.fastv.configure": FastV,
    "blink_exp.methods.sparsevlm.configure": SparseVLM,
    "blink_exp.methods.pyramiddrop.configure": PyramidDrop,
    "blink_exp.methods.dart.configure": DART,
    "blink_exp.methods.one_tile.thumbnail": Thumbnail,
    "blink_exp.methods.one_tile.thumbnail_plus_tile": ThumbnailPlusTile,
    "blink_exp.methods.pair.configure": Pair,
    "blink_exp.methods.two_views.configure": TwoViews,
    "blink_exp.methods.vicrop.configure": ViCrop,
}
