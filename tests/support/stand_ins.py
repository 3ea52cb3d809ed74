"""A backbone, a method and an evaluation without weights, for tests of what is asked and in which order: no model is run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from PIL import Image

RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


@dataclass
class Calls:
    """In place of ``asking.answers``: an answer says what was asked, and every call is kept."""

    calls: list[tuple] = field(default_factory=list)

    def __call__(self, backbone, method, attached, images, asked, max_new_tokens):
        self.calls.append((list(attached.samples), images, asked, max_new_tokens))
        pixels = [images[one.image].getpixel((0, 0)) for one in asked]
        texts = [f"{one.question} {pixel[0]} {max_new_tokens} STOP more" for one, pixel in zip(asked, pixels, strict=True)]
        return texts, [SimpleNamespace(source=range(10))] * len(asked)


def stand_in():
    """A backbone with 100 positions, and a method."""
    text = SimpleNamespace(max_position_embeddings=100)
    model = SimpleNamespace(config=SimpleNamespace(text_config=text), device=torch.device("cpu"))
    backbone = SimpleNamespace(model=model, processor=SimpleNamespace(image_token="<image>"), identity="stand-in@0", settings={})
    return backbone, SimpleNamespace(name="none")


def attach(model, method):
    """In place of ``decoder.attach``."""
    return contextlib.nullcontext(SimpleNamespace(samples=None))
