"""Which values the groups ``trainer`` and ``loss`` and the paths of a training may have: checked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from blink_exp.errors import UserError
from blink_exp.tokensr import limits

ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "auto")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}  # what Lightning also takes


def check_recipe(recipe: dict[str, Any]) -> None:
    """Raises UserError for a value of the group ``trainer`` that cannot be, and for an optimizer or a schedule that no training here has:
    such a word must not be recorded and ignored."""
    for name, only in (("optimizer", "adamw"), ("scheduler", "cosine")):
        if recipe.get(name, only) != only:
            raise UserError(f"trainer.{name}={recipe[name]} is not there; every training uses {only}, so leave trainer.{name}={only}")
    for name in ("epochs", "global_batch", "num_nodes", "checkpoint_every", "log_every", "sequence_length"):
        if name in recipe:
            limits.whole(f"trainer.{name}", recipe[name], 1)
    for name, least, most, above in (("lr", 0, float("inf"), True), ("warmup", 0, 1, False), ("weight_decay", 0, float("inf"), False)):
        if name in recipe:
            limits.number(f"trainer.{name}", recipe[name], least, most, above)
    for name in ("checkpoint_activations", "channels_last"):
        if name in recipe:
            limits.flag(f"trainer.{name}", recipe[name])
    if "accelerator" in recipe:
        limits.word("trainer.accelerator", recipe["accelerator"], ACCELERATORS)
    if "precision" in recipe and str(recipe["precision"]) not in SHORT:
        limits.word("trainer.precision", recipe["precision"], PRECISIONS)
    if recipe.get("accelerator") == "cpu" and SHORT.get(str(recipe.get("precision")), recipe.get("precision")) == "16-mixed":
        raise UserError(f"trainer.precision={recipe['precision']} needs a GPU; on a CPU use trainer.precision=bf16-mixed or 32-true")
    if "devices" in recipe:
        check_devices_word(recipe["devices"])
    if recipe.get("channels_last") and str(recipe["strategy"]).startswith("deepspeed"):
        raise UserError("trainer.channels_last=true has no effect under ZeRO, which lays the weights out itself; use false, or trainer=ddp")


def check_devices_word(devices: Any) -> None:
    """A number, ``auto``, or a list of GPUs."""
    if devices == "auto":
        return
    if isinstance(devices, list):
        if not devices or len(set(map(str, devices))) < len(devices):
            raise UserError(f"trainer.devices={devices} names no GPU or one twice; use a number, auto, or a list such as [0,1]")
        for k in devices:
            limits.whole("trainer.devices", k, 0)
        return
    if isinstance(devices, bool) or not isinstance(devices, int):
        raise UserError(f"trainer.devices={limits.shown(devices)} is no number of devices; use 1 or more, auto, or a list such as [0,1]")
    if devices < 1:
        raise UserError(f"trainer.devices={devices} is out of range; use 1 or more, or auto for all that are there")


def check_seed(seed: Any) -> None:
    limits.whole("seed", seed, 0, 2**32 - 1)


def check_paths(settings: dict[str, Any], out: Path) -> None:
    """Raises UserError where the modules could not be written once they are trained."""
    for name in ("output", "resume"):
        limits.path(name, settings.get(name))
    if not settings.get("output"):
        return
    output = Path(settings["output"])
    existing = next((p for p in (output, *output.absolute().parents) if p.exists()), output)
    if not existing.is_dir():
        raise UserError(f"output={output} cannot be a folder, as {existing} is a file; give another one")
    if not os.access(existing, os.W_OK):
        raise UserError(f"output={output} cannot be written (no permission in {existing}); give another folder")


def backbone_type(precision: Any, dtype: Any) -> str | None:
    """The type that the frozen backbone has to be loaded in instead of ``dtype`` to run under a trainer's ``precision``; None: as it is.

    Autocast to bfloat16 refuses float16 operands; bfloat16 holds every magnitude of float16. The other way round it does not, so that is
    refused.
    """
    name = SHORT.get(str(precision), str(precision))
    if name.startswith("bf16") and dtype == "float16":
        return "bfloat16"
    if name.startswith("16") and dtype == "bfloat16":
        raise UserError(
            f"trainer.precision={precision} with model.dtype=bfloat16 mixes two half types; use trainer.precision=bf16-mixed"
            " or model.dtype=float16"
        )
    return None
