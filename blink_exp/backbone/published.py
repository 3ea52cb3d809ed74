"""Configs of the published backbones, from their model cards: the values that determine shapes, no weights.

Used without a download for memory estimates, the shape check at full size, and tests on small models in the published layout.
"""

from __future__ import annotations

from typing import Any

NAMES = ("llava_1_5_7b", "llava_1_5_13b", "llava_next_7b", "llava_next_13b", "llava_next_mistral_7b")
VISION: dict[str, Any] = {  # CLIP ViT-L/14 at 336 pixels
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
VICUNA = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
VICUNA_7B = VICUNA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
VICUNA_13B = VICUNA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "sliding_window": None,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLMS = dict(zip(NAMES, (VICUNA_7B, VICUNA_13B, VICUNA_7B, VICUNA_13B, MISTRAL_7B), strict=True))
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # (height, width) of LLaVA-NeXT's canvases


def published_json(name: str, **small: int) -> dict[str, Any]:
    """config.json of a published backbone. ``small``: LLM sizes to put in place of its own (hidden_size, intermediate_size,
    num_attention_heads, num_key_value_heads), and vision_width for CLIP's, which then has two heads."""
    width = small.pop("vision_width", VISION["hidden_size"])
    vision = (
        VISION
        if width == VISION["hidden_size"]
        else VISION | {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2}
    )
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": LLMS[name] | small,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    if "next" in name:
        config |= {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next", "image_grid_pinpoints": GRIDS}
    return config


def published_config(name: str, **small: int) -> Any:
    """The same as a transformers config."""
    from transformers import AutoConfig

    raw = published_json(name, **small)
    return AutoConfig.for_model(**raw)
