"""What both training stages of the scale model share: pixels, learning rate, checkpoints."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def pixels(image: Image.Image, size: int) -> torch.Tensor:
    """(3, size, size) as the shipped CLIP image processor makes them (bicubic in uint8, CLIP's mean and std), without its overhead."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (x - CLIP_MEAN) / CLIP_STD


def cosine_lr(step: int, steps: int, peak: float, floor: float = 0.05) -> float:
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Checkpoint:
    """Saves a training's state atomically and restores it at construction, so that a killed build goes on where it was."""

    def __init__(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *extra: torch.Tensor):
        self.path, self.model, self.optimizer, self.extra = path, model, optimizer, extra
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            for tensor, saved in zip(extra, state["extra"], strict=True):
                tensor.data.copy_(saved)
            self.step = state["step"]

    def save(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": [t.data for t in self.extra],
            "step": step,
        }
        torch.save(state, part)
        os.replace(part, self.path)
