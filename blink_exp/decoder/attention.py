"""The attention of the last prompt token in each layer, with or without a method, and the tokens behind its columns.

One row for each layer is computed from that token's query and the layer's cached keys, so layers keep their fused kernels and no
attention matrix is made. It is the row that the layer itself uses: over its own sequence, after its decisions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.backbone.cache_name import CACHE
from blink_exp.core import saliency
from blink_exp.core.method import Record
from blink_exp.core.saliency import AttentionInputs
from blink_exp.core.sequence import Expand, Origin, Retain, State, transition
from blink_exp.core.views import EXTRA
from blink_exp.decoder.scan import heads_of
from blink_exp.decoder.shared_attention import SharedKVCache


@contextlib.contextmanager
def record_attention(llm: Any, layers: Collection[int] | None = None) -> Iterator[dict[int, torch.Tensor]]:
    """Records the first forward of a decoder inside the block, which is that of the prompt: {layer: (batch, keys)} float32 on the CPU,
    softmax over all keys that the token may see (0 elsewhere), mean over heads.

    ``layers``: 0-based; None: all. Keys stand in the order of the sequence at that layer. Works with and without
    a method attached, with rows padded on the left. The hooks leave with the block.
    """
    rows: dict[int, torch.Tensor] = {}
    over = False

    def record(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        aside = getattr(kwargs.get(CACHE), "aside", False)
        if not over and not aside:  # a method runs a layer segment by segment: the last one, the text, overwrites those in front of it
            rows[attention.layer_idx] = last_row(attention, **kwargs)

    def close(*_: Any) -> None:
        nonlocal over
        over = True

    modules = [layer.self_attn for i, layer in enumerate(llm.layers) if layers is None or i in layers]
    hooks = [attention.register_forward_hook(record, with_kwargs=True) for attention in modules]
    hooks.append(llm.register_forward_hook(close))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def last_row(
    attention: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor:
    """(batch, keys) attention of the last token of (batch, tokens, hidden) ``hidden_states``, from the arguments that an attention module
    was just called with. Its cache, if there is one, holds the module's keys, its own tokens' among them."""
    cache = others.get(CACHE)
    cos, sin = position_embeddings
    query = heads_of(attention, attention.q_proj(hidden_states[:, -1:]))
    query = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])[0]
    if isinstance(cache, SharedKVCache):
        keys, _, key_mask = cache.dense()
        visible = key_mask[:, None]
    else:
        if cache is None:
            keys = heads_of(attention, attention.k_proj(hidden_states))
            keys = apply_rotary_pos_emb(keys, keys, cos, sin)[1]
        else:
            keys = cache.layers[attention.layer_idx].keys
        visible = _visible(attention_mask, len(keys), keys.shape[2]).to(keys.device)
    text = visible.new_ones(len(keys), 1)
    inputs = AttentionInputs(query, keys, visible, text, attention.scaling, lambda: query, lambda: keys)
    return saliency.attention(inputs, torch.arange(keys.shape[2], device=keys.device)).float().cpu()


def _visible(mask: torch.Tensor | None, batch: int, keys: int) -> torch.Tensor:
    """(batch, 1, keys) bool: what the last query may see, from a kernel's mask: none, (batch, keys), or (batch, 1, queries, keys), bool
    or to be added to the logits."""
    if mask is None:
        return torch.ones(batch, 1, keys, dtype=torch.bool)
    last = mask if mask.dim() == 2 else mask[:, 0, -1]
    visible = last if last.dtype == torch.bool else last > 0 if mask.dim() == 2 else last == 0
    return visible.expand(batch, -1)[:, None]


def replay(decisions: Rows[Record], visual: torch.Tensor, depth: int) -> list[tuple[torch.Tensor, tuple[Origin, ...]]]:
    """(visual tokens, parts of the expanded segment) of each of the first ``depth`` layers, in order.

    ``decisions``: of one row with one image; ``visual``: (tokens,) an id of each visual token that enters (its source, or its cell of the
    base view); a merged token has EXTRA. Blink decides before a layer, a TokenPolicy
    behind it.
    """
    by_layer = {d.scan.layer: d for d in decisions}
    state: State[int, Origin] = State.of(visual.tolist())
    out = []
    for layer in range(depth):
        record = by_layer.get(layer)
        if record is not None and not isinstance(record.decision, Retain):
            state = transition(state, record.decision, expand=functools.partial(_origin, record, len(visual)))
        out.append((visual.new_tensor(state.visual[0]), state.expanded[0]))
        if record is not None and isinstance(record.decision, Retain):
            state = transition(state, record.decision, merge=lambda _: EXTRA)
    return out


def _origin(record: Record, visual: int, before: tuple[Origin, ...]) -> Origin:
    """The part that a recorded expansion added behind ``visual`` tokens and the parts ``before``."""
    assert isinstance(record.decision, Expand)
    tokens = record.visual_tokens - visual - sum(part.tokens for part in before)
    return Origin(record.scan.layer, record.decision.region, tokens)
