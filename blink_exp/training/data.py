"""Training pairs: an image as the model sees it, and one of its four quadrants as a view of its own (Blink, App. A.2).

Both are cut from the same square canvas, the quadrant at the canvas's full resolution, so the H x W tokens of the quadrant cover
exactly the H/2 x W/2 tokens of the full view.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Subset

from blink_exp.errors import UserError, nearest
from blink_exp.images import DEFAULT, ImageOptions, open_image, within
from blink_exp.scenes.scenes import random_scene
from blink_exp.training import llava_665k
from blink_exp.training.batches import GlobalBatches, share_out
from blink_exp.training.feature_cache import Stored, check_settings
from blink_exp.training.pairs import Pairs, Transform, collate
from blink_exp.training.pairs import quadrant_box as quadrant_box

PATIENCE = 100  # images in a row that cannot be read, after which it is the disk and not the images


def square_canvas(image: Image.Image, pad: bool = False) -> Image.Image:
    """The largest centred square, or with ``pad`` the smallest square around the image, filled with CLIP's mean colour."""
    image = within(image) if pad else image
    w, h = image.size
    side = max(w, h) if pad else min(w, h)
    if not pad:
        left, top = (w - side) // 2, (h - side) // 2
        return image.crop((left, top, left + side, top + side))
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - w) // 2, (side - h) // 2))
    return canvas


def open_canvas(name: str, root: Path, pad: bool, options: ImageOptions = DEFAULT) -> Image.Image:
    """The square canvas of an image file below ``root``. Raises OSError where it cannot be opened, or is too small to have quadrants."""
    canvas = square_canvas(open_image(name, options, root), pad)
    if canvas.width < 2:
        raise OSError(f"{name} makes a canvas of one pixel, which has no quadrants")
    return canvas


def scene_canvases(split: str, seed: int, sizes: tuple[int, ...] = (2, 3, 4)) -> Callable[[int], Image.Image]:
    """Scenes of real easy-VQA images (see scale_model.scenes), 2 x 2 to 4 x 4."""

    def canvas(i: int) -> Image.Image:
        rng = np.random.default_rng((seed, 5, i))
        return random_scene(rng, split, sizes[int(rng.integers(len(sizes)))]).canvas

    return canvas


def folder_images(folder: str, pad: bool = False, options: ImageOptions = DEFAULT) -> tuple[list[Path], list[Path]]:
    """(images that can be trained on, others) of a folder and those below it, each opened once, so that training meets no surprise."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"data.path={folder} is not a folder; give one that holds images")
    good: list[Path] = []
    broken: dict[Path, str] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".bmp"}):
        try:
            open_canvas(str(path.relative_to(root)), root, pad, options)
            good.append(path)
        except OSError as error:
            broken[path] = str(error)
    if len(good) < 2:
        first = f" (of {len(broken)} others the first: {next(iter(broken.values()))})" if broken else ""
        raise UserError(
            f"data.path={folder} holds {len(good)} readable images{first}; at least 2 are needed, one to train and one to hold out"
        )
    return good, list(broken)


@dataclass(frozen=True)
class BaseView:
    """A backbone's own preprocessing of the base view, without the backbone: worker processes get a copy of it."""

    image_processor: Any

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size) pixels."""
        pixels = self.image_processor(images=image, return_tensors="pt").pixel_values[0]
        return pixels if pixels.ndim == 3 else pixels[0]  # LLaVA-NeXT: the thumbnail stands first


class Files:
    """Canvases of image files: number i is file i % len(names), and where that cannot be read, the next one that can.

    ``unreadable``: (files,) uint8, 1 where reading failed; in shared memory, so that what worker processes meet is seen here.
    """

    def __init__(self, root: Path, names: list[str], pad: bool, options: ImageOptions = DEFAULT):
        self.root, self.pad, self.options = root, pad, options
        self.names = np.array([os.fsencode(name) for name in names])  # one block: half a million str would be copied into every worker
        self.unreadable = torch.zeros(len(names), dtype=torch.uint8).share_memory_()

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[i]))

    def __call__(self, i: int) -> Image.Image:
        for k in range(i, i + min(PATIENCE, len(self.names))):
            try:
                return open_canvas(os.fsdecode(bytes(self.names[k % len(self.names)])), self.root, self.pad, self.options)
            except OSError:
                self.unreadable[k % len(self.names)] = 1
        first = self.path(i % len(self.names))
        raise UserError(f"{min(PATIENCE, len(self.names))} images in a row cannot be read, first {first}; check the disk and the copy")

    def digest(self) -> str:
        """Of the names and their order, which say what number i is."""
        return hashlib.sha256(b"\n".join(bytes(name) for name in self.names)).hexdigest()[:16]

    def stamp(self) -> str:
        """Of the names, lengths and times of change: another one where a file was written anew."""
        known = hashlib.sha256()
        for i in range(len(self.names)):
            try:
                found = self.path(i).stat()
                said = f"{found.st_size} {found.st_mtime_ns}"
            except OSError:
                said = "gone"
            known.update(bytes(self.names[i]) + f"\n{said}\n".encode())
        return known.hexdigest()[:16]


def hold_out(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(names to train on, names held out) in an order and by a choice that a hash of seed and name makes: an image that is missing from
    a copy of the data moves no other one."""
    numbers = {name: hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names}
    limit = int(share * 2**64)
    ordered = sorted(names, key=lambda name: (numbers[name][::-1], name))
    held = [name for name in ordered if int.from_bytes(numbers[name]) < limit]
    return [name for name in ordered if int.from_bytes(numbers[name]) >= limit], held


