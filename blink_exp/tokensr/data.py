"""Training pairs: an image as the model sees it, and one of its four quadrants as a view of its own (Blink, App. A.2).

Both are cut from the same square canvas, the quadrant at the canvas's full resolution, so the H x W tokens of the quadrant cover
exactly the H/2 x W/2 tokens of the full view.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler

from blink_exp.errors import UserError

Transform = Callable[[Image.Image], torch.Tensor]  # an image to (3, size, size) pixels


def square_canvas(image: Image.Image, pad: bool = False) -> Image.Image:
    """The largest centred square, or with ``pad`` the smallest square around the image, filled with CLIP's mean colour."""
    w, h = image.size
    side = max(w, h) if pad else min(w, h)
    if not pad:
        left, top = (w - side) // 2, (h - side) // 2
        return image.crop((left, top, left + side, top + side))
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - w) // 2, (side - h) // 2))
    return canvas


def quadrant_box(index: int, side: int) -> tuple[int, int, int, int]:
    """Pixels of quadrant ``index`` (top left, top right, bottom left, bottom right) of a ``side`` x ``side`` canvas."""
    half = side // 2
    r, c = divmod(index, 2)
    return (c * half, r * half, (c + 1) * half, (r + 1) * half)


class Pairs(Dataset):
    """(full, crop, quadrant) items: pixels (3, size, size) twice, and the quadrant's index. Item i is the same in every run."""

    def __init__(self, canvases: Callable[[int], Image.Image], length: int, transform: Transform, seed: int):
        self.canvases, self.length, self.transform, self.seed = canvases, length, transform, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        if not 0 <= i < self.length:
            raise IndexError(i)
        canvas = self.canvases(i)
        quadrant = int(np.random.default_rng((self.seed, 7, i)).integers(4))
        crop = canvas.crop(quadrant_box(quadrant, canvas.width))
        return self.transform(canvas), self.transform(crop), quadrant


class InOrder(Sampler[int]):
    """0 to length - 1; only the first pass begins at ``start``, where a training that goes on had stopped."""

    def __init__(self, length: int, start: int = 0):
        self.length, self.start = length, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        start, self.start = self.start, 0
        return iter(range(start, self.length))


def scene_canvases(split: str, seed: int, sizes: tuple[int, ...] = (2, 3, 4)) -> Callable[[int], Image.Image]:
    """Scenes of real easy-VQA images (see scale_model.scenes), 2 x 2 to 4 x 4."""
    from blink_exp.scale_model.scenes import random_scene

    def canvas(i: int) -> Image.Image:
        rng = np.random.default_rng((seed, 5, i))
        return random_scene(rng, split, sizes[int(rng.integers(len(sizes)))]).canvas

    return canvas


def folder_images(folder: str) -> tuple[list[Path], list[Path]]:
    """(readable images, broken ones) of a folder and those below it, each opened once, so that training meets no surprise."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"data.path={folder} is not a folder; give one that holds images")
    good, broken = [], []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".bmp"}):
        try:
            with Image.open(path) as image:
                image.load()
            good.append(path)
        except (UnidentifiedImageError, OSError):
            broken.append(path)
    if len(good) < 2:
        raise UserError(f"data.path={folder} holds {len(good)} readable images; at least 2 are needed, one to train and one to hold out")
    return good, broken


class PairedCrops(pl.LightningDataModule):
    """Training and held-out pairs.

    Args:
        source: ``scenes`` (easy-VQA mosaics; held out: its test images) or ``folder`` (``path``; every tenth image is held out).
        transform: the backbone's own preprocessing.
        train_size, held_out_size: numbers of pairs. A folder's images are used again with other quadrants once they run out.
        pad: square canvases by padding (LLaVA-1.5's original) instead of centre crop.
        steps_done: optimizer steps of the checkpoint that training goes on from. (The trainer itself learns them only after Lightning
            has asked for the loader.)
    """

    def __init__(
        self,
        transform: Transform,
        source: str = "scenes",
        path: str | None = None,
        train_size: int = 2048,
        held_out_size: int = 256,
        batch_size: int = 8,
        workers: int = 0,
        seed: int = 0,
        pad: bool = False,
        steps_done: int = 0,
    ):
        super().__init__()
        if source not in ("scenes", "folder"):
            raise UserError(f"data.source={source} is not known; use scenes or folder")
        if batch_size < 1 or train_size < batch_size:
            raise UserError(f"data.batch_size={batch_size} with data.train_size={train_size} makes no whole batch; use 1 to train_size")
        self.transform, self.source, self.path, self.pad = transform, source, path, pad
        self.train_size, self.held_out_size, self.batch_size = train_size, held_out_size, batch_size
        self.workers, self.seed, self.steps_done = workers, seed, steps_done
        self.broken: list[Path] = []

    def setup(self, stage: Any = None) -> None:
        if self.source == "scenes":
            train, held = scene_canvases("train", self.seed), scene_canvases("test", self.seed)
        else:
            good, self.broken = folder_images(str(self.path))
            good = [good[i] for i in np.random.default_rng(self.seed).permutation(len(good))]
            train, held = self._from_files([p for i, p in enumerate(good) if i % 10]), self._from_files(good[::10])
        self.train = Pairs(train, self.train_size, self.transform, self.seed)
        self.held_out = Pairs(held, self.held_out_size, self.transform, self.seed + 1)

    def _from_files(self, files: list[Path]) -> Callable[[int], Image.Image]:
        def canvas(i: int) -> Image.Image:
            with Image.open(files[i % len(files)]) as image:
                return square_canvas(image.convert("RGB"), self.pad)

        return canvas

    def train_dataloader(self) -> DataLoader:
        """Items are drawn at random by their index, so they need no shuffling."""
        at_once = self.batch_size * (self.trainer.accumulate_grad_batches * self.trainer.world_size if self.trainer else 1)
        whole = self.train_size // self.batch_size * self.batch_size
        order = InOrder(self.train_size, start=self.steps_done * at_once % whole)
        return DataLoader(self.train, self.batch_size, sampler=order, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, self.batch_size, num_workers=self.workers)
