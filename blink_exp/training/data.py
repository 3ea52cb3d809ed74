"""Sources of training pairs (conf/data): drawn scenes, a folder of images, LLaVA's instruction data. Each is a DataModule."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blink_exp.errors import UserError
from blink_exp.images import URL, ImageOptions, why_refused
from blink_exp.training import llava_665k
from blink_exp.training.canvases import Files, SceneCanvases, folder_images, hold_out
from blink_exp.training.dialogues import Conversations, FileDialogues, SceneDialogues, Source
from blink_exp.training.feature_cache import PairsIdentity
from blink_exp.training.paired_crops import PairedCrops, Split
from blink_exp.training.pairs import Transform


class SceneData(PairedCrops):
    """Mosaics of real easy-VQA images; held out: mosaics of its test images.

    Args:
        sizes: objects a row of a scene, drawn from this list; 4: scenes of 4 x 4.
        small: whether all objects are small ones, as in scenes where the full view lacks their detail.
    """

    source = "scenes"
    has_questions = True

    def __init__(self, transform: Transform, sizes: Sequence[int] = (2, 3, 4), small: bool = False, **common: Any):
        super().__init__(transform, **common)
        self.sizes, self.small = list(sizes), small
        if self.train_size is None or self.held_out_size is None:
            raise UserError(
                "data.train_size=null means every image once, and there is no end of scenes; give data.train_size and held_out_size"
            )

    @property
    def identity(self) -> PairsIdentity:
        return super().identity | {"sizes": self.sizes, "small": self.small}

    def splits(self) -> tuple[Split, Split]:
        assert self.train_size is not None and self.held_out_size is not None
        train, test = (SceneCanvases(split, self.seed, self.sizes, self.small) for split in ("train", "test"))
        return Split(train, self.train_size), Split(test, self.held_out_size)

    def dialogue_sources(self) -> tuple[Source, Source]:
        assert self.train_size is not None and self.held_out_size is not None
        train, held_out = (
            SceneDialogues(size, self.questions, self.seed, held_out, self.sizes, self.small)
            for size, held_out in ((self.train_size, False), (self.held_out_size, True))
        )
        return train, held_out


class FileData(PairedCrops):
    """Pairs of image files.

    Args:
        pad: makes square canvases by padding, as LLaVA-1.5, instead of a centre crop.
        image_loading: how files are opened, see ``images.ImageOptions``.
    """

    def __init__(self, transform: Transform, pad: bool = False, image_loading: Any = None, **common: Any):
        super().__init__(transform, **common)
        self.pad, self.image_loading = pad, ImageOptions.of(image_loading)

    @abstractmethod
    def names(self) -> tuple[Path, list[str], list[str]]:
        """(root, training files, held-out files), names relative to the root."""

    @property
    def identity(self) -> PairsIdentity:
        return super().identity | {"pad": self.pad, "image_loading": dataclasses.asdict(self.image_loading)}

    def splits(self) -> tuple[Split, Split]:
        root, *parts = self.names()
        self.files = [Files(root, part, self.pad, self.image_loading) for part in parts]
        pairs = 4 if self.quadrants == "all" else 1
        sizes = (self.train_size, self.held_out_size)
        train, held_out = (
            Split(files, pairs * len(part) if size is None else size, len(part))
            for files, part, size in zip(self.files, parts, sizes, strict=True)
        )
        return train, held_out


class FolderData(FileData):
    """The images of a folder and of those below it; every tenth is held out."""

    source = "folder"

    def __init__(self, transform: Transform, path: str, **common: Any):
        super().__init__(transform, **common)
        self.path = path

    @property
    def identity(self) -> PairsIdentity:
        return super().identity | {"path": self.path}

    def names(self) -> tuple[Path, list[str], list[str]]:
        root = Path(self.path)
        good, broken = folder_images(self.path, self.pad, self.image_loading)
        self.broken = {str(path): why for path, why in broken.items()}
        shuffled = [str(good[i].relative_to(root)) for i in np.random.default_rng(self.seed).permutation(len(good))]
        return root, [name for i, name in enumerate(shuffled) if i % 10], shuffled[::10]


class LlavaData(FileData):
    """The images of LLaVA-1.5's instruction data, each once.

    Args:
        json: llava_v1_5_mix665k.json. images: root folder of its paths.
        held_out_share: share of the distinct images.
    """

    source = "llava_665k"
    has_questions = True

    def __init__(self, transform: Transform, json: str, images: str, held_out_share: float = 0.002, **common: Any):
        super().__init__(transform, **common)
        self.json, self.images, self.held_out_share = json, images, held_out_share

    @property
    def identity(self) -> PairsIdentity:
        return super().identity | {"json": self.json, "images": self.images, "held_out_share": self.held_out_share}

    def names(self) -> tuple[Path, list[str], list[str]]:
        root = Path(self.images)
        content = llava_665k.find(Path(self.json), root, self.image_loading.outside)
        self.broken = {name if URL.match(name) else str(root / name): why_refused(name) for name in content.refused}
        names, held_out = hold_out(content.names, self.held_out_share, self.seed)
        self.summary = content.summary | {"trained_on": len(names), "held_out": len(held_out)}
        if self.trainer is None or self.trainer.is_global_zero:
            print(f"llava_665k: {content}; {len(held_out):,} are held out")
        if not names or not held_out:
            raise UserError(
                f"data.held_out_share={self.held_out_share} leaves {len(names)} of {len(content.names)} images to train on;"
                " use another share"
            )
        return root, names, held_out

    def dialogue_sources(self) -> tuple[Source, Source]:
        names = [name for files in self.files for name in files.listed()]
        conversations = Conversations(llava_665k.rows(Path(self.json)), names)
        self.summary |= {"images_with_conversation": len(conversations.number), "conversations_left_out": len(conversations.skipped)}
        if conversations.skipped and (self.trainer is None or self.trainer.is_global_zero):
            (row, why), count = conversations.skipped[0], len(conversations.skipped)
            print(f"{count:,} rows with an image are left out, first {row}: {why}")
        sizes = [
            len(files.names) if size is None else size
            for files, size in zip(self.files, (self.train_size, self.held_out_size), strict=True)
        ]
        train, held_out = (
            FileDialogues(files, conversations, size, self.questions, self.seed + k)
            for k, (files, size) in enumerate(zip(self.files, sizes, strict=True))
        )
        return train, held_out
