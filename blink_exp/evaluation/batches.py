"""Batches of questions, cut alike whoever answers them: by one process or several, at once or after a kill.

What a batch holds decides which numbers are computed beside each other, which in half precision can change an answer. A run therefore cuts
all of its samples, those answered before included, and no image is in two units, so that its features are computed by one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blink_exp.benchmarks.base import Sample, group_by_image

Unit = list[list[Sample]]  # batches: one of several images, or several of one image that has more questions than a batch


def cut(samples: Sequence[Sample], batch_size: int) -> list[Unit]:
    """The units of ``samples``, in their order by image. A batch has at most ``batch_size`` questions, all those of its images."""
    units: list[Unit] = []
    for image in group_by_image(list(samples)):
        pieces = [image[start : start + batch_size] for start in range(0, len(image), batch_size)]
        if len(pieces) == 1 and units and len(units[-1]) == 1 and len(units[-1][0]) + len(image) <= batch_size:
            units[-1][0] += image
        else:
            units.append(pieces)
    return units


@dataclass
class BatchSize:
    """``size``: questions of a batch, halved for the rest of a run where a batch did not fit in memory."""

    size: int

    def halve(self, questions: int) -> bool:
        """After a batch of ``questions`` that did not fit. False where it was one question, which cannot be halved."""
        if questions > 1:
            self.size = questions // 2
        return questions > 1
