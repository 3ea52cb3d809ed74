"""Rebuilds everything that ships in ``assets`` from a seed: `python -m blink_exp.scale_model.build`.

CLIP, then LLaVA, then LLaVA-NeXT from LLaVA's stage of 8 layers, then the TokenSR modules of both, then the measurements of the model card.
Each stage resumes from its last checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from blink_exp.backbone.load import SHIPPED

LAYERS = "11-20"  # those of Table 3 (11-17 to 14-20)
NEXT_LAYERS = "12-18"  # Blink's own


def build(work: Path, assets: Path, seed: int, most: int | None = None) -> None:
    """``most``: steps of every stage, and a matching part of the measurements, to try the recipe; None: all of it."""
    from blink_exp.scale_model import build_models, card, export, measure_next
    from blink_exp.scale_model.questions import vocabulary_corpus
    from blink_exp.scale_model.train_clip import STAGES, train_clip
    from blink_exp.scale_model.train_llava import PHASES, train_llava
    from blink_exp.scale_model.train_next import PHASES as NEXT_PHASES
    from blink_exp.scale_model.train_next import train_next

    started = time.time()
    stages = [(min(steps, most or steps), *rest) for steps, *rest in STAGES]
    phases = [replace(phase, steps=min(phase.steps, most or phase.steps)) for phase in PHASES]
    next_phases = [replace(phase, steps=min(phase.steps, most or phase.steps)) for phase in NEXT_PHASES]
    tokenizer = build_models.build_tokenizer(vocabulary_corpus())
    clip = train_clip(tokenizer, work, seed, stages)
    early = train_llava(clip, tokenizer, work, seed, phases[:-1])
    export.export(train_llava(clip, tokenizer, work, seed, phases), clip, tokenizer, assets)
    export.export_next(train_next(early, tokenizer, work, seed, next_phases), tokenizer, assets)
    pairs = 1280 if most is None else 8 * most
    train_tokensr("scale-llava-1.5", assets / "llava", assets / "tokensr", LAYERS, seed, pairs)
    train_tokensr("scale-llava-next", assets / "llava_next", assets / "tokensr_next", NEXT_LAYERS, seed, pairs)
    measured = card.measure(assets, most) | {
        "next": measure_next.measure_next(assets, measure_next.SCENES if most is None else 8),
        "seed": seed,
        "seconds_of_this_run": round(time.time() - started),
    }
    (assets / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    card.write(assets)


def train_tokensr(name: str, model: Path, output: Path, layers: str, seed: int, pairs: int) -> None:
    """Runs train.py as a user would."""
    root = Path(__file__).resolve().parent.parent.parent
    words = [f"model.path={model}", f"model.name={name}", f"layers.indices={layers}", f"output={output}", f"seed={seed}"]
    words += ["trainer.epochs=2", f"data.train_size={pairs}"]
    subprocess.run([sys.executable, "train.py", *words], cwd=root, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/scale_model"), help="checkpoints")
    parser.add_argument("--assets", type=Path, default=SHIPPED, help="where the finished files go")
    parser.add_argument("--steps", type=int, help="of every stage: tries the recipe in some minutes; give --work and --assets as well")
    options = parser.parse_args()
    if options.steps is not None and (options.steps < 1 or options.assets.resolve() == SHIPPED):
        parser.error(f"--steps {options.steps} makes models that know nothing; use 1 or more, and --assets other than {SHIPPED}")
    build(options.work, options.assets.resolve(), options.seed, options.steps)


if __name__ == "__main__":
    main()
