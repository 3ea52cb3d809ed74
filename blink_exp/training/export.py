"""Exports TokenSR modules from a training's checkpoint, also of an unfinished run: python -m blink_exp.training.export RUN_FOLDER

Reads what Lightning and DeepSpeed (ZeRO 1 and 2) write; needs neither the backbone nor a GPU nor DeepSpeed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from blink_exp.cli import guard
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.settings.values import read_settings
from blink_exp.tokensr import checkpoint
from blink_exp.tokensr.modules import build_all
from blink_exp.training import resume

RECORDED = ("loss", "optim", "trainer", "data", "seed")  # settings recorded in a module's metadata

DECISIONS = ("saliency", "grid", "thresholds", "resolution")  # and those by which a training on answers expanded


def save_modules(
    modules: nn.ModuleDict,
    metadata: checkpoint.ModulesMetadata,
    training: PlainSettings,
    folder: Path,
    held_out: Mapping[int, dict[str, float]] | None = None,
) -> None:
    """Writes the module of each layer. ``training``: what is recorded of it, with a layer's row of ``held_out``."""
    metadata_of = {
        layer: checkpoint.ModuleMetadata(
            backbone=metadata["backbone"],
            layer=layer,
            width=metadata["width"],
            grid=(metadata["grid"][0], metadata["grid"][1]),
            architecture=metadata["architecture"],
            training=training if held_out is None else training | {"held_out": held_out[layer]},
        )
        for layer in metadata["layers"]
    }
    checkpoint.save_all(((modules[str(layer)], layer_metadata) for layer, layer_metadata in metadata_of.items()), folder)


def export(run: Path, output: Path | None = None) -> Path:
    """Writes the modules of a run's last checkpoint to ``output`` (None: its folder ``tokensr``) and returns the folder."""
    run, names = resume.checkpoint_location(run)
    newest = resume.latest(run, names)
    if newest is None:
        raise UserError(f"{run} holds no {resume.CHECKPOINT}; give the folder of a run that got to its first checkpoint")
    if newest.note:
        print(newest.note)
    metadata = newest.metadata
    with torch.device("meta"):
        modules = build_all(metadata["architecture"], metadata["width"], metadata["layers"])
    weights = {k.removeprefix("amplifiers."): v for k, v in newest.weights.items() if k.startswith("amplifiers.")}
    try:
        modules.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise UserError(
            f"{newest.path} holds other weights than its layers and architecture have; give the folder of another run"
        ) from None
    config = run / "config.yaml"
    settings = read_settings(config, "copy it again, or remove it and the modules say less of their training") if config.is_file() else {}
    training = {str(k): settings[k] for k in RECORDED if k in settings} | {"steps": newest.step}
    target = output or run / "tokensr"
    save_modules(modules, metadata, training, target)
    print(f"{len(metadata['layers'])} modules of step {newest.step} written to {target}")
    return target


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m blink_exp.training.export", description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training (outputs/train/...), with its last.ckpt")
    parser.add_argument("--output", type=Path, default=None, help="folder for the modules; default: tokensr in the run folder")
    args = parser.parse_args(argv)
    guard(lambda _: export(args.run, args.output), None)


if __name__ == "__main__":
    main()
