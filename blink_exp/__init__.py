"""Blink and HERO on LLaVA-style models (docs/python.md)::

    from blink_exp import HERO, Blink, load

    vlm = load("scale_llava")
    vlm.answer("photo.jpg", "What is this?", method=Blink(layers=range(12, 19)))

Importing this package imports nothing heavy: a name is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blink_exp.api.answers import Answer, Page, Trace
    from blink_exp.api.attach import attach
    from blink_exp.api.benchmarks import load_benchmark
    from blink_exp.api.methods import (
        DART,
        HERO,
        Blink,
        BlinkHERO,
        BlinkInterp,
        CDPruner,
        Crop,
        DivPrune,
        Downsample,
        FasterVLM,
        FastV,
        GlobalCom2,
        HiRED,
        Pair,
        PruMergePlus,
        PyramidDrop,
        Random,
        SparseVLM,
        Thumbnail,
        ThumbnailPlusTile,
        TwoViews,
        Uniform,
        Untouched,
        ViCrop,
        VisionZip,
        VisPruner,
    )
    from blink_exp.api.model import VLM, load
    from blink_exp.errors import UserError

HOMES = {
    "blink_exp.api.model": ("load", "VLM"),
    "blink_exp.api.answers": ("Answer", "Trace", "Page"),
    "blink_exp.api.attach": ("attach",),
    "blink_exp.api.benchmarks": ("load_benchmark",),
    "blink_exp.errors": ("UserError",),
}
__all__ = [
    "DART",
    "HERO",
    "VLM",
    "Answer",
    "Blink",
    "BlinkHERO",
    "BlinkInterp",
    "CDPruner",
    "Crop",
    "DivPrune",
    "Downsample",
    "FastV",
    "FasterVLM",
    "GlobalCom2",
    "HiRED",
    "Page",
    "Pair",
    "PruMergePlus",
    "PyramidDrop",
    "Random",
    "SparseVLM",
    "Thumbnail",
    "ThumbnailPlusTile",
    "Trace",
    "TwoViews",
    "Uniform",
    "Untouched",
    "UserError",
    "ViCrop",
    "VisPruner",
    "VisionZip",
    "attach",
    "load",
    "load_benchmark",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in HOMES.items() if name in names), "blink_exp.api.methods")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
