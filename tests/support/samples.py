"""Samples without content, for what counts and cuts them."""

from __future__ import annotations

from blink_exp.benchmarks.base import Sample


def samples_on(images: list[int]) -> list[Sample]:
    """As many questions on each image as ``images`` says."""
    return [Sample(f"{i}/{k}", str(i), lambda: None, "?", "yes", "c") for i, n in enumerate(images) for k in range(n)]
