"""The frozen vision-language model: loading, prompts, pixels, and the prefix that depends on the image alone."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blink_exp.backbone import decode
from blink_exp.errors import UserError

SHIPPED = Path(__file__).resolve().parent.parent / "scale_model" / "assets"


@dataclass(eq=False)
class Backbone:
    """A LLaVA model with its processor.

    ``name``: what results and checkpoints call it; ``tokensr``: folder of the TokenSR modules that ship with it, or None.
    """

    name: str
    model: Any
    processor: Any
    tokensr: Path | None = None

    @property
    def llm(self) -> Any:
        return self.model.model.language_model

    @property
    def depth(self) -> int:
        return self.model.config.text_config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.model.config.text_config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size,) * 2

    @functools.cached_property
    def identity(self) -> str:
        """Name and a digest of some weights, equal for float32 and bfloat16 copies of a model and different for a retrained one."""
        digest = hashlib.sha256()
        for weight in (self.llm.layers[0].self_attn.q_proj.weight, self.model.model.multi_modal_projector.linear_2.weight):
            digest.update(weight.detach()[:16].cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        return f"{self.name}@{digest.hexdigest()[:12]}"

    def transform(self, image: Image.Image) -> torch.Tensor:
        """(3, size, size) pixels by the backbone's own image processor."""
        return self.processor.image_processor(images=image, return_tensors="pt").pixel_values[0]

    def prompt(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def inputs(self, images: list[Image.Image], questions: list[str]) -> dict[str, torch.Tensor]:
        """A left-padded batch of one image and one question each."""
        texts = [self.prompt(q) for q in questions]
        batch = self.processor(images=images, text=texts, return_tensors="pt", padding=True)
        return {k: v.to(self.model.device) for k, v in batch.items()}

    @torch.no_grad()
    def visual_states(self, pixels: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
        """{layer: (images, H * W, width)} visual tokens at each layer's input, from (images, 3, size, size) pixels.

        What stands before the image is the prompt's opening; what stands behind it cannot change them.
        """
        features = torch.stack(list(self.model.get_image_features(pixel_values=pixels).pooler_output))
        opening = self.processor.tokenizer(self.prompt("").split(self.processor.image_token)[0], return_tensors="pt").input_ids
        embeds = self.model.get_input_embeddings()(opening.to(features.device)).expand(len(features), -1, -1)
        return decode.visual_states(self.llm, torch.cat([embeds, features], dim=1), features.shape[1], layers)


@functools.lru_cache(maxsize=1)
def load(
    path: str = "scale", name: str | None = None, dtype: str = "float32", device: str = "cpu", attn_implementation: str = "sdpa"
) -> Backbone:
    """The model in folder ``path`` (or hub id), frozen; ``scale`` is the one that ships with this package.

    Kept for the next call with the same arguments, so the jobs of a sweep share one copy.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    shipped = path == "scale"
    folder = SHIPPED / "llava" if shipped else Path(path)
    if not folder.is_dir() and not shipped and path.count("/") != 1:
        raise UserError(f"model.path={path} is neither a folder nor a hub id like llava-hf/llava-1.5-7b-hf; give one of them")
    if not shipped and folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise UserError(f"model.path={path} holds no *.safetensors; only this format is loaded, as it cannot run code")
    source = str(folder) if folder.is_dir() else path
    processor = AutoProcessor.from_pretrained(source, use_fast=False) if not shipped else AutoProcessor.from_pretrained(source)
    processor.tokenizer.padding_side = "left"  # the last prompt token of every row must stand last
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        source, dtype=getattr(torch, dtype), attn_implementation=attn_implementation, use_safetensors=True
    )
    return Backbone(name or ("scale-llava-1.5" if shipped else path), model, processor, SHIPPED / "tokensr" if shipped else None)
