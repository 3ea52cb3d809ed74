"""Where a training goes on from: its last checkpoint, a file, or under DeepSpeed a folder with a part for each process."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from blink_exp.errors import UserError
from blink_exp.files import read_settings

CHECKPOINT = "last.ckpt"
WEIGHTS = "checkpoint/mp_rank_00_model_states.pt"  # in DeepSpeed's folder: all weights, and what Lightning knows
# What may differ from the training that is gone on with: where it runs and how fast, but no number of its recipe.
FREE = {
    "": ("resume", "output", "logger"),
    "trainer": ("accelerator", "devices", "num_nodes", "checkpoint_every", "log_every"),
    "data": ("workers", "batch_size", "path", "json", "images", "cache_path"),  # the checkpoint knows the images by their names
    "model": ("device", "device_map"),
}


def resume_from(settings: dict[str, Any], out: Path) -> tuple[str | None, int]:
    """The checkpoint to go on from and its steps: that of ``resume``, or one in the run folder itself (a job that its cluster started
    again).

    Raises UserError if it is missing, damaged, or of a training with other settings.
    """
    folder = Path(settings["resume"]) if settings["resume"] else out
    path = find(folder)
    if path is None:
        if settings["resume"]:
            raise UserError(f"resume={folder} holds no {CHECKPOINT}; give the folder of a run that got to its first checkpoint")
        return None, 0
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} has a {CHECKPOINT} but no config.yaml, which says how it was trained; copy the whole folder")
    before = read_settings(folder / "config.yaml", f"it says how {CHECKPOINT} was trained, so copy it again or start a new run")
    changed = differences(settings, before)
    if changed:
        raise UserError(f"resume={folder} was trained with another {', '.join(changed)}; repeat its settings or start a new run")
    return str(path), read(path)["global_step"]


def find(folder: Path) -> Path | None:
    """The last whole checkpoint of a run. A job killed while one DeepSpeed folder took another's place leaves the older one."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.old"):
        if (folder / name).exists():
            return folder / name
    return None


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Groups of settings whose values changed and may not."""
    changed = []
    now, before = (_one_kind(settings) for settings in (now, before))
    for group in now:
        if group in FREE[""]:
            continue
        free = FREE.get(group, ())
        a, b = ({k: v for k, v in x.items() if k not in free} if isinstance(x, dict) else x for x in (now[group], before.get(group)))
        if a != b:
            changed.append(group)
    return changed


def _one_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with one name for the strategies that write the same checkpoints."""
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict) or trainer.get("strategy") != "auto":
        return settings
    return settings | {"trainer": trainer | {"strategy": "ddp"}}


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint of either kind holds, tensors left on disk until they are used; the weights under "state_dict".

    Raises UserError where it is damaged.
    """
    try:
        if not path.is_dir():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = torch.load(path / WEIGHTS, map_location="cpu", weights_only=True, mmap=True)
        parts = sorted((path / "checkpoint").glob("*zero_pp_rank_*_optim_states.pt"))
        if len(parts) < found["dp_world_size"]:
            raise EOFError(f"{len(parts)} of {found['dp_world_size']} parts")
        for part in parts:
            zipfile.ZipFile(part).close()  # a file that was cut off has no table of contents
        return found | {"state_dict": found["module"]}
    except Exception as error:  # torch raises whatever its unpickler met
        raise UserError(f"{path} is corrupt or cut off ({type(error).__name__}); remove it and start again") from None
