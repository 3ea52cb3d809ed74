"""Makes or reuses feature caches, in one process or in all of a training's; an interrupted cache is continued.

Each process makes every n-th of the missing files. Rank 0 alone plans, deletes and prints; see ``feature_identity``.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from blink_exp.core.saliency import PatchGrid
from blink_exp.errors import UserError
from blink_exp.evaluation import locks
from blink_exp.evaluation.terminal import Lines
from blink_exp.finite import first_nonfinite
from blink_exp.training.batches import share_out
from blink_exp.training.feature_cache import CachePlan, Features, StoredFeatures, shard_path, write_shard
from blink_exp.training.feature_identity import cache_folder, choose_cache, faults, plan_contents
from blink_exp.training.pairs import PairBatch, PairDataset, collate

SHARD = 2**25  # bytes of a file, at least one batch; the most that a killed run loses
SPLITS = ("train", "held_out")
CURE = "free some, choose another disk with data.cache_path=..., or use data.cache_features=false"
Capture = Callable[[PairBatch], Features]  # a batch of pixels to (pairs, layers, tokens, width) in the backbone's dtype


@dataclass(frozen=True)
class Ranks:
    """The processes of a training. ``strategy``: Lightning's; None for one process."""

    rank: int = 0
    world: int = 1
    strategy: Any = None

    def broadcast(self, value: Any) -> Any:
        """``value`` of rank 0, on all processes."""
        return self.strategy.broadcast(value) if self.world > 1 else value

    def barrier(self) -> None:
        if self.world > 1:
            self.strategy.barrier()


@dataclass(frozen=True)
class Order:
    """The distinct rows of a split. ``items``: one item for each, pairs of one image side by side; ``images``: their images; ``row``:
    (length,) the row of each item."""

    items: list[int]
    images: list[int]
    row: np.ndarray

    @classmethod
    def of(cls, pairs: PairDataset) -> Order:
        pair_of_item = [pairs.pair(i) for i in range(len(pairs))]
        first: dict[tuple[int, int], int] = {}
        images: dict[int, int] = {}
        for i, pair in enumerate(pair_of_item):
            first.setdefault(pair, i)
            images.setdefault(pair[0], len(images))
        rows = sorted(first, key=lambda pair: (images[pair[0]], first[pair]))
        row_of = {pair: k for k, pair in enumerate(rows)}
        return cls([first[pair] for pair in rows], [pair[0] for pair in rows], np.array([row_of[pair] for pair in pair_of_item]))


def cut(images: list[int], most: int) -> list[int]:
    """Start rows of groups of at most ``most`` rows (4 at least), then the number of rows. No image is in two groups, so that its full view
    is run once."""
    starts, most = [0], max(4, most)
    ends = [i for i in range(1, len(images)) if images[i] != images[i - 1]] + [len(images)]
    for begin, end in pairwise([0, *ends]):
        if end - starts[-1] > most:
            starts.append(begin)
    return [*starts, len(images)]


def shards(images: list[int], batch: int, row_bytes: int, most: int) -> list[int]:
    """Start rows of files: whole batches, as in training, up to ``most`` bytes."""
    starts = [0]
    for begin, end in pairwise(cut(images, batch)):
        if (end - starts[-1]) * row_bytes > most and begin > starts[-1]:
            starts.append(begin)
    return [*starts, len(images)]


