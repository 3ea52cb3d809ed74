"""Rebuilds everything that ships in ``assets`` from a seed: `python -m blink_exp.scale_model.build`.

CLIP, then LLaVA, then LLaVA-NeXT from LLaVA's stage of 8 layers, then the TokenSR modules of both, then the measurements of the model card.
Each stage resumes from its last checkpoint in ``--work``, on another ``--device`` too. A device changes the weights by its rounding only:
first weights and batches are made on the CPU, everything is float32, and the card is measured on the CPU.

``--recipe no_look_loss``, ``one_scale`` and ``one_scale_reader`` build another LLaVA alone, for studies, on the shipped tower: an LLM that
nothing teaches where to look, one that has seen scenes of one size only, or one whose layers from EXPANDED_AT on have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from blink_exp.backbone.clip_text import load_clip
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.errors import UserError
from blink_exp.scale_model import build_models, card, export, measure_next
from blink_exp.scale_model.recipe import CPU, device_of
from blink_exp.scale_model.train_clip import STAGES, Stage, train_clip
from blink_exp.scale_model.train_llava import PHASES, READERS, RECIPES, train_llava
from blink_exp.scale_model.train_next import PHASES as NEXT_PHASES
from blink_exp.scale_model.train_next import train_next
from blink_exp.scenes.questions import vocabulary_corpus
from blink_exp.settings.folders import CLONE

LAYERS = "11-20"  # those of Table 3 (11-17 to 14-20)
NEXT_LAYERS = "12-18"  # Blink's own


def build(work: Path, assets: Path, seed: int, most: int | None = None, device: torch.device = CPU, workers: int = 0) -> None:
    """``most``: steps of every stage, and a matching part of the measurements, to try the recipe; None: all of it. ``workers``: processes
    that draw scenes ahead of the training; they change nothing in it."""
    started = time.time()
    torch.backends.cudnn.allow_tf32 = False
    stages: list[Stage] = [(min(stage[0], most or stage[0]), *stage[1:]) for stage in STAGES]
    phases = [replace(phase, steps=min(phase.steps, most or phase.steps)) for phase in PHASES]
    next_phases = [replace(phase, steps=min(phase.steps, most or phase.steps)) for phase in NEXT_PHASES]
    tokenizer = build_models.build_tokenizer(vocabulary_corpus())
    clip = train_clip(tokenizer, work, seed, stages, device, workers)
    early = train_llava(clip, tokenizer, work, seed, phases[:-1], workers)
    export.export(train_llava(clip, tokenizer, work, seed, phases, workers), clip, tokenizer, assets)
    export.export_next(train_next(early, tokenizer, work, seed, next_phases, workers), tokenizer, assets)
    pairs = 1280 if most is None else 8 * most
    train_tokensr("scale-llava-1.5", assets / "llava", assets / "tokensr", LAYERS, seed, pairs, device)
    train_tokensr("scale-llava-next", assets / "llava_next", assets / "tokensr_next", NEXT_LAYERS, seed, pairs, device)
    measured: card.MeasuredModel = {
        **card.measure(assets, most),
        "next": measure_next.measure_next(assets, measure_next.SCENES if most is None else 8),
        "seed": seed,
        "seconds_of_this_run": round(time.time() - started),
    }
    (assets / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    card.write(assets)


def build_study(
    recipe: str, work: Path, assets: Path, seed: int, most: int | None = None, device: torch.device = CPU, workers: int = 0
) -> None:
    """LLaVA-1.5 alone, by one of ``RECIPES``, on the shipped tower, for ``model.path``. Arguments: as ``build``."""
    torch.backends.cudnn.allow_tf32 = False
    phases = [replace(phase, steps=min(phase.steps, most or phase.steps)) for phase in RECIPES[recipe]]
    tokenizer = build_models.build_tokenizer(vocabulary_corpus())
    other = None
    if recipe in READERS:
        shipped = LlavaForConditionalGeneration.from_pretrained(SHIPPED / "llava", dtype=torch.float32)
        other = build_models.shallow(shipped, shipped.config.text_config.num_hidden_layers // phases[0].layers)
    llava = train_llava(load_clip().to(device), tokenizer, work / recipe, seed, phases, workers, other)
    export.write(llava, build_models.build_processor(tokenizer), assets / "llava")


def train_tokensr(name: str, model: Path, output: Path, layers: str, seed: int, pairs: int, device: torch.device) -> None:
    """Runs train.py as a user would, and writes the modules in float16."""
    words = [f"model.path={model}", f"model.name={name}", f"layers.indices={layers}", f"output={output}", f"seed={seed}"]
    words += ["trainer.max_epochs=2", f"data.train_size={pairs}", *placed(device)]
    subprocess.run([sys.executable, "train.py", *words], cwd=CLONE, check=True, env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"})
    export.halve(output)


def placed(device: torch.device) -> list[str]:
    """train.py's words for a device. The group stays ``trainer=cpu``: those of GPUs train in bfloat16 at another learning rate."""
    if device.type == "cpu":
        return []
    return [f"model.device={device}", "trainer.accelerator=gpu", f"trainer.devices=[{device.index or 0}]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/scale_model"), help="checkpoints")
    parser.add_argument("--assets", type=Path, default=SHIPPED, help="where the finished files go")
    parser.add_argument("--steps", type=int, help="of every stage: tries the recipe in some minutes; give --work and --assets as well")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps: where the models are trained")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes; with a GPU about one a core")
    parser.add_argument("--recipe", choices=list(RECIPES), default="all_scales", help="other than all_scales: LLaVA alone, for studies")
    options = parser.parse_args()
    if CLONE is None:
        parser.error("an installed package has no train.py, which this runs; rebuild from a clone of the repository")
    if options.steps is not None and (options.steps < 1 or options.assets.resolve() == SHIPPED):
        parser.error(f"--steps {options.steps} makes models that know nothing; use 1 or more, and --assets other than {SHIPPED}")
    if options.recipe != "all_scales" and options.assets.resolve() == SHIPPED:
        parser.error(f"--recipe {options.recipe} is for studies; use --assets other than {SHIPPED}")
    if options.workers < 0:
        parser.error(f"--workers {options.workers} is no number of processes; use 0 or more")
    try:
        device = device_of(options.device)
    except UserError as error:
        parser.error(str(error))
    common = (options.work, options.assets.resolve(), options.seed, options.steps, device, options.workers)
    if options.recipe == "all_scales":
        build(*common)
    else:
        build_study(options.recipe, *common)


if __name__ == "__main__":
    main()
