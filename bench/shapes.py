"""LLaVA-NeXT models of a given shape with random weights, and prompts for them. What a method costs does not depend on what weights say.

Needs torch and transformers only, no processor and no download: images are random pixels, questions are random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.core.encoding import Encoding
from blink_exp.core.views import EXTRA, NEWLINE, TokenSelection, ViewGeometry, pack

BEFORE, BEHIND = 35, 26  # text tokens around an image: 61, as HERO's Table VIII counts them


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder and of its CLIP tower."""

    width: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int = 32064
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    image_size: int = 336
    patch_size: int = 14

    @property
    def side(self) -> int:
        return self.image_size // self.patch_size

    def config(self) -> LlavaNextConfig:
        size = self.image_size
        vision = CLIPVisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=size,
            patch_size=self.patch_size,
        )
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            eos_token_id=None,  # random weights must not end an answer that is timed
        )
        grids = [[a * size, b * size] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
        return LlavaNextConfig(vision_config=vision, text_config=text, image_token_index=self.vocabulary - 1, image_grid_pinpoints=grids)


LLAVA_NEXT_7B = Shape(4096, 32, 32, 11008)
LLAVA_NEXT_13B = Shape(5120, 40, 40, 13824)
# Where arithmetic dominates and two cores still manage: heads and the MLP's share are those of the 7B decoder, the tower is CLIP-L itself.
MEDIUM = Shape(1024, 12, 8, 2752, vocabulary=1024)
TINY = Shape(32, 8, 2, 64, vocabulary=64, vision_width=16, vision_heads=2, image_size=24, patch_size=4)


def random_model(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A real LLaVA-NeXT with random weights, made on the device itself: a 7B never goes through main memory."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaNextForConditionalGeneration._from_config(shape.config(), dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


@contextmanager
def attention_by(model: Any, implementation: str) -> Iterator[None]:
    """Runs ``model`` with another attention inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def square(shape: Shape) -> ViewGeometry:
    """The geometry of an image that fills 2 x 2 tiles: 2,928 visual tokens, newlines included, at CLIP-L's 336 pixels."""
    return ViewGeometry.of(shape.config(), (2 * shape.image_size, 2 * shape.image_size))


def pixels(model: Any, views: ViewGeometry, seed: int = 0) -> torch.Tensor:
    """(views, 3, size, size) random pixels."""
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(views.count, 3, size, size, generator=generator).to(model.device, model.dtype)


def packed(model: Any, encoding: Encoding, kept: TokenSelection, newline_policy: str = "valid_rows") -> tuple[torch.Tensor, torch.Tensor]:
    """((tokens, width) projected features of what a pruner kept, their sources), as they enter the LLM."""
    source = pack(encoding.views, kept, newline_policy).to(encoding.hidden.device)
    patches = source != NEWLINE
    rows = encoding.hidden.flatten(0, 1)[source.clamp(min=0)]
    if kept.extra is not None:
        rows[source == EXTRA] = torch.cat(kept.extra).to(rows)
    features = model.model.multi_modal_projector(rows)
    return torch.where(patches[:, None], features, model.model.image_newline.to(features)), source


@dataclass(frozen=True)
class Prompt:
    """Token ids, (1, tokens), and the (visual, width) features that stand at their placeholders."""

    ids: torch.Tensor
    features: torch.Tensor

    @classmethod
    def around(cls, model: Any, features: torch.Tensor, before: int = BEFORE, behind: int = BEHIND, seed: int = 0) -> Prompt:
        generator = torch.Generator().manual_seed(seed)
        image = model.config.image_token_id
        words = torch.randint(3, image, (before + behind,), generator=generator)
        ids = torch.cat([words[:before], torch.full((len(features),), image), words[before:]])[None]
        return cls(ids.to(features.device), features)

    @classmethod
    def random(cls, model: Any, visual: int, seed: int = 0) -> Prompt:
        """Of ``visual`` random features."""
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(visual, model.config.text_config.hidden_size, generator=generator)
        return cls.around(model, features.to(model.device, model.dtype), seed=seed)

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    def cut(self, tokens: int) -> Prompt:
        """The same with ``tokens`` in all, the last visual ones gone."""
        gone = self.tokens - tokens
        keep = len(self.features) - gone
        start = int((self.ids[0] == self.ids[0].max()).nonzero()[0])  # the placeholder is the largest id
        ids = torch.cat([self.ids[:, : start + keep], self.ids[:, start + keep + gone :]], dim=1)
        return replace(self, ids=ids, features=self.features[:keep])

    @property
    def arguments(self) -> dict[str, Any]:
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=[self.features])}  # type: ignore[arg-type]
        return {"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "mm_encoder_outputs": encoded}


@torch.no_grad()
def prefill(model: Any, prompt: Prompt, **more: Any) -> Any:
    """The next token's logits and the cache, as generate() asks for them."""
    return model(**prompt.arguments, use_cache=True, logits_to_keep=1, **more)
