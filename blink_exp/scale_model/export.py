"""The shipped files: LLaVA in Hugging Face layout, and what CLIP has beyond the vision tower that both share."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from transformers import CLIPModel

from blink_exp.backbone.load import SHIPPED
from blink_exp.scale_model import build_models

SHARED = "vision_model."


def export(llava, clip, tokenizer, folder: Path = SHIPPED) -> None:
    """Writes both models in float16 (half the size; they are loaded as float32)."""
    _write(llava, build_models.build_processor(tokenizer), folder / "llava")
    clip.config.save_pretrained(folder / "clip")
    rest = {k: v.cpu().half().contiguous() for k, v in clip.state_dict().items() if not k.startswith(SHARED)}
    safetensors.torch.save_file(rest, folder / "clip" / "text_and_projections.safetensors", metadata={"format": "pt"})


def export_next(model, tokenizer, folder: Path = SHIPPED) -> None:
    """Writes the LLaVA-NeXT in float16."""
    _write(model, build_models.build_next_processor(tokenizer), folder / "llava_next")


def _write(model, processor, folder: Path) -> None:
    """The model is left on the CPU, rounded as it was written."""
    model.eval().to("cpu", torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model.to(torch.float32)


def load_clip(folder: Path = SHIPPED) -> CLIPModel:
    """The scale CLIP, its vision tower taken from the scale LLaVA."""
    from transformers import CLIPConfig

    clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
    state = safetensors.torch.load_file(folder / "clip" / "text_and_projections.safetensors")
    prefix = "model.vision_tower."
    for name, weight in _llava_state(folder).items():
        if name.startswith(prefix):
            state[SHARED + name.removeprefix(prefix).removeprefix(SHARED)] = weight
    missing, unexpected = clip.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and not [k for k in missing if "position_ids" not in k], (missing, unexpected)
    return clip.eval().requires_grad_(False)


def _llava_state(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype=torch.float32).state_dict()
