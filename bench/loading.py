"""Photographs opened and prepared by workers: how many a second, and how long a device that works meanwhile waits for them."""

from __future__ import annotations

import functools
import io
import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import report
from bench.shapes import LLAVA_NEXT_7B
from bench.timing import compared, now, rounds
from blink_exp.backbone.pictures import open_images, prepare_image
from blink_exp.images import open_image

TITLE = "Images: opened, decoded and prepared ahead of the model"
PHOTOGRAPH = (640, 480)  # COCO's, which most benchmarks' images come from


def measure(size: str = "default", photographs: str | int | None = None, repeats: str | int | None = None) -> dict[str, Any]:
    """``photographs``: how many a round prepares; ``repeats``: rounds, in which all numbers of workers take turns."""
    small = size == "small"
    count, turns = int(photographs or (4 if small else 64)), int(repeats or (1 if small else 5))
    files = [functools.partial(open_image, jpeg(k)) for k in range(count)]
    numbers = sorted({0, 1, os.cpu_count() or 1})
    rows = []
    for name, processor in processors().items():
        backbone: Any = SimpleNamespace(
            processor=SimpleNamespace(image_processor=processor), model=SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cpu"))
        )
        work = {str(n): functools.partial(through, files, backbone, n, 0.0) for n in numbers}
        alone = rounds(work, turns)
        busy = sorted(alone["0"])[turns // 2] / count  # the device works as long on an image as one process prepares it
        beside = rounds({str(n): functools.partial(through, files, backbone, n, busy) for n in numbers}, turns)
        device = [busy * count] * turns
        for n in numbers:
            ratio = compared(beside[str(n)], device).ratio
            speed = count / compared(alone[str(n)], alone["0"]).first
            rows.append({"images for": name, "workers": n, "images / s": speed, "with a busy device: time / the device's": ratio})
    notes = [
        f"{count} JPEG photographs of {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]} pixels, random but smooth, to bfloat16 pixels; {turns} rounds.",
        "The busy device is pretended: the consumer sleeps as long on an image as one process prepares it. 2 is no overlap, 1 the best.",
    ]
    return report.result(TITLE, rows, (), notes)


def jpeg(seed: int) -> bytes:
    """A file of about the size that a photograph of these pixels has."""
    small = np.random.default_rng(seed).integers(0, 256, (PHOTOGRAPH[1] // 8, PHOTOGRAPH[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def processors() -> dict[str, Any]:
    """The image processors of the published checkpoints."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    grids = LLAVA_NEXT_7B.config().image_grid_pinpoints
    return {
        "LLaVA-1.5, one view": CLIPImageProcessorPil(**sizes),
        "LLaVA-NeXT, thumbnail and tiles": LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=grids),
    }


def through(files: list[Any], backbone: Any, workers: int, busy: float) -> float:
    """Takes all images, with ``busy`` seconds of a device's work on each. Returns the seconds that it took."""
    begun = now()
    for image in open_images(files, backbone, workers, ahead=32):
        prepare_image(image, backbone.processor.image_processor)  # type: ignore[arg-type]
        time.sleep(busy)
    return now() - begun
