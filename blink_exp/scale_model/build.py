"""Rebuilds everything that ships in ``assets`` from a seed: `python -m blink_exp.scale_model.build`.

CLIP, then LLaVA, then the TokenSR modules of layers 11-20, then the measurements of the model card. Each stage resumes from its last
checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from blink_exp.backbone.load import SHIPPED

LAYERS = "11-20"  # those of Table 3 (11-17 to 14-20)


def build(work: Path, assets: Path, seed: int) -> None:
    from blink_exp.scale_model import build_models, card, export
    from blink_exp.scale_model.questions import vocabulary_corpus
    from blink_exp.scale_model.train_clip import train_clip
    from blink_exp.scale_model.train_llava import train_llava

    started = time.time()
    tokenizer = build_models.build_tokenizer(vocabulary_corpus())
    clip = train_clip(tokenizer, work, seed)
    llava = train_llava(clip, tokenizer, work, seed)
    export.export(llava, clip, tokenizer, assets)
    root = Path(__file__).resolve().parent.parent.parent
    words = [
        "train.py",
        f"model.path={assets / 'llava'}",
        f"layers.indices={LAYERS}",
        f"output={assets / 'tokensr'}",
        f"seed={seed}",
        "trainer.epochs=2",
        "data.train_size=1280",
    ]
    subprocess.run([sys.executable, *words], cwd=root, check=True)
    measured = card.measure(assets) | {"seed": seed, "seconds_of_this_run": round(time.time() - started)}
    (assets / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    card.write(assets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/scale_model"), help="checkpoints")
    parser.add_argument("--assets", type=Path, default=SHIPPED, help="where the finished files go")
    options = parser.parse_args()
    build(options.work, options.assets.resolve(), options.seed)


if __name__ == "__main__":
    main()
