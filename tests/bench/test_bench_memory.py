"""Benchmarks of what is held and of what is made ahead: their numbers are of the work, and stand in their rows."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from bench import budget, loading
from blink_exp.settings.compose import composed


@pytest.mark.slow
def test_less_memory_holds_less_and_says_the_same(monkeypatch):
    points = [composed("evaluate", [f"method={name}"]) for name in ("none", "blink_interp")]
    monkeypatch.setattr(budget, "composed", lambda *_: points)
    monkeypatch.setattr(budget, "MEBIBYTES", (64, 1))
    result = budget.measure(size="small", questions="4")
    most, least = (row["peak MiB"] for row in result["rows"])
    assert 2 < least < most / 1.5  # one image's prefix of 148 tokens takes 2.3 MiB
    assert [bar["met"] for bar in result["bars"]] == [True, True] and result["rows"][0]["time / most memory"] == 1


def test_images_a_second_and_what_a_busy_device_waits(monkeypatch):
    """Four images: eight seconds in one process, so the device is busy for two on each."""
    taken = iter([{"0": [8.0], "1": [4.0], "2": [2.0]}, {"0": [16.0], "1": [9.0], "2": [8.0]}] * 2)
    monkeypatch.setattr(loading, "rounds", lambda works, repeats: next(taken))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    result = loading.measure(size="small", photographs="4")
    assert [(row["workers"], row["images / s"]) for row in result["rows"][:3]] == [(0, 0.5), (1, 1.0), (2, 2.0)]
    assert [row["with a busy device: time / the device's"] for row in result["rows"][:3]] == [2.0, 1.125, 1.0]


def test_the_photographs_are_jpeg_files_of_the_size_that_is_said():
    image = Image.open(io.BytesIO(loading.jpeg(0)))
    assert (image.format, image.size) == ("JPEG", (640, 480)) and loading.jpeg(0) == loading.jpeg(0) != loading.jpeg(1)
