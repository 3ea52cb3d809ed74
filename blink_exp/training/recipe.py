"""Checks combinations of training settings before anything is loaded; single settings: ``blink_exp.settings``."""

from __future__ import annotations

import os
from pathlib import Path

from blink_exp.errors import UserError
from blink_exp.settings.roots import TrainSettings
from blink_exp.training.paired_crops import PairedCrops

SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}  # Lightning's short names


def check_recipe(settings: TrainSettings) -> None:
    """Raises UserError for incompatible settings."""
    trainer = settings.trainer
    if trainer.accelerator == "cpu" and SHORT.get(trainer.precision, trainer.precision) == "16-mixed":  # Lightning would take bfloat16
        raise UserError(f"trainer.precision={trainer.precision} needs a GPU; on a CPU use trainer.precision=bf16-mixed or 32-true")
    if settings.tokensr.architecture in ("interp", "closeup"):
        raise UserError(
            f"tokensr={settings.tokensr.architecture} has no parameters to train;"
            " choose conv, residual_conv, mlp, depthwise or pixel_shuffle"
        )
    if settings.measure and settings.resume:
        raise UserError(f"measure=true trains nothing, so that resume={settings.resume} has nothing to go on with; give one of them")
    if settings.measure and settings.output:
        raise UserError(f"measure=true trains nothing, so that nothing would be written to output={settings.output}; give one of them")
    if settings.channels_last and trainer.strategy.startswith("deepspeed"):
        raise UserError("channels_last=true has no effect under ZeRO, which lays the weights out itself; use false, or trainer=ddp")


def check_data(settings: TrainSettings, data: PairedCrops) -> None:
    """Raises UserError for settings that a training on answers cannot follow."""
    if not settings.loss.weights.answer:  # type: ignore[attr-defined]
        return
    if data.cache_features:
        raise UserError("data.cache_features=true keeps no features of text, which loss.weights.answer runs; use false")
    if settings.checkpoint_activations:
        raise UserError("checkpoint_activations=true has no effect on loss.weights.answer; use false")
    if settings.resolution.policy == "copy":
        raise UserError("resolution.policy=copy inserts tokens without TokenSR, which loss.weights.answer trains; use another policy")
    data.check_answers()


def check_output(folder: str | None) -> None:
    """Raises UserError where ``folder`` is not writable."""
    if folder is None:
        return
    output = Path(folder)
    existing = next((p for p in (output, *output.absolute().parents) if p.exists()), output)
    if not existing.is_dir():
        raise UserError(f"output={output} cannot be a folder, as {existing} is a file; give another one")
    if not os.access(existing, os.W_OK):
        raise UserError(f"output={output} cannot be written (no permission in {existing}); give another folder")


def backbone_type(precision: str, dtype: str | None) -> str | None:
    """The dtype to load the frozen backbone in, instead of ``dtype``, under a trainer's ``precision``; None: no change.

    Autocast to bfloat16 refuses float16 operands; bfloat16 has the range of float16, but not vice versa, so the opposite is refused.
    """
    name = SHORT.get(precision, precision)
    if name.startswith("bf16") and dtype == "float16":
        return "bfloat16"
    if name.startswith("16") and dtype == "bfloat16":
        raise UserError(
            f"trainer.precision={precision} with model.dtype=bfloat16 mixes two half types; use trainer.precision=bf16-mixed"
            " or model.dtype=float16"
        )
    return None
