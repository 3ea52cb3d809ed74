"""TokenSR modules on disk: ``layer_12.safetensors`` with the weights and ``layer_12.json`` with what they belong to.

Only safetensors are read: a checkpoint can come from anybody, and must not be able to run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from blink_exp.errors import UserError
from blink_exp.tokensr.modules import build


@dataclass(frozen=True)
class Belonging:
    """What a module was trained for. ``backbone``: id and weights digest; ``grid``: (H, W) visual tokens; ``width``: hidden size."""

    backbone: str
    layer: int
    width: int
    grid: tuple[int, int]
    architecture: str
    training: dict[str, Any] = field(default_factory=dict)


def save(module: nn.Module, belonging: Belonging, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes both files, each appearing whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"layer_{belonging.layer:02d}.safetensors"
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
    for target, data in (
        (path.with_suffix(".json"), json.dumps(asdict(belonging), indent=2).encode() + b"\n"),
        (path, safetensors.torch.save(weights)),
    ):
        part = target.with_name(target.name + ".part")
        part.write_bytes(data)
        os.replace(part, target)
    return path


def load(folder: Path, layer: int, backbone: str, width: int) -> nn.Module:
    """The module of one layer, in float32 and evaluation mode.

    Raises UserError where it is missing, damaged, or was trained for another backbone, layer or width.
    """
    path = Path(folder) / f"layer_{layer:02d}.safetensors"
    if not path.is_file():
        known = sorted(int(p.stem.split("_")[1]) for p in Path(folder).glob("layer_*.safetensors"))
        have = f"it has layers {known[0]}-{known[-1]}" if known else "it has none"
        raise UserError(
            f"no TokenSR module for layer {layer} in {folder} ({have}); train it: python train.py layer={layer},"
            " or do without: method=blink_interp"
        )
    try:
        belonging = Belonging(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} lacks its {path.stem}.json, which says what it belongs to; copy both files") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path.with_suffix('.json')} is damaged ({type(error).__name__}); copy or train it again") from None
    fits: tuple[tuple[str, Any, Any], ...] = (
        ("backbone", belonging.backbone, backbone),
        ("width", belonging.width, width),
        ("layer", belonging.layer, layer),
    )
    for name, have, want in fits:
        if have != want:
            raise UserError(f"{path} was trained for {name} {have}, not {want}; train one for it: python train.py layer={layer}")
    module = build(belonging.architecture, width)
    try:
        weights = safetensors.torch.load_file(path)
        module.load_state_dict({k: v.float() for k, v in weights.items()})
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is corrupt or cut off ({type(error).__name__}); copy or train it again") from None
    return module.eval().requires_grad_(False)


def load_all(folder: Path, layers: Iterable[int], backbone: str, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({str(layer): load(folder, layer, backbone, width) for layer in layers})
