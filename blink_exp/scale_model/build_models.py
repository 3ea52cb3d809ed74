"""The scale model's parts in the real classes of transformers: tokenizer, processors, CLIP and LLaVA, untrained.

Depths are LLaVA-1.5's (24 ViT layers, 32 Llama layers), so a layer number of the paper means what it says. Only widths are small.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.modeling_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

IMAGE_SIZE, PATCH_SIZE, WIDTH = 96, 8, 64  # a 12 x 12 grid, so that 2 x 2, 3 x 3 and 4 x 4 patches all divide it
VISION_LAYERS, LLM_LAYERS = 24, 32
PINPOINTS = [[IMAGE_SIZE * r, IMAGE_SIZE * c] for r, c in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]  # LLaVA-NeXT's, at 96 px a view
POSITION_AMPLITUDE = 0.35
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(corpus: list[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE (nothing is out of vocabulary) whose merges make one token of every word in ``corpus``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    # Not </s> third: transformers takes an end token with id 2 for an old CLIP and pools the text at the largest token id instead.
    special = ["<pad>", "<s>", "<image>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    return LlavaProcessor(CLIPImageProcessorPil(**_pixels()), tokenizer, **_tokens())


def build_next_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaNextProcessor:
    return LlavaNextProcessor(LlavaNextImageProcessorPil(**_pixels(), image_grid_pinpoints=PINPOINTS), tokenizer, **_tokens())


def _pixels() -> dict[str, Any]:
    return {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}


def _tokens() -> dict[str, Any]:
    """How both processors count an image's tokens: those of the patches, without CLS."""
    return {
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT_TEMPLATE,
    }


def clip_config(tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> CLIPConfig:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)


def build_clip(tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> CLIPModel:
    """CLIP with 2-D sines and cosines (as MAE's) added to its position embeddings, about as large as what tells one patch from another.

    CLIP starts positions at a twentieth of that. Here no linear probe then finds a patch's row or column in the features, even after
    training with captions that name places, and an LLM behind them cannot tell left from right.
    """
    clip = CLIPModel(clip_config(tokenizer, image_size))
    weight = clip.vision_model.embeddings.position_embedding.weight
    side = image_size // PATCH_SIZE
    angles = torch.arange(side)[:, None] * torch.pi / side * torch.arange(1, WIDTH // 4 + 1) / 2
    waves = POSITION_AMPLITUDE * 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, WIDTH / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    weight.data[1:] += torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return clip


def resize_positions(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> CLIPModel:
    """The same CLIP for another image size: its patch positions are interpolated (bicubic), everything else is copied."""
    new = build_clip(tokenizer, image_size)
    state = clip.state_dict()
    key = "vision_model.embeddings.position_embedding.weight"
    old = state[key]
    side, target = round((len(old) - 1) ** 0.5), image_size // PATCH_SIZE
    grid = old[1:].T.reshape(1, -1, side, side)
    grid = torch.nn.functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    state[key] = torch.cat([old[:1], grid.flatten(2)[0].T])
    state.pop("vision_model.embeddings.position_ids", None)
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing), (missing, unexpected)
    return new


def build_llava(tokenizer: PreTrainedTokenizerFast, layers: int = LLM_LAYERS) -> LlavaForConditionalGeneration:
    """LLaVA-1.5 with a narrow Llama. Matrices start at std 0.1 (about 1 / sqrt(width); 0.02 would leave a network this narrow at
    its answer prior for hundreds of steps) and residual outputs are scaled down by sqrt(2 layers), as GPT-2 does. Queries and keys
    start twice as large, as attention over 144 visual tokens is else so flat that it takes long to learn to look anywhere, and
    embeddings start as large as the projected visual tokens."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=clip_config(tokenizer).vision_config,
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    scale = (2 * layers) ** -0.5
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.mul_(scale)
        layer.mlp.down_proj.weight.data.mul_(scale)
        layer.self_attn.q_proj.weight.data.mul_(2)
        layer.self_attn.k_proj.weight.data.mul_(2)
    model.model.language_model.embed_tokens.weight.data.mul_(8)
    return model


def build_next(llava: LlavaForConditionalGeneration) -> LlavaNextForConditionalGeneration:
    """A LLaVA-NeXT that starts from a LLaVA-1.5's weights; only its newline embedding is new."""
    old = llava.config
    config = LlavaNextConfig(
        vision_config=copy.deepcopy(old.vision_config),
        text_config=copy.deepcopy(old.text_config),
        image_token_index=old.image_token_index,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=old.vision_feature_layer,
        vision_feature_select_strategy=old.vision_feature_select_strategy,
    )
    model = LlavaNextForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(llava.state_dict(), strict=False)
    assert not unexpected and missing == ["model.image_newline"], (missing, unexpected)
    model.model.image_newline.data.zero_()
    return model


def standardize_projector(llava: LlavaForConditionalGeneration, features: torch.Tensor) -> None:
    """Folds mean 0 and variance 1 of (tokens, width) CLIP features into the projector's first layer.

    Four fifths of a CLIP feature is the same for every patch; left in, all visual tokens look alike to the LLM's first queries.
    """
    mean, std = features.mean(0), features.std(0)
    first, second = llava.model.multi_modal_projector.linear_1, llava.model.multi_modal_projector.linear_2
    first.weight.data.div_(std)
    first.bias.data.copy_(-first.weight.data @ mean)
    second.weight.data.mul_(2)


def _with_layers(llava: Any, layers: int) -> Any:
    """A copy with ``layers`` new LLM layers; everything else is ``llava``'s."""
    config = copy.deepcopy(llava.config)
    config.text_config.num_hidden_layers = layers
    new = type(llava)(config)
    state = {k: v for k, v in llava.state_dict().items() if ".language_model.layers." not in k}
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert not unexpected and all(".language_model.layers." in name for name in missing), (missing, unexpected)
    return new


def shallow(llava: Any, factor: int) -> Any:
    """A copy with every ``factor``-th LLM layer: what ``deepen`` was given, apart from training since."""
    kept = llava.model.language_model.layers[::factor]
    new = _with_layers(llava, len(kept))
    for layer, old in zip(new.model.language_model.layers, kept, strict=True):
        layer.load_state_dict(old.state_dict())
    return new


def take_over(llava: Any, other: Any, layers: int) -> None:
    """Gives ``llava`` all weights of ``other``, of the same shape, but those of the LLM's layers from number ``layers`` on. What it gets is
    frozen, except norm and head."""
    new = tuple(f".language_model.layers.{i}." for i in range(layers, len(llava.model.language_model.layers)))
    llava.load_state_dict({k: v for k, v in other.state_dict().items() if not any(part in k for part in new)}, strict=False)
    llava.requires_grad_(False)
    for part in (*llava.model.language_model.layers[layers:], llava.model.language_model.norm, llava.lm_head):
        part.requires_grad_(True)


def deepen(llava: Any, factor: int) -> Any:
    """Block expansion as in LLaMA Pro: behind every trained layer stand ``factor`` - 1 copies of it whose output projections are
    zero, so the deeper model computes the same function and every trained layer keeps its relative depth."""
    old = llava.model.language_model.layers
    new = _with_layers(llava, len(old) * factor)
    for i, layer in enumerate(new.model.language_model.layers):
        layer.load_state_dict(old[i // factor].state_dict())
        if i % factor:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
    return new