class PairedCrops(pl.LightningDataModule):
    """Training and held-out pairs.

    Args:
        transform: the backbone's own preprocessing.
        source: ``scenes`` (easy-VQA mosaics; held out: its test images), ``folder`` (``path``; every tenth image is held out) or
            ``llava_665k`` (``json``, ``images``; ``held_out_share`` of the distinct images is held out).
        train_size, held_out_size: numbers of pairs; None: each image once. Images are used again once they run out.
        quadrants: ``one`` quadrant of each image in turn, or ``all`` four (see ``Pairs``).
        global_batch: pairs of an optimizer step, over all devices. batch_size: of a device at once; None: its share of a step.
        workers: processes that prepare pairs; their number changes nothing but the speed.
        pad: square canvases by padding (LLaVA-1.5's original) instead of centre crop.
        steps_done: optimizer steps of the checkpoint that training goes on from. (The trainer itself learns them only after Lightning
            has asked for the loader.)
        cache_features, cache_path, cache_dtype: whether the backbone's part of every pair is kept on disk, below which folder, and as
            bfloat16 or float32 (see ``feature_cache``).
        image_loading: how image files are opened, see ``images.ImageOptions``.
    """

    def __init__(
        self,
        transform: Transform,
        source: str = "scenes",
        path: str | None = None,
        train_size: int | None = 2048,
        held_out_size: int | None = 256,
        batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        pad: bool = False,
        steps_done: int = 0,
        global_batch: int = 8,
        json: str | None = None,
        images: str | None = None,
        held_out_share: float = 0.002,
        quadrants: str = "one",
        cache_features: bool = False,
        cache_path: str = "outputs/features",
        cache_dtype: str = "bfloat16",
        image_loading: Any = None,
    ):
        super().__init__()
        if source not in ("scenes", "folder", "llava_665k"):
            raise UserError(f"data.source={source} is not known; {nearest(source, ('scenes', 'folder', 'llava_665k'))}")
        if source == "scenes" and (train_size is None or held_out_size is None):
            raise UserError(
                "data.train_size=null means every image once, and there is no end of scenes; give data.train_size and held_out_size"
            )
        check_settings(cache_path, cache_dtype)
        self.cache_features, self.cache_path, self.cache_dtype = cache_features, Path(cache_path), cache_dtype
        self.transform, self.source, self.path, self.pad, self.quadrants = transform, source, path, pad, quadrants
        self.json, self.images, self.held_out_share = json, images, held_out_share
        self.image_loading = ImageOptions.of(image_loading)
        self.train_size, self.held_out_size = train_size, held_out_size
        self.batch_size, self.global_batch = batch_size, global_batch
        self.workers, self.seed, self.steps_done = workers, seed, steps_done
        self.broken: list[Path] = []
        self.found: dict[str, Any] = {}
        self.files: list[Files] = []
        self.stored: dict[str, Stored] = {}  # by "train" and "held_out", once the features are on disk

    def setup(self, stage: Any = None) -> None:
        if self.files:  # Lightning asks again before it validates
            return
        distinct: tuple[int | None, int | None]
        if self.source == "scenes":
            assert self.train_size is not None and self.held_out_size is not None
            train: Callable[[int], Image.Image] = scene_canvases("train", self.seed)
            held: Callable[[int], Image.Image] = scene_canvases("test", self.seed)
            sizes, distinct = (self.train_size, self.held_out_size), (None, None)
        else:
            root, names, held_names = self._split()
            train, held = self.files = [Files(root, part, self.pad, self.image_loading) for part in (names, held_names)]
            each, distinct = 4 if self.quadrants == "all" else 1, (len(names), len(held_names))
            sizes = (
                each * len(names) if self.train_size is None else self.train_size,
                each * len(held_names) if self.held_out_size is None else self.held_out_size,
            )
        if sizes[0] < self.global_batch:
            raise UserError(
                f"data.train_size={sizes[0]} is less than one step of trainer.global_batch={self.global_batch}; use as many pairs or more"
            )
        self.train = Pairs(train, sizes[0], self.transform, self.seed, distinct[0], self.quadrants)
        self.held_out = Pairs(held, sizes[1], self.transform, self.seed + 1, distinct[1], self.quadrants)

    def _split(self) -> tuple[Path, list[str], list[str]]:
        """(root, names to train on, names held out) of the sources that are files."""
        if self.source == "folder":
            root = Path(str(self.path))
            good, self.broken = folder_images(str(root), self.pad, self.image_loading)
            shuffled = [str(good[i].relative_to(root)) for i in np.random.default_rng(self.seed).permutation(len(good))]
            return root, [name for i, name in enumerate(shuffled) if i % 10], shuffled[::10]
        root = Path(str(self.images))
        found = llava_665k.find(Path(str(self.json)), root, self.image_loading.outside)
        self.broken = [root / name for name in found.refused]
        names, held = hold_out(found.names, self.held_out_share, self.seed)
        self.found = found.summary | {"trained_on": len(names), "held_out": len(held)}
        if self.trainer is None or self.trainer.is_global_zero:
            print(f"llava_665k: {found}; {len(held):,} are held out")
        if not names or not held:
            raise UserError(
                f"data.held_out_share={self.held_out_share} leaves {len(names)} of {len(found.names)} images to train on; use another share"
            )
        return root, names, held

    def _place(self) -> tuple[int, int]:
        """(rank of this process, how many there are)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader:
        """Items are drawn at random by their index, so they need no shuffling."""
        rank, world = self._place()
        batch_size, parts = share_out(self.global_batch, world, self.batch_size)
        order = GlobalBatches(len(self.train), batch_size, parts, rank, world, start=self.steps_done)
        if self.stored:  # a batch is one read
            return DataLoader(self.stored["train"], batch_size=None, sampler=order, num_workers=self.workers)
        return DataLoader(self.train, batch_sampler=order, num_workers=self.workers, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        """Every device measures its share of the held-out pairs, each pair on one device."""
        rank, world = self._place()
        if len(self.held_out) < world:
            raise UserError(f"data.held_out_size={len(self.held_out)} gives {world} devices nothing to measure; use {world} or more")
        batch_size, _ = share_out(self.global_batch, world, self.batch_size)
        share = range(rank, len(self.held_out), world)
        if self.stored:
            order = BatchSampler(share, batch_size, drop_last=False)
            return DataLoader(self.stored["held_out"], batch_size=None, sampler=order, num_workers=self.workers)
        return DataLoader(Subset(self.held_out, share), batch_size, num_workers=self.workers, collate_fn=collate)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: what number i is, so that nobody goes on with other images unawares."""
        return {"files": [files.digest() for files in self.files]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["files"] != [files.digest() for files in self.files]:
            raise UserError("the images are not those that the checkpoint was trained on; bring them back, or start a new run")

    def unreadable_everywhere(self) -> list[str]:
        """Files that some process or worker could not read in this run. Every process must call it."""
        assert self.trainer is not None
        lost = []
        for files in self.files:
            seen = files.unreadable
            if self.trainer.world_size > 1:
                device = self.trainer.strategy.root_device
                seen = self.trainer.strategy.reduce(seen.to(device, torch.int32), reduce_op="sum").cpu()
            lost += [str(files.path(int(i))) for i in seen.nonzero()[:, 0]]
        return lost
