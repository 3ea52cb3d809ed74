"""Validation/test split of every benchmark by image, so that settings are tuned on one part and reported on the other.

Questions on one image stay together, and so do images with identical pixels under different ids, which published benchmarks contain (a
chart with two questions is two rows). A hash of the group's first id decides the part, independent of order, ``limit`` and machine.
"""

from __future__ import annotations

import hashlib

from blink_exp.benchmarks.base import Benchmark, Probes, Sample
from blink_exp.errors import UserError, nearest

PARTS = ("all", "validation", "test")
VALIDATION = 30  # per cent of images. Not a setting: another share would move tuning images into the test part


def check_part(part: str, benchmark: Benchmark) -> None:
    """Raises UserError if ``part`` is unknown, or if ``benchmark`` has no questions to split."""
    if part not in PARTS:
        raise UserError(f"part={part} is not known; {nearest(str(part), PARTS)}")
    if part != "all" and isinstance(benchmark, Probes):
        raise UserError(f"part={part}: {benchmark.name} asks no question and runs no method, so it has no parts; use part=all")


def part_of(samples: list[Sample], part: str) -> list[Sample]:
    """The samples of ``part`` among all ``samples`` of a benchmark, in their order; opens every image unless it is ``all``.

    Raises UserError where the part is empty."""
    if part == "all":
        return samples
    validation = {image_id: in_validation(first) for image_id, first in first_ids(samples).items()}
    members = [s for s in samples if validation[s.image_id] == (part == "validation")]
    if not members:
        raise UserError(f"part={part} of {len(validation)} images is empty; use a benchmark with more images, or part=all")
    return members


def first_ids(samples: list[Sample]) -> dict[str, str]:
    """{image id: first image id with identical pixels}. An image that cannot be opened is its own group."""
    by_pixels: dict[str, str] = {}
    out: dict[str, str] = {}
    for sample in samples:
        if sample.image_id in out:
            continue
        try:
            image = sample.image()
            pixels = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
        except OSError:
            pixels = sample.image_id
        out[sample.image_id] = by_pixels.setdefault(pixels, sample.image_id)
    return out


def in_validation(image_id: str) -> bool:
    """Whether the image called ``image_id`` belongs to the validation part."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") % 100 < VALIDATION
