"""CLIP's text tower and the two projections into its joint space, which a LLaVA checkpoint leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlavaForConditionalGeneration

from blink_exp import hub
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.backbone.weights import check_finite
from blink_exp.errors import UserError, flat

SHARED = "vision_model."  # prefix of the weights that CLIP and LLaVA share
MOST_TEXTS = 4096  # cached embeddings, 3 KB each for CLIP-L


class ClipText:
    """Image and text embeddings in CLIP's joint space, for CLIPscore (HERO, Sec. IV-B-1).

    Args:
        clip: a ``CLIPModel`` whose vision tower is the one that LLaVA has.
        tokenizer: its tokenizer; longer texts are cut to the tower's length (77 tokens).
        ending: end token to append where the tokenizer does not add the one that the tower pools at.
    """

    def __init__(self, clip: Any, tokenizer: Any, ending: str = ""):
        self.clip, self.tokenizer, self.ending = clip, tokenizer, ending
        self._known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """(views, projection) float32 from (views, width) pooled CLS tokens; the tower is not run."""
        weight = self.clip.visual_projection.weight
        projected: torch.Tensor = self.clip.visual_projection(pooled.to(weight.device, weight.dtype))
        return projected.float()

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """(projection,) float32."""
        if text not in self._known:
            most = self.clip.config.text_config.max_position_embeddings
            ids = self.tokenizer(text + self.ending, return_tensors="pt").input_ids.to(self.clip.device)
            if ids.shape[1] > most:  # the tower pools at the last token, so it is kept
                ids = torch.cat([ids[:, : most - 1], ids[:, -1:]], dim=1)
            if len(self._known) >= MOST_TEXTS:
                del self._known[next(iter(self._known))]
            self._known[text] = self.clip.get_text_features(input_ids=ids).pooler_output[0].float().clone()
        return self._known[text]


def load_clip_text(path: str | None, backbone: Any) -> ClipText:
    """The text tower for ``backbone``: ``scale`` is the one that ships, else a CLIP folder or hub id. Raises UserError where it
    does not match the backbone's vision tower."""
    if path is None:
        raise UserError("model.clip=null, but this method reads CLIP's text tower; give its folder or hub id, or set hero_alpha=no_text")
    if path == "scale":
        return ClipText(load_clip().to(backbone.model.device), backbone.processor.tokenizer, backbone.processor.tokenizer.eos_token)
    if not Path(path).is_dir() and path.count("/") != 1:
        raise UserError(f"model.clip={path} is neither a folder nor a hub id like openai/clip-vit-large-patch14-336; give one of them")
    if not Path(path).is_dir():
        hub.check_connection()
    try:
        clip: Any = CLIPModel.from_pretrained(path, use_safetensors=True).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # libraries do not document their exceptions for damaged files
        raise UserError(
            f"model.clip={path} gives no CLIP in safetensors ({flat(error, 240)}); give a folder that holds one, or set hero_alpha=no_text"
        ) from error
    ours = backbone.model.model.vision_tower.state_dict()
    theirs = {k.removeprefix("vision_model."): v for k, v in clip.vision_model.state_dict().items()}
    name = "embeddings.patch_embedding.weight"
    our_weight = next(v for k, v in ours.items() if k.endswith(name))
    their_weight = next(v for k, v in theirs.items() if k.endswith(name))
    if our_weight.shape != their_weight.shape or not torch.allclose(
        our_weight.float().cpu(), their_weight.float(), atol=1e-2 * float(their_weight.abs().max())
    ):
        raise UserError(f"model.clip={path} has another vision tower than {backbone.name}; give the CLIP that it was made from")
    check_finite(clip, path, "model.clip")
    return ClipText(clip.to(backbone.model.device), tokenizer)


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
    return dict(LlavaForConditionalGeneration.from_pretrained(folder / "llava", dtype="float32").state_dict())
