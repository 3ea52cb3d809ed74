"""Pixels of any mode as 8-bit ones without transparency.

Depth: 16-bit grey keeps its high byte, as Pillow does with 16-bit colour. 32-bit integers and floats have no fixed white; their rule is in
``grey_bytes``.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def eight_bit(image: Image.Image) -> Image.Image:
    """An image of more than 8 bits a channel as grey of 8 bits; any other as it is."""
    if image.mode != "I" and image.mode != "F" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    grey = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8) if sixteen else grey_bytes(values))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):  # a PNG may name one value that is transparent
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))))
    return grey


def grey_bytes(values: np.ndarray) -> np.ndarray:
    """(height, width) floats or 32-bit integers as bytes, by the first rule that fits all of them: floats in [0, 1] are shares of white;
    values in [0, 255] are bytes already; integers in [0, 65535] are 16-bit; any others are stretched from their smallest, black, to their
    largest, white. NaN and infinities are black and count for no rule."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    floats = values.dtype.kind == "f"
    values = np.where(finite, values, 0).astype(np.float32)
    if low < 0 or high > (255 if floats else 65535):
        scale = 255 / (high - low) if high > low else 0.0
        values = values * np.float32(scale) - np.float32(low * scale)
    elif floats and high <= 1:
        values *= 255
    elif high > 255:
        values = np.floor(values / 256)
    return np.where(finite, np.floor(values + 0.5), 0).clip(0, 255).astype(np.uint8)


def opaque(image: Image.Image) -> Image.Image:
    """Drops the alpha channel."""
    image = image.convert("LA") if image.mode == "La" else image  # premultiplied, which converts to nothing else
    return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """Composites over white."""
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper
