"""A frozen "backbone" that needs no model, and training data on disk: what tests of the feature cache run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from blink_exp.training import canvases, capture, data
from blink_exp.training.feature_cache import Features, StoredFeatures
from blink_exp.training.pairs import PairBatch, collate
from support.instruction_data import picture

SIDE, WIDTH = 4, 3
LAYERS = [3, 5, 8]


class Shrink:
    """(3, 4, 4) pixels: every image is another tensor."""

    def __init__(self, noise: bool = False):
        self.noise = noise

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image.resize((SIDE, SIDE)), dtype=np.float32)).permute(2, 0, 1)
        return pixels + torch.rand(1) if self.noise else pixels


class Pixels:
    """Stands for a backbone: the state of a token at layer l is its pixel * (l + 1). Counts what it runs."""

    def __init__(self, layers: list[int], seed: int = 0):
        torch.manual_seed(seed)
        self.layers, self.fulls, self.crops, self.batches = layers, 0, 0, 0
        self.model = torch.nn.Linear(8, 8)
        self.backbone: Any = SimpleNamespace(
            name="pixels",
            settings={"dtype": "float32", "device": "cpu"},
            identity="pixels@1",
            model=self.model,
            grid=(SIDE, SIDE),
            width=WIDTH,
            prompt=lambda question: f"USER: {question}",
        )

    def __call__(self, batch: PairBatch) -> Features:
        self.fulls, self.crops, self.batches = self.fulls + len(batch.full), self.crops + len(batch.crop), self.batches + 1
        half = SIDE // 2
        patches = []
        for row, quadrant in zip(batch.owner.tolist(), batch.quadrant.tolist(), strict=True):
            r, c = divmod(quadrant, 2)
            patches.append(batch.full[row][:, r * half : (r + 1) * half, c * half : (c + 1) * half])
        scale = torch.tensor([layer + 1.0 for layer in self.layers])[None, :, None, None]
        return Features(*((x.flatten(2).mT[:, None] * scale / 7) for x in (torch.stack(patches), batch.crop)))

    def ready(self, made: data.PairedCrops, ranks: capture.Ranks | None = None) -> dict[str, StoredFeatures]:
        return capture.prepare_features(self.backbone, self.layers, self, made, "32-true", ranks or capture.Ranks())


def folder(root: Path, images: int = 31) -> Path:
    """Pictures of different colours; one in ten is held out."""
    for i in range(images):
        picture(root / "images" / f"{i:02d}.png", i)
    return root / "images"


def module(root: Path, **more: Any) -> data.PairedCrops:
    """Its pairs, 4 a step; the cache beside it."""
    words = {"train_size": 20, "held_out_size": 4, "global_batch": 4, "cache_features": True, "cache_path": str(root / "cache")} | more
    made = data.FolderData(words.pop("transform", Shrink()), str(root / "images"), **words)
    made.setup()
    return made


def wanted(frozen: Pixels, made: data.PairedCrops, split: str, items: list[int]) -> Features:
    """What the backbone itself gives for these items, one by one."""
    other = Pixels(frozen.layers)
    features = [other(collate([getattr(made, split)[i]])) for i in items]
    return Features(*(torch.cat(parts) for parts in zip(*features, strict=True)))


def equal(a: Features, b: Features) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def only(root: Path) -> Path:
    """The one cache below ``root``."""
    (cache,) = caches(root)
    return cache


def caches(root: Path) -> list[Path]:
    """All of them; beside them lie their locks."""
    return [path for path in (root / "cache").iterdir() if path.name != ".locks"]


def files(root: Path) -> list[Path]:
    return sorted(only(root).glob("*.safetensors"))


def scenes(backbone, **more) -> data.SceneData:
    words = {"train_size": 8, "held_out_size": 4, "global_batch": 8} | more
    made = data.SceneData(canvases.BaseView(backbone.processor.image_processor), **words)
    made.setup()
    return made
