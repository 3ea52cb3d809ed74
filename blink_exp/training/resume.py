"""Finds and checks the checkpoint to resume from: a file, or under DeepSpeed a folder with a part for each process."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.finite import first_nonfinite
from blink_exp.settings.check import format_value
from blink_exp.settings.roots import TrainSettings
from blink_exp.settings.values import by_full_name, read_settings
from blink_exp.tokensr.checkpoint import ModulesMetadata

CHECKPOINT, OLD = "last.ckpt", "last.ckpt.old"
NAMES = (CHECKPOINT, OLD)  # newest first
TAG = "checkpoint"  # Lightning's name of the folder in a DeepSpeed checkpoint
WEIGHTS = f"{TAG}/mp_rank_00_model_states.pt"  # in DeepSpeed's folder: all weights, and Lightning's state
DEEPSPEED_CLASSES = (  # that its checkpoints hold objects of, beside tensors and plain values
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
)
# Settings that may differ from the resumed training: hardware and paths, not the recipe.
FREE = {
    "": ("resume", "output", "logger", "image_loading", "measure"),  # data has its own image_loading
    "trainer": ("accelerator", "devices", "num_nodes", "callbacks", "log_every_n_steps"),
    "data": ("workers", "batch_size", "path", "json", "images", "cache_path"),  # the checkpoint has hashes of the image names
    "model": ("device", "device_map"),
}


@dataclass(frozen=True)
class Start:
    """Start of a training. ``path``: checkpoint to resume from, None for a new training; ``step``: optimizer steps done; ``note``: message
    where the checkpoint is not the newest."""

    path: Path | None = None
    step: int = 0
    note: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What a complete checkpoint holds of the modules. ``weights``: of the Lightning module; ``note``: as of ``Start``."""

    path: Path
    step: int
    metadata: ModulesMetadata
    weights: dict[str, torch.Tensor]
    note: str = ""


def resume_from(settings: TrainSettings, out: Path) -> Start:
    """The checkpoint to resume from and its steps: of ``resume`` (a run folder or a checkpoint in it), or in the run folder ``out`` (a job
    restarted by its cluster).

    Raises UserError if it is missing, damaged with no older one, or of a training with other settings.
    """
    named = settings.resume
    folder, names = checkpoint_location(Path(named)) if named else (out, NAMES)
    newest = latest(folder, names)
    if newest is None:
        if named:
            raise UserError(f"resume={named} holds no {CHECKPOINT}; give the folder of a run that got to its first checkpoint")
        return Start()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} has a {CHECKPOINT} but no config.yaml, which says how it was trained; copy the whole folder")
    before = read_settings(folder / "config.yaml", f"it says how {CHECKPOINT} was trained, so copy it again or start a new run")
    changed = differences(asdict(settings), before)
    if changed:
        raise UserError(f"resume={folder} was trained with {', '.join(changed)}; repeat its settings or start a new run")
    return Start(newest.path, newest.step, newest.note)


def checkpoint_location(path: Path) -> tuple[Path, tuple[str, ...]]:
    """(run folder, names of candidate checkpoints, newest first) of a run folder or a checkpoint in it."""
    if path.name == CHECKPOINT:
        return path.parent, NAMES
    if path.name == OLD:
        return path.parent, (OLD,)
    if path.is_file():
        raise UserError(f"resume={path} is neither a run folder nor a {CHECKPOINT}; give one of them")
    return path, NAMES


def find(folder: Path) -> Path | None:
    """The newest checkpoint of a run, complete or not."""
    return next((folder / name for name in NAMES if (folder / name).exists()), None)


def latest(folder: Path, names: Iterable[str] = NAMES) -> Checkpoint | None:
    """The newest complete checkpoint of a run; None where there is no checkpoint.

    Raises UserError where all are damaged.
    """
    damaged: list[str] = []
    for path in (folder / name for name in names if (folder / name).exists()):
        try:
            checkpoint = read(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        note = f"{damaged[0]}; going on from the one before, {path.name} of step {checkpoint.step}" if damaged else ""
        return replace(checkpoint, note=note)
    if damaged:
        raise UserError(f"{damaged[0]}, and no older one is whole; go on from another run, or start anew in another hydra.run.dir")
    return None


def differences(now: PlainSettings, before: PlainSettings) -> list[str]:
    """Settings that differ but must not, each with the value it had before, as on the command line."""
    groups = set(now)  # one that is gone since an older version is not asked for
    now, before = (by_full_name(_one_kind(settings)) for settings in (now, before))
    changed = [name for name in now if name not in before or before[name] != now[name]]
    changed += [name for name in before if name not in now and name.partition(".")[0] in groups]
    return [f"{name}={format_value(before[name])}" if name in before else f"no {name}" for name in changed if not _free(name)]


def _free(name: str) -> bool:
    group, _, rest = name.partition(".")
    return group in FREE[""] or rest.partition(".")[0] in FREE.get(group, ())


def _one_kind(settings: PlainSettings) -> PlainSettings:
    """Settings with ``auto`` as ``ddp``, which writes the same checkpoints."""
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict) or trainer.get("strategy") != "auto":
        return settings
    return settings | {"trainer": trainer | {"strategy": "ddp"}}


def parts_of(path: Path) -> list[Path]:
    """The optimizer state files of a DeepSpeed checkpoint, one for each process that wrote it."""
    return sorted((path / TAG).glob("*zero_pp_rank_*_optim_states.pt"))


def read(path: Path) -> Checkpoint:
    """A checkpoint of either kind, its weights memory-mapped.

    Raises UserError where it is damaged, would run code, is not one of train.py's, or holds nan or inf.
    """
    try:
        files = [path] if path.is_file() else sorted((path / TAG).glob("*.pt"))
        for file in files:  # detects truncation, wrong checksums, and pickles that hold more than tensors and plain values
            with zipfile.ZipFile(file) as entries:
                if (torn := entries.testzip()) is not None:
                    raise EOFError(torn)
            code = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - set(DEEPSPEED_CLASSES)
            if code:
                raise UserError(f"{file} would run code when it is loaded ({min(code)}), which no checkpoint of train.py does")
        state = torch.load(path / WEIGHTS if path.is_dir() else path, map_location="cpu", weights_only=True, mmap=True)
        if path.is_dir():
            parts = parts_of(path)
            if len(parts) < state["dp_world_size"]:
                raise EOFError(f"{len(parts)} of {state['dp_world_size']} parts")
            state = state | {"state_dict": state["module"]}
    except UserError:
        raise
    except Exception as error:  # torch does not document its exceptions
        raise UserError(f"{path} is corrupt or cut off ({type(error).__name__})") from None
    if not (
        isinstance(state, dict)
        and isinstance(state.get("state_dict"), dict)
        and isinstance(state.get("global_step"), int)
        and isinstance(state.get("blink_exp"), dict)
        and {"backbone", "layers", "width", "grid", "architecture", "parts"} <= state["blink_exp"].keys()
    ):
        raise UserError(f"{path} holds something else than a checkpoint of train.py")
    bad = first_nonfinite((k, v) for k, v in state["state_dict"].items() if isinstance(v, torch.Tensor))
    if bad is not None:
        raise UserError(f"{path} holds nan or inf in {bad}")
    return Checkpoint(path, state["global_step"], state["blink_exp"], state["state_dict"])
