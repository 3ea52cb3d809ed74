"""The frozen vision-language model: loading, prompts, pixels, and the prefix that depends on the image alone."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

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
    cache_bytes: int = 2**28  # features of images seen before; the points of a sweep ask about the same images
    _features: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict, repr=False)

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
    def features(self, images: dict[str, Image.Image]) -> dict[str, torch.Tensor]:
        """{id: (H * W, width)} projected visual tokens of images by id, each encoded once as long as the cache holds it."""
        new = {k: v for k, v in images.items() if k not in self._features}
        if new:
            pixels = torch.stack([self.transform(image) for image in new.values()]).to(self.model.device, self.model.dtype)
            found = self.model.get_image_features(pixel_values=pixels).pooler_output
            self._features.update(zip(new, found, strict=True))
        for k in images:
            self._features.move_to_end(k)
        out = {k: self._features[k] for k in images}
        size = next(iter(out.values())).nbytes
        while len(self._features) * size > self.cache_bytes:
            self._features.popitem(last=False)
        return out

    @torch.no_grad()
    def generate(self, features: list[torch.Tensor], questions: list[str], max_new_tokens: int) -> list[str]:
        """Greedy answers of Hugging Face's generate() to one question an image, from the images' ``features``."""
        token = self.processor.image_token
        texts = [self.prompt(q).replace(token, token * len(f)) for q, f in zip(questions, features, strict=True)]
        batch = self.processor.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False).to(self.model.device)
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)}  # type: ignore[arg-type]
        tokens = self.model.generate(**batch, mm_encoder_outputs=encoded, max_new_tokens=max_new_tokens, do_sample=False)
        said = tokens[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(said, skip_special_tokens=True)]

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
