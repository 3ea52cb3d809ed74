"""Estimates a backbone's memory from its config, so that a lack of memory is reported before the weights are read.

``python -m blink_exp.backbone.memory`` prints the table of docs/backbones.md.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from blink_exp import markdown
from blink_exp.backbone.published import NAMES, published_config
from blink_exp.errors import UserError

BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
# bitsandbytes: a float32 scale for each 64 weights (nf4), for each row of a matrix (int8; too few to count).
QUANTIZED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
KEPT = ("vision_tower", "multi_modal_projector", "lm_head")  # not quantised: pruners and TokenSR read them
MOST_SHARED = 2**30  # default limit in main memory; more is not faster
TEXT = 512  # tokens of a long question with its prompt


@dataclass(frozen=True)
class Estimate:
    """``parameters``: number of parameters; ``weights``: their bytes; ``cache``: bytes of one prompt's keys and values."""

    parameters: int
    weights: int
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache


def count(config: Any) -> tuple[int, int]:
    """(quantisable parameters, others) of a LLaVA ``config``. The model is built on the meta device."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    packed = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not any(k in name for k in KEPT)}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    matrices = sum(n for name, n in sizes.items() if name in packed)
    return matrices, sum(sizes.values()) - matrices


def estimate(config: Any, dtype: str, quantization: str | None = None, counted: tuple[int, int] | None = None) -> Estimate:
    """Memory of a LLaVA ``config``. ``counted``: result of ``count``, if known."""
    matrices, others = counted or count(config)
    weights = matrices * (QUANTIZED[quantization] if quantization else BYTES[dtype]) + others * BYTES[dtype]
    text = config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = text.num_hidden_layers * 2 * text.num_key_value_heads * width * BYTES[dtype]
    return Estimate(matrices + others, int(weights), int(per_token * (visual_tokens(config) + TEXT)))


def visual_tokens(config: Any) -> int:
    """The largest number of visual tokens of an image, newlines included."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    grids = getattr(config, "image_grid_pinpoints", None) or []
    tiles = [(h // config.vision_config.image_size * side, w // config.vision_config.image_size * side) for h, w in grids]
    return side**2 + max((rows * columns + rows for rows, columns in tiles), default=0)


def free(device: str) -> int | None:
    """Free bytes on ``device``: of the GPU, else of main memory within the container's limit; None if unknown."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    limits: list[int] = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text(encoding="utf-8")) - int((group / "memory.current").read_text(encoding="utf-8")))
    return min(limits)


def shared_bytes(shared_gb: float | None, device: str) -> int:
    """Memory budget in bytes for what questions and points share: ``shared_gb`` GB, or a tenth of what is free, at most ``MOST_SHARED`` in
    main memory (see ``blink_exp.decoder``)."""
    if shared_gb is not None:
        if shared_gb <= 0:
            raise UserError(f"shared_gb={shared_gb} holds nothing; use a size in GB above 0, or null for a tenth of what is free")
        return int(shared_gb * 1e9)
    tenth = max(2**28, (free(device) or 2**31) // 10)
    return tenth if device.startswith("cuda") else min(tenth, MOST_SHARED)


def check(config: Any, dtype: str, device: str, quantization: str | None = None, device_map: str | None = None) -> None:
    """Raises UserError where the weights and one prompt's cache do not fit."""
    counted = count(config)
    need = estimate(config, dtype, quantization, counted)
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device_map else [device]
    if device_map and not quantization:
        devices.append("cpu")  # for weights that do not fit on the GPUs
    room = [free(d) for d in devices]
    if None in room:
        return
    have = sum(r for r in room if r is not None)
    if need.total > have:
        cause = f"model.quantization={quantization}" if quantization else f"model.dtype={dtype}"
        raise UserError(
            f"{cause} needs {gb(need.weights)} for the weights and {gb(need.cache)} for a prompt, but {' + '.join(devices)} has {gb(have)}"
            f" free; use {_cures(config, counted, dtype, device, have, quantization, device_map)}"
        )
    through = free("cpu") if device.startswith("cuda") and not device_map and not quantization else None
    if through is not None and need.weights > through:
        raise UserError(
            f"model.dtype={dtype} takes {gb(need.weights)} through main memory on the way to {device}, but {gb(through)} is free;"
            " use model.device_map=auto, which reads the weights straight to the GPU"
        )


def check_batch(config: Any, dtype: str, device: str, batch_size: int) -> None:
    """Raises UserError where the keys and values of ``batch_size`` prompts do not fit beside the loaded weights."""
    have, one = free(device), estimate(config, dtype, counted=(0, 0)).cache
    if have is not None and batch_size * one > have:
        raise UserError(
            f"batch_size={batch_size} needs {gb(batch_size * one)} for keys and values, but {device} has {gb(have)} free;"
            f" use batch_size={max(1, have // one)}"
        )


def _cures(
    config: Any, counted: tuple[int, int], dtype: str, device: str, have: int, quantization: str | None, device_map: str | None
) -> str:
    """Settings that would fit, the least loss of precision first."""
    options: list[tuple[str, str, str | None]] = (
        [("model.dtype=bfloat16", "bfloat16", None)] if BYTES[dtype] > 2 and not quantization else []
    )
    if device.startswith("cuda"):
        half = dtype if BYTES[dtype] == 2 else "bfloat16"
        lower = {None: ("8bit", "4bit"), "8bit": ("4bit",)}.get(quantization, ())
        options += [(f"model.quantization={q}", half, q) for q in lower]
    sized = [(override, estimate(config, other, q, counted).total) for override, other, q in options]
    cures = [f"{override} ({gb(total)})" for override, total in sized if total <= have]
    if device.startswith("cuda") and not device_map:
        cures.append("model.device_map=auto")
    return " or ".join(cures) or "a smaller model or a device with more memory"


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def table() -> str:
    """Markdown: the published backbones by the memory that they need."""
    kinds: list[tuple[str, str | None]] = [("float32", None), ("bfloat16", None), ("bfloat16", "8bit"), ("bfloat16", "4bit")]
    head = ("`model=`", "parameters", "float32", "bfloat16, float16", "8bit", "4bit", "cache of a prompt")
    rows = []
    for name in NAMES:
        config = published_config(name)
        counted = count(config)
        estimates = [estimate(config, dtype, q, counted) for dtype, q in kinds]
        rows.append((f"`{name}`", f"{estimates[0].parameters / 1e9:.2f} B", *(gb(e.weights) for e in estimates), gb(estimates[1].cache)))
    return markdown.table(head, rows)


if __name__ == "__main__":
    print(table())
