"""The usual way to read attention: eager attention everywhere with ``output_attentions=True``, whole matrices kept for one of their rows.

What the methods' published code does on Hugging Face models, written down as plainly as it can be, to be timed beside this project's way.
It decides what the project's way decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from bench.shapes import Prompt, attention_by
from blink_exp.backbone.cache_name import CACHE
from blink_exp.core.encoding import Encoding
from blink_exp.core.views import ViewGeometry

Choose = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


def _causal(tokens: int, like: torch.Tensor) -> torch.Tensor:
    mask = torch.full((tokens, tokens), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return mask.triu(1)[None, None]


def embeddings(model: Any, prompt: Prompt) -> torch.Tensor:
    """(1, tokens, width) of a prompt, its visual features in place."""
    embeds = model.get_input_embeddings()(prompt.ids)
    visual = (prompt.ids == model.config.image_token_id)[..., None]
    return embeds.masked_scatter(visual, prompt.features.to(embeds))


@torch.no_grad()
def with_attentions(model: Any, prompt: Prompt, choose: Choose) -> torch.Tensor:
    """Prefill in which every layer gives its attention, (1, heads, tokens, tokens), and all are kept until the end.

    ``choose``: (layer, attention, (tokens,) bool of the visual ones still there) to the (tokens,) bool of those that go on, or None.
    Returns the next token's logits.
    """
    llm = model.model.language_model
    states, attentions = embeddings(model, prompt), []
    visual = prompt.ids[0] == model.config.image_token_id
    positions = torch.arange(prompt.tokens, device=states.device)[None]
    cache = DynamicCache(config=llm.config)
    with attention_by(model, "eager"):
        rope, mask = llm.rotary_emb(states, position_ids=positions), _causal(prompt.tokens, states)
        for i, layer in enumerate(llm.layers):
            seen: list[torch.Tensor] = []
            hook = layer.self_attn.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[1]))
            states = layer(states, attention_mask=mask, position_embeddings=rope, use_cache=True, **{CACHE: cache})
            hook.remove()
            attentions += seen
            stay = choose(i, seen[0], visual)
            if stay is not None:
                states, positions, visual = states[:, stay], positions[:, stay], visual[stay]
                rope, mask = llm.rotary_emb(states, position_ids=positions), _causal(states.shape[1], states)
    return model.lm_head(llm.norm(states)[:, -1:])


def last_row_keeps(layers: dict[int, int]) -> Choose:
    """Keeps the ``layers[layer]`` visual tokens that the last token attends to most, behind these layers (FastV, SparseVLM's counts)."""

    def choose(layer: int, attention: torch.Tensor, visual: torch.Tensor) -> torch.Tensor | None:
        if layer not in layers:
            return None
        scores = attention[0, :, -1].mean(0).masked_fill(~visual, float("-inf"))
        stay = ~visual
        stay[scores.topk(layers[layer]).indices] = True
        return stay

    return choose


def nothing(layer: int, attention: torch.Tensor, visual: torch.Tensor) -> None:
    """Reads, and leaves everything as it is."""


@torch.no_grad()
def tower_with_attentions(
    model: Any, pixels: torch.Tensor, views: ViewGeometry, layers: frozenset[int]
) -> tuple[Encoding, dict[int, torch.Tensor]]:
    """The tower in eager attention, all its matrices kept: (features, {layer: (views, heads, N) CLS-to-patch attention})."""
    with attention_by(model, "eager"):
        out = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    rows = {layer: out.attentions[layer - 1][:, :, 0, 1:].float() for layer in layers}
    return Encoding(views, out.hidden_states[model.config.vision_feature_layer][:, 1:]), rows
