"""The scale models that ship with the package, and where their files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import CLIPConfig, CLIPModel, LlavaForConditionalGeneration

SHIPPED = Path(__file__).resolve().parent.parent / "scale_model" / "assets"
SCALE = {"scale": ("llava", "tokensr", "scale-llava-1.5"), "scale_next": ("llava_next", "tokensr_next", "scale-llava-next")}
SHARED = "vision_model."  # prefix of the weights that CLIP and LLaVA share


def shipped(path: str) -> tuple[Path, Path] | None:
    """(model, TokenSR modules): the folders of the scale model that ``path`` names, or None if it names none."""
    return (SHIPPED / SCALE[path][0], SHIPPED / SCALE[path][1]) if path in SCALE else None


def load_clip(folder: Path = SHIPPED) -> CLIPModel:
    """The scale CLIP, its vision tower taken from the scale LLaVA."""
    clip = CLIPModel(CLIPConfig.from_pretrained(folder / "clip"))
    state = safetensors.torch.load_file(folder / "clip" / "text_and_projections.safetensors")
    prefix = "model.vision_tower."
    for name, weight in _llava_state(folder).items():
        if name.startswith(prefix):
            state[SHARED + name.removeprefix(prefix).removeprefix(SHARED)] = weight
    missing, unexpected = clip.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    assert not unexpected and not [k for k in missing if "position_ids" not in k], (missing, unexpected)
    return clip.eval().requires_grad_(False)


def _llava_state(folder: Path) -> dict[str, Any]:
    return LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype="float32").state_dict()
