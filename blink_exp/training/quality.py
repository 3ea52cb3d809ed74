"""How close expanded tokens come to those of the real close-up, measured beside plain interpolation on held-out pairs.

A training loss need not see what the LLM reads: on the scale model four of 64 dimensions hold nine tenths of the teacher's softmax, so that
the paper's KL falls while most of a token gets worse. Three measures therefore stand beside each other, whatever the loss is:

- loss: that of the training;
- cosine: cosine similarity of student and teacher behind the input norm of their layer, which is what the layer reads; mean over tokens;
- relative error: the sum of (student - teacher)^2 over all held-out tokens and dimensions, over the sum of teacher^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from blink_exp.errors import UserError

INTERPOLATION, TOKENSR = "interpolation", "tokensr"
WAYS = (INTERPOLATION, TOKENSR)
Norm = Callable[[torch.Tensor], torch.Tensor]


def layer_norm(llm: Any, layer: int) -> Norm:
    """The input norm of a layer, for states on any device."""
    module = llm.layers[layer].input_layernorm

    def norm(x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = module(x.to(module.weight.device))
        return normed.to(x.device)

    return norm


class HeldOut:
    """Sums of the measures of one layer over held-out pairs."""

    def __init__(self) -> None:
        self.sums = [0.0] * (2 + 3 * len(WAYS))  # pairs, teacher^2, and (loss, cosine, squared error) of each of WAYS

    def add(self, way: str, loss: float, cosine: float, squared_error: float, pairs: int) -> None:
        first = 2 + 3 * WAYS.index(way)
        for offset, value in enumerate((loss * pairs, cosine * pairs, squared_error)):
            self.sums[first + offset] += value

    def add_teacher(self, teacher: torch.Tensor) -> None:
        self.sums[0] += len(teacher)
        self.sums[1] += teacher.double().square().sum().item()

    def row(self, sums: list[float]) -> dict[str, float]:
        """The measures, from the ``sums`` of all devices. ``gain``: by how much TokenSR's loss is below interpolation's."""
        pairs, teacher = sums[:2]
        of = {way: sums[2 + 3 * k : 5 + 3 * k] for k, way in enumerate(WAYS)}
        out = {way: of[way][0] / pairs for way in WAYS}
        plain, refined = out[INTERPOLATION], out[TOKENSR]
        out["gain"] = 1 - refined / plain if plain else -math.inf if refined else 0.0  # plain: 0 where all pictures are of one colour
        for way in WAYS:
            out[f"cosine_{way}"] = of[way][1] / pairs
            out[f"relative_error_{way}"] = of[way][2] / teacher if teacher else math.inf if of[way][2] else 0.0
        return out | {"samples": int(pairs)}


def measures(student: torch.Tensor, teacher: torch.Tensor, norm: Norm) -> tuple[float, float]:
    """(mean over tokens of the cosine similarity behind ``norm``, sum of squared errors) of (batch, tokens, width) ``student`` and
    ``teacher``."""
    cosine = F.cosine_similarity(norm(student).float(), norm(teacher).float(), dim=-1).mean()
    return cosine.item(), (student.double() - teacher.double()).square().sum().item()


def check_finite(layer: int, row: dict[str, float], diverged: Callable[[str], str]) -> None:
    """Raises UserError where the held-out loss of a layer is nan or inf."""
    if not math.isfinite(row[INTERPOLATION]):
        raise UserError(f"layer {layer} of the frozen model has held-out states that are nan or inf; use another model.dtype")
    if not math.isfinite(row[TOKENSR]):
        raise UserError(diverged(f"the held-out loss of layer {layer} is {row[TOKENSR]}"))


def warning(result: dict[int, dict[str, float]]) -> str | None:
    """A line about the layers whose module is worse than interpolation in cosine, by the three digits that are shown; None where there
    is none."""
    plain, refined = f"cosine_{INTERPOLATION}", f"cosine_{TOKENSR}"
    worse = {n: row for n, row in sorted(result.items()) if round(row[refined], 3) < round(row[plain], 3)}
    if not worse:
        return None
    worst, row = min(worse.items(), key=lambda pair: pair[1][refined] - pair[1][plain])
    layers = "layer" + "s" * (len(worse) > 1) + " " + ", ".join(map(str, worse))
    cosines = f"{row[refined]:.3f} against {row[plain]:.3f}" + (f" at layer {worst}" if len(worse) > 1 else "")
    return f"WORSE THAN INTERPOLATION: the tokens of {layers} are further from a real close-up's (cosine behind the norm {cosines})"
