"""The shipped files: LLaVA in Hugging Face layout, and what CLIP has beyond the vision tower that both share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from blink_exp.backbone.clip_text import SHARED
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.scale_model import build_models
from blink_exp.tokensr import checkpoint


def export(llava: Any, clip: Any, tokenizer: Any, folder: Path = SHIPPED) -> None:
    """Writes both models in float16 (half the size; they are loaded as float32)."""
    write(llava, build_models.build_processor(tokenizer), folder / "llava")
    clip.config.save_pretrained(folder / "clip")
    rest = {k: v.cpu().half().contiguous() for k, v in clip.state_dict().items() if not k.startswith(SHARED)}
    safetensors.torch.save_file(rest, folder / "clip" / "text_and_projections.safetensors", metadata={"format": "pt"})


def export_next(model: Any, tokenizer: Any, folder: Path = SHIPPED) -> None:
    """Writes the LLaVA-NeXT in float16."""
    write(model, build_models.build_next_processor(tokenizer), folder / "llava_next")


def halve(folder: Path) -> None:
    """Rewrites TokenSR modules in float16; they are loaded as float32 too. Raises UserError for a weight that float16 does not hold."""
    described = [checkpoint.metadata(folder, int(path.stem.removeprefix("layer_"))) for path in sorted(folder.glob("layer_*.safetensors"))]
    modules = [(checkpoint.load(folder, of.layer, of.backbone, of.width), of) for of in described]
    checkpoint.save_all(modules, folder, torch.float16)


def write(model: Any, processor: Any, folder: Path) -> None:
    """The model is left on the CPU, rounded as it was written."""
    model.eval().to("cpu", torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model.to(torch.float32)
