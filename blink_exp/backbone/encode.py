"""The frozen CLIP tower, run once for each image: patch features, and the attention inputs that pruners require.

Only the CLS row of attention is computed, from hooks on the q and k projections of the required layers, so the tower keeps its fused
attention kernel. CLIP layers are numbered 1 to 24 here, as the papers count them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from blink_exp.core.encoding import EncoderRequirements, Encoding, check_layers
from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError


def tower_layers(tower: Any) -> Any:
    """The layer list of a vision tower, for every supported class."""
    inner = getattr(tower, "vision_model", tower)
    return inner.encoder.layers


def post_layernorm(tower: Any) -> Any:
    """The norm behind the last layer of a CLIP vision tower, which its joint space is projected from."""
    return getattr(tower, "vision_model", tower).post_layernorm


def check_cls_token(tower: Any) -> None:
    """Raises UserError for an encoder without a CLS token (SigLIP)."""
    inner = getattr(tower, "vision_model", tower)
    if not hasattr(inner.embeddings, "class_embedding"):
        raise UserError(f"{type(tower).__name__} has no CLS token, which this method scores tokens by; use a CLIP encoder")


@contextlib.contextmanager
def recording(tower: Any, needs: EncoderRequirements) -> Iterator[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]]:
    """Inside the block, a pass of ``tower`` fills two dicts by needed layer: CLS queries (views, C) and keys (views, N + 1, C)."""
    layers = tower_layers(tower)
    if needs.attention | needs.keys:
        check_layers("layers", needs.attention | needs.keys, len(layers))  # layers[0 - 1] would be the last one
    queries: dict[int, torch.Tensor] = {}
    keys: dict[int, torch.Tensor] = {}

    def watch(number: int) -> Iterator[RemovableHandle]:
        attention = layers[number - 1].self_attn
        yield attention.q_proj.register_forward_hook(lambda module, args, out: queries.update({number: out[:, 0].float()}))
        yield attention.k_proj.register_forward_hook(lambda module, args, out: keys.update({number: out.float()}))

    hooks = [hook for number in sorted(needs.attention | needs.keys) for hook in watch(number)]
    try:
        yield queries, keys
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def encode(model: Any, pixels: torch.Tensor, views: list[ViewGeometry], needs: EncoderRequirements, clip: Any = None) -> list[Encoding]:
    """Runs the tower of a LLaVA model once over all views.

    Args:
        pixels: (all views, 3, size, size), the views of the images one after another.
        views: the geometry of each image.
        clip: the text tower and projections (see ``ClipText``), needed where ``needs.text`` or ``needs.joint_patches``.
    """
    tower, config = model.model.vision_tower, model.config
    if needs.attention or needs.keys or needs.cls or needs.joint_patches:
        check_cls_token(tower)
    with recording(tower, needs) as (queries, keys):
        out = tower(pixels.to(model.device, model.dtype), output_hidden_states=True)
    states = _selected(out.hidden_states, config)
    hidden = states[:, 1:] if config.vision_feature_select_strategy == "default" else states
    heads = config.vision_config.num_attention_heads
    logits = {layer: _cls_logits(queries[layer], keys[layer], heads) for layer in needs.attention}
    counts = [v.count for v in views]
    cuts = [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]
    encodings = []
    for geometry, cut in zip(views, cuts, strict=True):
        encoding = Encoding(geometry, compact(hidden[cut]), {k: compact(v[cut]) for k, v in logits.items()})
        encoding.queries = {k: compact(queries[k][cut]) for k in needs.keys}
        encoding.keys = {k: compact(keys[k][cut]) for k in needs.keys}
        if needs.cls or needs.text:
            encoding.last_hidden = compact(out.last_hidden_state[cut, 0].float())
            encoding.pooled = compact(out.pooler_output[cut].float())
            encoding.hidden_cls = compact(states[cut, 0])
        if clip is not None and needs.text:
            encoding.projected = clip.project(out.pooler_output[cut])
            encoding.embed_text = clip.embed_text
        if clip is not None and needs.joint_patches:
            encoding.joint_patches = clip.project(post_layernorm(tower)(out.hidden_states[-2][cut, 1:]))
            encoding.embed_pieces = clip.embed_pieces
        if needs.llm_features:
            encoding.llm_features = model.model.multi_modal_projector(encoding.hidden)  # image by image: the same in a batch as alone
            encoding.newline = getattr(model.model, "image_newline", None)
        encodings.append(encoding)
    return encodings


def compact(part: torch.Tensor) -> torch.Tensor:
    """``part``, copied if it is a view of a larger tensor, which a cached view would keep alive."""
    return part if part.nbytes == part.untyped_storage().nbytes() else part.clone()


def _selected(states: tuple[torch.Tensor, ...], config: Any) -> torch.Tensor:
    """(views, N + 1, C): the hidden states that the backbone reads, CLS first if the tower has one."""
    layer = config.vision_feature_layer
    return states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)


def _cls_logits(query: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """(views, heads, N + 1) from (views, C) and (views, N + 1, C), scaled by 1 / sqrt(head width). q_proj's output is unscaled.

    One matrix product with each head's query in its own column, 0 elsewhere: cheaper than copying the keys head by head."""
    q = query.unflatten(-1, (heads, -1))
    columns = torch.diag_embed(q.transpose(1, 2)).transpose(1, 2).flatten(1, 2)  # (views, C, heads)
    scale: float = q.shape[-1] ** -0.5
    return (keys @ columns).transpose(1, 2) * scale
