"""Training pairs: the full view of an image, and a close-up of one of its four quadrants (Blink, App. A.2).

Both are cut from the same square canvas, the quadrant at the canvas's full resolution, so the H x W tokens of the quadrant cover
exactly the H/2 x W/2 tokens of the full view.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Subset

from blink_exp.errors import UserError
from blink_exp.training import llava_665k
from blink_exp.training.batches import GlobalBatches, share_out
from blink_exp.training.canvases import Files
from blink_exp.training.dialogues import DialogueDataset, Source
from blink_exp.training.feature_cache import PairsIdentity, StoredFeatures, check_settings
from blink_exp.training.pairs import PairDataset, Transform, collate


class Split(NamedTuple):
    """``canvases``: maps i to a square image; ``size``: number of pairs; ``distinct``: number of images, None if unlimited."""

    canvases: Callable[[int], Image.Image]
    size: int
    distinct: int | None = None


class PairedCrops(pl.LightningDataModule):
    """Training and held-out pairs from one source of images.

    Args:
        transform: the backbone's preprocessing.
        train_size, held_out_size: numbers of pairs; None: each image once. Images are reused when they run out.
        global_batch: pairs of an optimizer step, over all devices. batch_size: of a device at once; None: its share of a step.
        workers: processes that prepare pairs; affects only the speed.
        questions: of each image, for a training on answers (see ``ask``).
        quadrants: ``one`` quadrant of each image in turn, or ``all`` four (see ``PairDataset``).
        steps_done: optimizer steps of the checkpoint to resume from. (The trainer restores them only after it has asked for the loader.)
        cache_features, cache_path, cache_dtype: whether the backbone's features of the pairs are cached on disk, the folder, and bfloat16
            or float32 (see ``feature_cache``).
    """

    source: ClassVar[str]  # name in messages and caches
    has_questions: ClassVar[bool] = False

    def __init__(
        self,
        transform: Transform,
        *,
        train_size: int | None = 2048,
        held_out_size: int | None = 256,
        global_batch: int = 8,
        batch_size: int | None = None,
        workers: int = 0,
        quadrants: str = "one",
        questions: int = 4,
        seed: int = 0,
        steps_done: int = 0,
        cache_features: bool = False,
        cache_path: str = "outputs/features",
        cache_dtype: str = "bfloat16",
    ):
        super().__init__()
        check_settings(cache_path, cache_dtype)
        self.cache_features, self.cache_path, self.cache_dtype = cache_features, Path(cache_path), cache_dtype
        self.transform, self.quadrants, self.seed, self.steps_done = transform, quadrants, seed, steps_done
        self.train_size, self.held_out_size = train_size, held_out_size
        self.global_batch, self.batch_size, self.workers = global_batch, batch_size, workers
        self.questions = questions
        self.dialogues: dict[str, DialogueDataset] = {}  # by "train" and "held_out", for a training on answers
        self._asks: tuple[Any, bool] | None = None
        self.train: PairDataset | None = None
        self.held_out: PairDataset | None = None
        self.broken: dict[str, str] = {}  # {file: why it was left out before training}
        self.summary: llava_665k.Counts = {}  # statistics of the source
        self.files: list[Files] = []  # of a file source: training, held out
        self.stored: dict[str, StoredFeatures] = {}  # by "train" and "held_out", once the features are on disk

    @abstractmethod
    def splits(self) -> tuple[Split, Split]:
        """(training, held out)."""

    def ask(self, image_processor: Any, pairs: bool) -> None:
        """Makes the loaders give dialogues: batches of ``train_dataloader`` are {"answers": dialogues}, and with ``pairs`` also
        {"pairs": PairBatch}; ``val_dataloader`` is a list of two, dialogues and pairs."""
        self._asks = image_processor, pairs

    def check_answers(self) -> None:
        """Raises UserError where the source has no questions."""
        if not self.has_questions:
            self.dialogue_sources()

    def dialogue_sources(self) -> tuple[Source, Source]:
        """(training, held out), of sources that ``has_questions``. Raises UserError of the others."""
        raise UserError(f"data={self.source} has no questions to train answers on; use data=scenes or data=llava_665k, or another loss")

    @property
    def identity(self) -> PairsIdentity:
        """Settings that determine the pairs, beside their number."""
        return {"source": self.source, "seed": self.seed, "quadrants": self.quadrants}

    def setup(self, stage: Any = None) -> None:
        if self.train is not None:  # Lightning calls it again before validation
            return
        train, held_out = self.splits()
        if train.size < self.global_batch:
            raise UserError(
                f"data.train_size={train.size} is less than one step of data.global_batch={self.global_batch}; use as many pairs or more"
            )
        self.train = PairDataset(train.canvases, train.size, self.transform, self.seed, train.distinct, self.quadrants)
        self.held_out = PairDataset(held_out.canvases, held_out.size, self.transform, self.seed + 1, held_out.distinct, self.quadrants)
        if self._asks is not None:
            sources = zip(("train", "held_out"), self.dialogue_sources(), strict=True)
            self.dialogues = {split: DialogueDataset(source, self._asks[0]) for split, source in sources}

    def _rank(self) -> tuple[int, int]:
        """(rank, world size)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> Any:
        """Not shuffled: items are random functions of their index."""
        assert self.train is not None
        if self._asks is None:
            return self._train_loader(self.train, collate)
        answers = self._train_loader(self.dialogues["train"], list)
        return {"answers": answers, "pairs": self._train_loader(self.train, collate)} if self._asks[1] else {"answers": answers}

    def _train_loader(self, dataset: Any, collate_batch: Callable[[list[Any]], Any]) -> DataLoader[Any]:
        rank, world = self._rank()
        batch_size, parts = share_out(self.global_batch, world, self.batch_size)
        order = GlobalBatches(len(dataset), batch_size, parts, rank, world, start=self.steps_done)
        if self.stored:  # items are batches
            return DataLoader(self.stored["train"], batch_size=None, sampler=order, num_workers=self.workers)
        return DataLoader(dataset, batch_sampler=order, num_workers=self.workers, collate_fn=collate_batch)

    def val_dataloader(self) -> Any:
        """Each held-out pair, and each held-out dialogue, is on exactly one device."""
        assert self.held_out is not None
        _, world = self._rank()
        if len(self.held_out) < world:
            raise UserError(f"data.held_out_size={len(self.held_out)} gives {world} devices nothing to measure; use {world} or more")
        pairs = self.in_order("held_out", len(self.held_out))
        if self._asks is None:
            return pairs
        dialogues = self.dialogues["held_out"]
        return [self._share_loader(dialogues, len(dialogues), list), pairs]

    def in_order(self, split: str, pairs: int) -> DataLoader[Any]:
        """This device's share of the first ``pairs`` of a split."""
        if not self.stored:
            return self._share_loader(getattr(self, split), pairs, collate)
        order = BatchSampler(self._share(pairs), self._batch_size(), drop_last=False)
        return DataLoader(self.stored[split], batch_size=None, sampler=order, num_workers=self.workers)

    def _share(self, items: int) -> range:
        rank, world = self._rank()
        return range(rank, items, world)

    def _batch_size(self) -> int:
        return share_out(self.global_batch, self._rank()[1], self.batch_size)[0]

    def _share_loader(self, dataset: Any, items: int, collate_batch: Callable[[list[Any]], Any]) -> DataLoader[Any]:
        return DataLoader(Subset(dataset, self._share(items)), self._batch_size(), num_workers=self.workers, collate_fn=collate_batch)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: hashes of the file lists, so that a resumed training has the same images."""
        return {"files": [files.digest() for files in self.files]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["files"] != [files.digest() for files in self.files]:
            raise UserError("the images are not those that the checkpoint was trained on; bring them back, or start a new run")

    def unreadable_everywhere(self) -> list[str]:
        """Files that any process could not read in this run. Every process must call it."""
        assert self.trainer is not None
        lost = []
        for files in self.files:
            unreadable = files.unreadable
            if self.trainer.world_size > 1:
                device = self.trainer.strategy.root_device
                unreadable = self.trainer.strategy.reduce(unreadable.to(device, torch.int32), reduce_op="sum").cpu()
            lost += [str(files.path(int(i))) for i in unreadable.nonzero()[:, 0]]
        return lost
