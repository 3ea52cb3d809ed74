"""TokenSR modules on disk: ``layer_12.safetensors`` with the weights and ``layer_12.json`` with metadata.

Only safetensors are read, as they cannot run code.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import safetensors
import safetensors.torch
import torch
from torch import nn

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.files import read_text
from blink_exp.finite import first_nonfinite
from blink_exp.settings.doors import command_name
from blink_exp.tokensr.modules import ARCHITECTURES, build


class ModulesMetadata(TypedDict):
    """What the modules of a training have in common, as its checkpoints hold it."""

    backbone: str
    layers: list[int]
    width: int
    grid: list[int]  # (H, W) visual tokens
    architecture: str


@dataclass(frozen=True)
class ModuleMetadata:
    """Metadata stored beside a module. ``backbone``: id and weights digest; ``grid``: (H, W) visual tokens; ``width``: hidden size."""

    backbone: str
    layer: int
    width: int
    grid: tuple[int, int]
    architecture: str
    training: PlainSettings = field(default_factory=dict)


def save_all(modules: Iterable[tuple[nn.Module, ModuleMetadata]], folder: Path, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Writes modules and metadata. All files are written under temporary names first, so that a full disk or a killed process leaves the
    folder as it was.

    Raises UserError for weights that are nan or inf.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    paths = []
    try:
        for module, metadata in modules:
            path = folder / f"layer_{metadata.layer:02d}.safetensors"
            weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
            bad = first_nonfinite(weights.items())
            if bad is not None:
                raise UserError(f"the TokenSR module of layer {metadata.layer} holds nan or inf in {bad}; nothing is written to {folder}")
            for target, data in (
                (path.with_suffix(".json"), json.dumps(asdict(metadata), indent=2).encode() + b"\n"),
                (path, safetensors.torch.save(weights)),
            ):
                parts.append(target.with_name(target.name + ".part"))
                with open(parts[-1], "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            paths.append(path)
        rename_all({part: part.with_name(part.name.removesuffix(".part")) for part in parts})
    finally:  # also on SIGTERM
        for part in parts:
            part.unlink(missing_ok=True)
    return paths


def rename_all(targets: dict[Path, Path]) -> None:
    """Renames all files to their targets, or none: existing targets are restored on failure."""
    before: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for target in targets.values():
            old = target.with_name(target.name + ".old")
            old.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # nothing there; a disk without hard links
                os.link(target, old)
                before[target] = old
        for part, target in targets.items():
            os.replace(part, target)
            renamed.append(target)
    except BaseException:
        for target in renamed:
            if target in before:
                os.replace(before[target], target)
            else:
                target.unlink(missing_ok=True)
        raise
    finally:
        for old in before.values():
            old.unlink(missing_ok=True)


def architecture_of(folder: Path, layer: int) -> str | None:
    """Architecture of one layer's module; None where there is no module or no readable metadata (see ``load``)."""
    try:
        architecture = json.loads(read_text(folder / f"layer_{layer:02d}.json"))["architecture"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return architecture if isinstance(architecture, str) and architecture in ARCHITECTURES else None


def metadata(folder: Path, layer: int) -> ModuleMetadata:
    """What is recorded of the module of one layer. Raises UserError where that is missing or damaged."""
    path = Path(folder) / f"layer_{layer:02d}.safetensors"
    try:
        return ModuleMetadata(**json.loads(read_text(path.with_suffix(".json"))))
    except FileNotFoundError:
        raise UserError(f"{path} lacks its {path.stem}.json, which says what it belongs to; copy both files") from None
    except (ValueError, RecursionError, TypeError) as error:  # no JSON, no UTF-8, other keys
        raise UserError(f"{path.with_suffix('.json')} is damaged ({type(error).__name__}); copy or train it again") from None


def load(folder: Path, layer: int, backbone: str, width: int) -> nn.Module:
    """The module of one layer, in float32 and evaluation mode.

    Raises UserError where it is missing, damaged, nan or inf, or was trained for another backbone, layer or width.
    """
    path = Path(folder) / f"layer_{layer:02d}.safetensors"
    if not path.is_file():
        names = [p.stem.removeprefix("layer_") for p in Path(folder).glob("layer_*.safetensors")]
        layers = sorted(int(name) for name in names if name.isascii() and name.isdecimal())  # not layer_best.safetensors
        have = f"it has layers {layers[0]}-{layers[-1]}" if layers else "it has none"
        raise UserError(
            f"no TokenSR module for layer {layer} in {folder} ({have}); train it: {command_name('train')} layer={layer},"
            " or do without: method=blink_interp"
        )
    described = metadata(folder, layer)
    fits: tuple[tuple[str, Any, Any], ...] = (
        ("backbone", described.backbone, backbone),
        ("width", described.width, width),
        ("layer", described.layer, layer),
    )
    for name, have, want in fits:
        if have != want:
            raise UserError(f"{path} was trained for {name} {have}, not {want}; train one for it: {command_name('train')} layer={layer}")
    if not isinstance(described.architecture, str) or described.architecture not in ARCHITECTURES:
        raise UserError(f"{path.with_suffix('.json')} names the architecture {described.architecture}, which is not known; train it again")
    module = build(described.architecture, width)
    try:
        weights = safetensors.torch.load_file(path)
        bad = first_nonfinite(weights.items())
        if bad is not None:
            raise UserError(f"{path} holds nan or inf in {bad}; train it again: {command_name('train')} layer={layer}")
        whole = next((name for name, weight in weights.items() if not weight.is_floating_point()), None)
        if whole is not None:  # converted, it would run, and be another module
            raise UserError(f"{path} holds whole numbers in {whole}, where weights are fractions; copy or train it again")
        module.load_state_dict({k: v.float() for k, v in weights.items()})
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is corrupt or cut off ({type(error).__name__}); copy or train it again") from None
    return module.eval().requires_grad_(False)