@contextlib.contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Locks the cache against other runs. Raises UserError where the disk is full or not writable inside the block."""
    with contextlib.ExitStack() as stack:
        try:
            if ranks.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.waited(folder))
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"the disk is full (writing {folder}); {CURE}; what was made is kept") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise UserError(f"{folder} cannot be written ({error.strerror}); choose another folder with data.cache_path=...") from error
            raise


def prepare_features(
    backbone: Any, layers: list[int], capture: Capture, data: Any, precision: str, ranks: Ranks
) -> dict[str, StoredFeatures]:
    """The features of both splits of ``data``, read or made. Every process must call it.

    Raises UserError where pairs are not deterministic, or where the disk is full, not writable or not shared by all processes.
    """
    began = time.monotonic()
    pairs = {split: getattr(data, split) for split in SPLITS}
    orders = {split: Order.of(pairs[split]) for split in SPLITS}
    batch, _ = share_out(data.global_batch, ranks.world, data.batch_size)
    size = row_bytes(backbone, layers, data.cache_dtype)
    needed, folder = None, data.cache_path
    if ranks.rank == 0:
        most = {split: min(SHARD, size * len(order.items) // (4 * ranks.world)) for split, order in orders.items()}
        shard_starts = {split: shards(order.images, batch, size, most[split]) for split, order in orders.items()}
        needed = CachePlan(*plan_contents(backbone, layers, data, precision), shard_starts)
        folder = cache_folder(data.cache_path, needed.settings)
    with locked(folder, ranks):
        folder, plan, missing = ranks.broadcast(None if needed is None else begin(data, needed, size))
        mine = missing[ranks.rank :: ranks.world]
        lines = Lines(sum(len(plan.rows(*file)) for file in mine), "features") if ranks.rank == 0 else None
        make(folder, plan, mine, pairs, orders, capture, data, batch, lines)
        ranks.barrier()
        for file in missing:
            if not shard_path(folder, *file).is_file():
                raise UserError(f"{folder} is not one folder for all processes; set data.cache_path to a disk that they share")
        stored = {split: StoredFeatures(folder, plan, split, list(layers), orders[split].row) for split in SPLITS}
        ranks.barrier()
    if missing and ranks.rank == 0:
        print(f"features are ready after {time.monotonic() - began:.0f} s", flush=True)
    return stored


def row_bytes(backbone: Any, layers: list[int], dtype: str) -> int:
    """Bytes of the features of one pair."""
    height, width = PatchGrid(2, *backbone.grid).patch
    values: int = (backbone.grid[0] * backbone.grid[1] + height * width) * backbone.width
    return values * len(layers) * (2 if dtype == "bfloat16" else 4)


def amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def begin(data: Any, needed: CachePlan, size: int) -> tuple[Path, CachePlan, list[tuple[str, int]]]:
    """(folder, plan, files to make), printed in one line. Called by rank 0. Raises UserError where they do not fit on the disk."""
    folder, plan, message = choose_cache(data.cache_path, needed)
    wrong, unreadable = faults(folder, plan)
    for files, split in zip(data.files, SPLITS, strict=False):
        files.unreadable[sorted(unreadable[split])] = 1
    file_count, missing = len(plan.files()), list(wrong)
    torn = sum(reason != "missing" for reason in wrong.values())
    if torn:
        message = f"{torn} of {file_count} files of features in {folder} are damaged and are made anew"
    elif 0 < len(missing) < file_count:
        message = f"features in {folder} are gone on with behind {file_count - len(missing)} of {file_count} files"
    if missing:
        need, free = size * sum(len(plan.rows(*file)) for file in missing), shutil.disk_usage(folder).free
        if need > free:
            raise UserError(f"data.cache_features=true needs {amount(need)} in {folder}, but {amount(free)} is free; {CURE}")
        message += f" ({amount(need)} to write)"
    print(message, flush=True)
    return folder, plan, missing


def make(
    folder: Path,
    plan: CachePlan,
    files: list[tuple[str, int]],
    pairs: dict[str, PairDataset],
    orders: dict[str, Order],
    capture: Capture,
    data: Any,
    batch: int,
    lines: Lines | None,
) -> None:
    """Runs the pairs of ``files`` through the backbone and writes them, file by file. ``lines``: progress by pairs."""
    kind = getattr(torch, plan.settings["dtype"])
    for number, split in enumerate(SPLITS):
        order, mine = orders[split], [file for file in files if file[0] == split]
        groups = [whole_batches(plan.rows(*file), order, batch) for file in mine]
        items = [[order.items[row] for row in group] for shard in groups for group in shard]
        batches = iter(DataLoader(pairs[split], batch_sampler=items, num_workers=data.workers, collate_fn=collate)) if items else iter(())
        for file, shard in zip(mine, groups, strict=True):
            captured = []
            for group in shard:
                captured.append(capture(next(batches)))
                if lines is not None:
                    lines.advance(len(group))
            features = Features(*(torch.cat(parts).to("cpu", kind) for parts in zip(*captured, strict=True)))
            for name, part in features._asdict().items():
                if (bad := first_nonfinite((str(layer), part[:, k]) for k, layer in enumerate(plan.layers))) is not None:
                    raise UserError(f"the frozen model's states of layer {bad} ({name}) are nan or inf; use another model.dtype")
            lost = data.files[number].unreadable.nonzero()[:, 0].tolist() if data.files else []
            write_shard(shard_path(folder, *file), plan.key, features, captured[0].teacher.dtype, lost)


def whole_batches(rows: range, order: Order, batch: int) -> list[range]:
    return [rows[a:b] for a, b in pairwise(cut(order.images[rows.start : rows.stop], batch))]
