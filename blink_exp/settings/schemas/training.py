"""Schemas of training data and of the callbacks of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blink_exp.settings import limits

PAIRS = 1_000_000_000  # more than any data set has


@dataclass
class PairData:
    train_size: int = limits.whole(1, most=PAIRS)
    held_out_size: int = limits.whole(1, most=PAIRS)
    global_batch: int = limits.whole(1, most=limits.BATCH)
    batch_size: int | None = limits.whole(1, most=limits.BATCH)
    workers: int = limits.whole(0, most=limits.PROCESSES)
    quadrants: str = limits.words("one", "all")
    questions: int = limits.whole(1, most=10_000)
    cache_features: bool = limits.flag()
    cache_path: str = limits.path()
    cache_dtype: str = limits.words("bfloat16", "float32")


@dataclass
class SceneData(PairData):
    sizes: list[int] = limits.whole_list(1, 16)  # 16 x 16 small objects are all but 27 of the test images'
    small: bool = limits.flag()


@dataclass
class FolderData(PairData):
    path: str = limits.path()
    pad: bool = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class LlavaData(PairData):
    json: str = limits.path()
    images: str = limits.path()
    train_size: int | None = limits.whole(1, most=PAIRS)  # type: ignore[assignment]
    held_out_size: int | None = limits.whole(1, most=PAIRS)  # type: ignore[assignment]
    held_out_share: float = limits.number(0, 1, above=True, below=True)
    pad: bool = limits.flag()
    image_loading: Any = limits.group()


@dataclass
class Checkpoints:
    """Lightning's ModelCheckpoint, as far as a training that goes on takes it."""

    every_n_train_steps: int = limits.whole(1)
    save_last: bool = limits.flag()
    save_top_k: int = limits.whole(-1, 1)  # without a score to choose by, Lightning has none, one or all
    enable_version_counter: bool = limits.flag()


@dataclass
class NoSettings:
    """A callback that takes none."""


TARGETS: dict[str, type] = {
    "blink_exp.training.data.SceneData": SceneData,
    "blink_exp.training.data.FolderData": FolderData,
    "blink_exp.training.data.LlavaData": LlavaData,
    "pytorch_lightning.callbacks.ModelCheckpoint": Checkpoints,
    "blink_exp.training.progress.progress": NoSettings,
    "blink_exp.training.signals.OwnSignals": NoSettings,
}
