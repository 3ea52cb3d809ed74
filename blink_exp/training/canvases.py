"""Square canvases that training pairs are cut from: generated scenes and image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from blink_exp.backbone.canvas import square_canvas
from blink_exp.errors import UserError
from blink_exp.images import DEFAULT, ImageOptions, open_image
from blink_exp.scenes.scenes import random_scene

T = TypeVar("T")
PATIENCE = 100  # consecutive unreadable images that count as a failure of the disk


def open_canvas(name: str, root: Path, pad: bool, options: ImageOptions = DEFAULT) -> Image.Image:
    """The square canvas of an image file below ``root``. Raises OSError where it cannot be opened, or is too small to have quadrants."""
    canvas = square_canvas(open_image(name, options, root), pad)
    if canvas.width < 2:
        raise OSError(f"{name} makes a canvas of one pixel, which has no quadrants")
    return canvas


@dataclass(frozen=True)
class SceneCanvases:
    """Scenes of easy-VQA's images of ``split``, by number. ``sizes``: objects a row, drawn alike; ``small``: only small objects.

    Not a function in a function, so that it can be sent to worker processes that are not forked."""

    split: str
    seed: int
    sizes: Sequence[int] = (2, 3, 4)
    small: bool = False

    def __call__(self, i: int) -> Image.Image:
        rng = np.random.default_rng((self.seed, 5, i))
        return random_scene(rng, self.split, self.sizes[int(rng.integers(len(self.sizes)))], small=self.small).canvas


def folder_images(folder: str, pad: bool = False, options: ImageOptions = DEFAULT) -> tuple[list[Path], dict[Path, str]]:
    """(images that can be trained on, {an image that cannot be: why}) of a folder and those below it, each opened once."""
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
    return good, broken


@dataclass(frozen=True)
class BaseView:
    """A backbone's preprocessing of the base view, without the backbone, so that it can be sent to worker processes."""

    image_processor: Any

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size) pixels."""
        pixels: torch.Tensor = self.image_processor(images=image, return_tensors="pt").pixel_values[0]
        return pixels if pixels.ndim == 3 else pixels[0]  # LLaVA-NeXT: the thumbnail is the first view


class Files:
    """Canvases of image files: number i is file i % len(names), and where that cannot be read, the next one that can.

    ``unreadable``: (files,) uint8, 1 where reading failed; in shared memory with the worker processes.
    """

    def __init__(self, root: Path, names: list[str], pad: bool, options: ImageOptions = DEFAULT):
        self.root, self.pad, self.options = root, pad, options
        self.names = np.array(
            [os.fsencode(name) for name in names]
        )  # one array: half a million str objects would be copied into every worker
        self.unreadable = torch.zeros(len(names), dtype=torch.uint8).share_memory_()

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(bytes(self.names[i]))

    def listed(self) -> list[str]:
        """The names, in order."""
        return [os.fsdecode(bytes(name)) for name in self.names]

    def __call__(self, i: int) -> Image.Image:
        return self.first(i, lambda name: open_canvas(name, self.root, self.pad, self.options))[1]

    def first(self, i: int, opened: Callable[[str], T | None], used: str = "read") -> tuple[str, T]:
        """(name, what ``opened`` makes of it) of file i or the next one for which that neither raises OSError nor is None. ``used``: the
        word for it in the error."""
        for k in range(i, i + min(PATIENCE, len(self.names))):
            name = os.fsdecode(bytes(self.names[k % len(self.names)]))
            try:
                if (value := opened(name)) is not None:
                    return name, value
            except OSError:
                self.unreadable[k % len(self.names)] = 1
        first = self.path(i % len(self.names))
        raise UserError(f"{min(PATIENCE, len(self.names))} images in a row cannot be {used}, first {first}; check the disk and the copy")

    def digest(self) -> str:
        """Hash of the names and their order."""
        return hashlib.sha256(b"\n".join(bytes(name) for name in self.names)).hexdigest()[:16]

    def stamp(self) -> str:
        """Hash of the names, sizes and modification times."""
        digest = hashlib.sha256()
        for i in range(len(self.names)):
            try:
                stat = self.path(i).stat()
                state = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                state = "gone"
            digest.update(bytes(self.names[i]) + f"\n{state}\n".encode())
        return digest.hexdigest()[:16]


def hold_out(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(names to train on, names held out) ordered and split by a hash of seed and name, so that a missing image does not
    move others."""
    numbers = {name: hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names}
    limit = int(share * 2**64)
    ordered = sorted(names, key=lambda name: (numbers[name][::-1], name))
    held_out = [name for name in ordered if int.from_bytes(numbers[name]) < limit]
    return [name for name in ordered if int.from_bytes(numbers[name]) >= limit], held_out
