"""What the trainings of the scale models share: devices, pixels, learning rate, checkpoints, and how a part of a curriculum runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from blink_exp.errors import UserError

CPU = torch.device("cpu")
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def device_of(name: str) -> torch.device:
    """The device that ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` names. Raises UserError if this machine does not have it."""
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *(["mps"] if torch.backends.mps.is_available() else [])]
    device = "cuda:0" if name == "cuda" else name
    if device not in there:
        raise UserError(f"device={name} is not on this machine; use one of: {', '.join(there)}")
    return torch.device(device)


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


class Movable:
    """A dataclass whose tensors go to a device together."""

    def to(self, device: torch.device) -> Self:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor | Movable)}
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


B = TypeVar("B", bound=Movable)


class Checkpoint:
    """Saves a training's state atomically and restores it at construction, so that a killed build goes on where it was, on any device."""

    def __init__(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *extra: torch.Tensor):
        self.path, self.model, self.optimizer, self.extra = path, model, optimizer, extra
        self.step = 0
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
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


class PhaseRun:
    """One part of a curriculum, from its last checkpoint on: its batches, its optimizer's steps and the lines that it prints.

    Args:
        label: what its lines begin with.
        path: of its checkpoint.
        model: trained in place, on the device where it is, but for parameters that need no gradient.
        floor: share of the learning rate that is left at the end.
        extra: parameters beside the model's; the limit on the gradient's norm leaves them alone.
    """

    def __init__(
        self,
        label: str,
        path: Path,
        model: Any,
        steps: int,
        lr: float,
        floor: float = 0.05,
        decay: float = 0.02,
        extra: tuple[torch.nn.Parameter, ...] = (),
    ):
        self.label, self.model, self.steps, self.lr, self.floor = label, model, steps, lr, floor
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*self.weights, *extra], lr=lr, betas=(0.9, 0.98), weight_decay=decay, fused=True)
        self.checkpoint = Checkpoint(path, model, self.optimizer, *extra)
        self.started = time.time()
        self.running: float | None = None

    def batches(self, make: Callable[[np.random.Generator], B], key: tuple[int, ...], workers: int = 0) -> Iterator[tuple[int, B]]:
        """(step, batch on the model's device) of every step that is left.

        A batch depends on ``key`` and its step alone, so ``workers`` processes can make them ahead and change nothing. They make them on
        the CPU, and need ``make`` to be picklable.
        """
        left = range(self.checkpoint.step, self.steps)
        made = functools.partial(_drawn, make, key)
        # A generator of its own: the loader's seed would else be drawn from the one that initialises weights.
        loader: DataLoader[B] = DataLoader(left, batch_size=None, collate_fn=made, num_workers=workers, generator=torch.Generator())  # type: ignore[arg-type]
        for step, batch in zip(left, loader, strict=True):
            yield step, batch.to(self.model.device)

    def update(self, step: int, loss: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_lr(step, self.steps, self.lr, self.floor)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()

    def learn(self, step: int, loss: torch.Tensor, look: torch.Tensor | None) -> None:
        """A step on the sum of both losses. Prints a line now and then: the running mean of ``loss``, and ``look`` as it is."""
        total = loss if look is None else loss + look
        self.update(step, total)
        self.running = loss.item() if self.running is None else 0.95 * self.running + 0.05 * loss.item()
        if step % 25 == 0 or step + 1 == self.steps:
            where = "" if look is None else f" look {total.item() - loss.item():.2f}"
            print(f"{self.label} step {step} loss {self.running:.3f}{where} {time.time() - self.started:.0f} s", flush=True)

    def keep(self, step: int, every: int) -> bool:
        """Saves a checkpoint behind every ``every`` steps and the last, and returns whether it did."""
        due = (step % every == 0 and step > 0) or step + 1 == self.steps
        if due:
            self.checkpoint.save(step + 1)
        return due


def _drawn(make: Callable[[np.random.Generator], B], key: tuple[int, ...], step: int) -> B:
    return make(np.random.default_rng((*key, step)))
