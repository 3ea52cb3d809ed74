"""Images encoded in memory, and what opening them gives."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from blink_exp.images import ImageOptions

ORIENTATION = 0x0112

DROP, WHITE = ImageOptions(alpha="drop"), ImageOptions(alpha="white")


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


SIXTEEN = np.array([[0, 257, 32768, 65535]], np.uint16)
