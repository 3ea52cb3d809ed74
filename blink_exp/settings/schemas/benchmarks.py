"""Schemas of benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blink_exp.settings import limits


@dataclass
class Rows:
    """A benchmark in the layout of the hub."""

    path: str = limits.text("a hub id or a folder")
    config: str | None = limits.text("the name of a configuration")
    revision: str | None = limits.text("a branch, tag or commit")
    split: str = limits.text("the name of a split")
    protocol: str = limits.text("the name of a protocol")
    exif: bool | None = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class GQA(Rows):
    image_config: str = limits.text("the name of a configuration")


@dataclass
class Marked(Rows):
    """One whose answers a language model may mark."""

    judge: Any = limits.group()


@dataclass
class MMBench(Marked):
    language: str = limits.words("en", "cn")
    choice: str = limits.words("static", "judge")
    seed: int = limits.seed()


@dataclass
class Captions(Marked):
    request: str = limits.text("a prompt")
    max_new_tokens: int = limits.whole(1, most=limits.TOKENS)
    seed: int = limits.seed()


@dataclass
class MMStar(Rows):
    rule: str = limits.words("lmms_eval", "paper")


@dataclass
class VQA(Rows):
    normalization: str = limits.words("always", "unless_equal")


@dataclass
class TextVQA(VQA):
    ocr: str | None = limits.words("row", "none")


@dataclass
class Duts:
    path: str | None = limits.path()
    image_loading: Any = limits.group()
    split: str = limits.words("TE", "TR")
    layers: list[int] = limits.layer_list()
    top: int = limits.whole(1, most=limits.PATCHES)
    batch: int = limits.whole(1, most=limits.BATCH)


@dataclass
class EasyVQA:
    path: str | None = limits.path()
    image_loading: Any = limits.group()


@dataclass
class Mosaic:
    images: int = limits.whole(1, 100_000)  # each is drawn


OPEN_KINDS = ("color", "shape", "color_at", "shape_at")


def _open_kinds(value: Any) -> bool:
    return limits.is_list(value, OPEN_KINDS.__contains__) and len(value) > 0


@dataclass
class MosaicOpen(Mosaic):
    sizes: list[int] = limits.whole_list(2, 16)
    kinds: Any = limits.such(f"a list of {', '.join(OPEN_KINDS)}", _open_kinds)


@dataclass
class MosaicDetail(Mosaic):
    questions: str = limits.words("all", "open", "pairs")
    blank: bool = limits.flag()


@dataclass
class MosaicGrounding(Mosaic):
    questions: str = limits.words("all", "find", "read")
    blank: bool = limits.flag()


@dataclass
class MosaicSaliency(Mosaic):
    layers: list[int] = limits.layer_list()
    top: int = limits.whole(1, most=limits.PATCHES)
    of: int = limits.whole(1, most=limits.PATCHES)
    batch: int = limits.whole(1, most=limits.BATCH)


TARGETS: dict[str, type] = {
    "blink_exp.benchmarks.captions.Captions": Captions,
    "blink_exp.benchmarks.chartqa.ChartQA": Rows,
    "blink_exp.benchmarks.duts.Duts": Duts,
    "blink_exp.benchmarks.easyvqa.EasyVQA": EasyVQA,
    "blink_exp.benchmarks.gqa.GQA": GQA,
    "blink_exp.benchmarks.mmbench.MMBench": MMBench,
    "blink_exp.benchmarks.mme.MME": Rows,
    "blink_exp.benchmarks.mmstar.MMStar": MMStar,
    "blink_exp.benchmarks.mmvet.MMVet": Marked,
    "blink_exp.benchmarks.mosaic_detail.MosaicDetail": MosaicDetail,
    "blink_exp.benchmarks.mosaic_grounding.MosaicGrounding": MosaicGrounding,
    "blink_exp.benchmarks.mosaic_hr.MosaicHR": Mosaic,
    "blink_exp.benchmarks.mosaic_mme.MosaicMME": Mosaic,
    "blink_exp.benchmarks.mosaic_open.MosaicOpen": MosaicOpen,
    "blink_exp.benchmarks.mosaic_saliency.MosaicSaliency": MosaicSaliency,
    "blink_exp.benchmarks.ocrbench.OCRBench": Rows,
    "blink_exp.benchmarks.pope.POPE": Rows,
    "blink_exp.benchmarks.realworldqa.RealWorldQA": Rows,
    "blink_exp.benchmarks.refcoco.RefCOCO": Rows,
    "blink_exp.benchmarks.scienceqa.ScienceQA": Rows,
    "blink_exp.benchmarks.textvqa.TextVQA": TextVQA,
    "blink_exp.benchmarks.vizwiz.VizWiz": VQA,
    "blink_exp.benchmarks.vqav2.VQAv2": VQA,
}
