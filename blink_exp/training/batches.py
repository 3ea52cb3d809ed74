"""Assigns training pairs to optimizer steps and devices.

A step takes the next ``global_batch`` items, for any number of devices and micro-batches. So trainings on 2 and on 8 GPUs see the same
steps, and a resumed one continues with the next item on any number of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from blink_exp.errors import UserError


def share_out(global_batch: int, devices: int, batch_size: int | None = None) -> tuple[int, int]:
    """(batch size of a device, accumulated batches) for an optimizer step on ``global_batch`` pairs.

    ``batch_size``: pairs of a device at once; None: all of its share. Raises UserError where the numbers do not divide.
    """
    if global_batch < 1 or global_batch % devices:
        fitting = ", ".join(str(n) for n in range(1, max(global_batch, 1) + 1) if global_batch % n == 0)
        raise UserError(
            f"data.global_batch={global_batch} cannot be shared out evenly over {devices} devices;"
            + (f" use {fitting} devices or a multiple of {devices}" if global_batch > 0 else f" use a multiple of {devices}")
        )
    share = global_batch // devices
    if batch_size is None:
        return share, 1
    if batch_size < 1 or share % batch_size:
        fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
        raise UserError(
            f"data.batch_size={batch_size} does not divide the {share} pairs that each of {devices} devices gets of"
            f" data.global_batch={global_batch}; use {fitting}, or another data.global_batch"
        )
    return batch_size, share // batch_size


class GlobalBatches(Sampler[list[int]]):
    """The batches of one device, as lists of item indices: whole steps in the order of the items.

    Step s works on items s * global_batch to (s + 1) * global_batch - 1; the rest of an epoch is not used. Part m of it is cut
    into one run of ``batch_size`` items for each device. Only the first pass begins at step ``start``, for a resumed training.

    Args:
        length: items of an epoch.
        batch_size, parts: of a device (see ``share_out``).
        rank, world: which device this is, of how many.
    """

    def __init__(self, length: int, batch_size: int, parts: int = 1, rank: int = 0, world: int = 1, start: int = 0):
        self.batch_size, self.parts, self.rank, self.world = batch_size, parts, rank, world
        self.steps = length // (batch_size * parts * world)
        self.start = start % self.steps if self.steps else 0

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        for part in range(start * self.parts, self.steps * self.parts):
            first = (part * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


def rescale(batches: dict[str, Any], before: int, now: int) -> None:
    """Rescales the batch counts of a Lightning checkpoint (its ``epoch_loop.batch_progress``), in place, from ``before`` accumulated
    batches of a step to ``now``, as the number of devices changed. Checkpoints are made at the end of a step, inside its last batch."""
    for name in ("total", "current"):
        count = batches[name]
        open_ = count["processed"] - count["completed"]
        for key in ("ready", "started", "processed"):
            count[key] = count[key] * now // before
        count["completed"] = count["processed"] - open_
