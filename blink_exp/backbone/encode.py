"""The frozen CLIP tower, run once an image: patch features, and what pruners ask to see of its attention.

Only the CLS row is ever computed: queries of the CLS token and keys are taken from the q and k projections of the layers somebody asked
for, so the tower keeps its fused attention kernel. CLIP layers are numbered 1 to 24 here, as the papers count them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from blink_exp.backbone.views import Views
from blink_exp.errors import UserError


@dataclass(frozen=True)
class Needs:
    """What a pruner looks at. ``attention``: CLIP layers (1-based) whose CLS row it reads; ``keys``: layers whose CLS query and keys it
    reads; ``cls``: whether it reads CLS embeddings; ``text``: whether it reads the text tower's embedding of the question."""

    attention: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    cls: bool = False
    text: bool = False

    def union(self, *others: Needs) -> Needs:
        """All that any of them looks at."""
        every = (self, *others)
        attention, keys = (frozenset().union(*(getattr(n, what) for n in every)) for what in ("attention", "keys"))
        return Needs(attention, keys, any(n.cls for n in every), any(n.text for n in every))

    def covers(self, other: Needs) -> bool:
        return self.union(other) == self


@dataclass
class Encoding:
    """One image as CLIP sees it.

    Args:
        views: its geometry; views below is K + 1, N patches a view, C the tower's width.
        hidden: (views, N, C) patch features of the layer that the backbone reads, before the projector.
        logits: {layer: (views, heads, N + 1)} float32 CLS-to-all products q k / sqrt(head width), the CLS key first.
        queries, keys: {layer: (views, C)} of the CLS token and {layer: (views, N + 1, C)}, float32.
        last_hidden: (views, C) CLS token after the last layer, before its norm; ``pooled``: after it; None if not asked for.
        projected: (views, projection) image embeddings in CLIP's joint space, where a text tower is there.
        embed_text: the text tower: a question to (projection,); None where there is none.
    """

    views: Views
    hidden: torch.Tensor
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    last_hidden: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    projected: torch.Tensor | None = None
    embed_text: Callable[[str], torch.Tensor] | None = None

    @property
    def nbytes(self) -> int:
        held = [self.hidden, *self.logits.values(), *self.queries.values(), *self.keys.values()]
        return sum(t.nbytes for t in (*held, self.last_hidden, self.pooled, self.projected) if t is not None)

    def attention(self, layer: int) -> torch.Tensor:
        """(views, heads, N) CLS-to-patch probabilities of a layer, softmax over all N + 1 keys, so a row sums to 1 - a(CLS -> CLS)."""
        return self.logits[layer].softmax(-1)[..., 1:]

    def cls_attention(self, layers: frozenset[int] | tuple[int, ...]) -> torch.Tensor:
        """(views, N): the mean over heads and over ``layers`` of ``attention``."""
        return torch.stack([self.attention(layer).mean(1) for layer in sorted(layers)]).mean(0)


def check_layers(name: str, layers, depth: int) -> frozenset[int]:
    """CLIP layers (1-based) as a set. Raises UserError if it is empty or leaves the encoder."""
    found = frozenset(int(layer) for layer in layers)
    if not found:
        raise UserError(f"{name}=[] names no layer; use layers from 1 to {depth}")
    for layer in sorted(found):
        if not 1 <= layer <= depth:
            raise UserError(f"{name} holds layer {layer}, outside the encoder's 1 to {depth}; use layers inside")
    return found


def tower_layers(tower: Any) -> Any:
    """The layer list of a vision tower, wherever its class keeps it."""
    inner = getattr(tower, "vision_model", tower)
    return inner.encoder.layers


def check_cls_token(tower: Any) -> None:
    """Raises UserError for an encoder without a CLS token (SigLIP)."""
    inner = getattr(tower, "vision_model", tower)
    if not hasattr(inner.embeddings, "class_embedding"):
        raise UserError(f"{type(tower).__name__} has no CLS token, which this method scores tokens by; use a CLIP encoder")


@contextlib.contextmanager
def recording(tower: Any, needs: Needs) -> Iterator[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]]:
    """Inside the block, a pass of ``tower`` fills two dicts by needed layer: CLS queries (views, C) and keys (views, N + 1, C)."""
    layers = tower_layers(tower)
    if needs.attention | needs.keys:
        check_layers("layers", needs.attention | needs.keys, len(layers))  # layers[0 - 1] would be the last one
    queries: dict[int, torch.Tensor] = {}
    keys: dict[int, torch.Tensor] = {}

    def watch(number: int):
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
def encode(model: Any, pixels: torch.Tensor, views: list[Views], needs: Needs, clip: Any = None) -> list[Encoding]:
    """Runs the tower of a LLaVA model once over all views.

    Args:
        pixels: (all views, 3, size, size), the views of the images one after another.
        views: the geometry of each image.
        clip: what has ``visual_projection`` and the text tower (see ``ClipText``), needed where ``needs.text``.
    """
    tower, config = model.model.vision_tower, model.config
    if needs.attention or needs.keys or needs.cls:
        check_cls_token(tower)
    with recording(tower, needs) as (queries, keys):
        out = tower(pixels.to(model.device, model.dtype), output_hidden_states=True)
    hidden = _selected(out.hidden_states, config)
    heads = config.vision_config.num_attention_heads
    logits = {layer: _cls_logits(queries[layer], keys[layer], heads) for layer in needs.attention}
    counts = [v.count for v in views]
    cuts = [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]
    found = []
    for geometry, cut in zip(views, cuts, strict=True):
        one = Encoding(geometry, owned(hidden[cut]), {k: owned(v[cut]) for k, v in logits.items()})
        one.queries = {k: owned(queries[k][cut]) for k in needs.keys}
        one.keys = {k: owned(keys[k][cut]) for k in needs.keys}
        if needs.cls or needs.text:
            one.last_hidden = owned(out.last_hidden_state[cut, 0].float())
            one.pooled = owned(out.pooler_output[cut].float())
        if clip is not None and needs.text:
            one.projected = clip.project(out.pooler_output[cut])
            one.embed_text = clip.embed_text
        found.append(one)
    return found


def owned(part: torch.Tensor) -> torch.Tensor:
    """``part`` in memory of its own: a view of a batch that is kept keeps the whole batch."""
    return part if part.nbytes == part.untyped_storage().nbytes() else part.clone()


def _selected(states, config) -> torch.Tensor:
    """(views, N, C): the hidden states that the backbone reads, without CLS unless it keeps that."""
    layer = config.vision_feature_layer
    chosen = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)
    return chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen


def _cls_logits(query: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """(views, heads, N + 1) from (views, C) and (views, N + 1, C), scaled by 1 / sqrt(head width). q_proj's output is unscaled.

    One product of the keys as they lie with a matrix that holds each head's query in a column of its own, 0 elsewhere: cheaper than
    copying the keys head by head."""
    q = query.unflatten(-1, (heads, -1))
    columns = torch.diag_embed(q.transpose(1, 2)).transpose(1, 2).flatten(1, 2)  # (views, C, heads)
    return (keys @ columns).transpose(1, 2) * q.shape[-1] ** -0.5
