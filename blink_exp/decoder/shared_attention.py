"""Attention over keys that rows share, without a copy of them for every row.

What stands in front of a row's own tokens is a list of parts, each with its own keys and values. Queries of all rows that have a part in
common go against it at once, and the results are put together by their log-sum-exps, which is exact. Layers are called unmodified: they
find this attention by its name in the registry of transformers, and a ``Parts`` where they expect a cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "blink_exp_shared"


@dataclass(frozen=True)
class Part:
    """Keys and values, (kv_heads, tokens, head_dim) each, that rows ``start`` to ``stop`` of a batch all stand behind. ``place``: 0 for a
    prefix, 1 for the first expanded segment, and so on."""

    start: int
    stop: int
    keys: torch.Tensor
    values: torch.Tensor
    place: int = 0


@dataclass
class Parts:
    """What a layer takes for a cache. ``front``: see above; ``earlier``: keys and values of rows' own tokens that have run before, two
    (rows, kv_heads, tokens, head_dim); ``mask``: (rows, queries, own tokens) bool, None where a token sees all own ones up to itself;
    ``own``: keys and values of all own tokens, once the layer has run."""

    front: list[Part]
    earlier: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: torch.Tensor | None = None
    own: tuple[torch.Tensor, ...] = field(default=())

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[Parts, Parts]:
        self.own = keys, values
        if self.earlier is not None:
            self.own = tuple(torch.cat(pair, dim=2) for pair in zip(self.earlier, self.own, strict=True))
        return self, self


@contextlib.contextmanager
def shared(llm: Any) -> Iterator[None]:
    """Inside the block the decoder's layers attend through ``attend``."""
    before = llm.config._attn_implementation
    llm.config._attn_implementation = NAME
    try:
        yield
    finally:
        llm.config._attn_implementation = before


def attend(
    module: Any, query: torch.Tensor, key: Parts, value: Parts, attention_mask: None, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """(rows, queries, heads, head_dim) of a (rows, heads, queries, head_dim) ``query``; an attention function of transformers."""
    keys, values = key.own
    out, total = _own(query, keys, values, key.mask, scaling)
    out = out.float()  # parts are put together unrounded
    for parts in _alike(key.front):
        rows = torch.cat([torch.arange(p.start, p.stop) for p in parts]).to(query.device)
        whole = len(rows) == len(query)
        found, size = _front(query if whole else query[rows], parts, scaling)
        mine, held = (out, total) if whole else (out[rows], total[rows])
        both = torch.logaddexp(held, size)
        merged = mine * (held - both).exp() + found * (size - both).exp()
        if whole:
            out, total = merged, both
        else:
            out[rows], total[rows] = merged, both
    return out.to(query.dtype).transpose(1, 2), None


def _alike(front: list[Part]) -> list[list[Part]]:
    """Parts that one call of the kernel serves: as many tokens, for as many rows."""
    groups: dict[tuple[int, int, int], list[Part]] = {}
    for part in front:
        groups.setdefault((part.place, part.keys.shape[1], part.stop - part.start), []).append(part)
    return list(groups.values())


def _front(query: torch.Tensor, parts: list[Part], scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (rows, heads, queries, head_dim) to the parts that they stand behind, and its (rows, heads, queries, 1) log-sum-exp. All
    queries that have a part in common go against it as one long query."""
    rows, heads, length, width = query.shape
    groups, several = parts[0].keys.shape[0], rows // len(parts)
    keys, values = (torch.stack(held) if len(held) > 1 else held[0][None] for held in ([p.keys for p in parts], [p.values for p in parts]))
    asked = query.unflatten(0, (len(parts), several)).transpose(1, 2)  # heads that share keys stand together
    out, size = kernel(asked.reshape(len(parts), groups, -1, width), keys, values, scaling)
    back = (len(parts), heads, several, length)
    return out.reshape(*back, width).transpose(1, 2).flatten(0, 1), size.reshape(*back, 1).transpose(1, 2).flatten(0, 1)


def _own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to a row's own tokens, and its (rows, heads, queries, 1) log-sum-exp."""
    repeats = query.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    if mask is None and query.shape[2] == keys.shape[2]:
        out, size = kernel(query, keys, values, scaling, causal=True)
        return out, size[..., None]
    logits = (query @ keys.mT).float() * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)  # finite: padding sees nothing, and must not be nan
    return logits.softmax(-1).to(values.dtype) @ values, logits.logsumexp(-1, keepdim=True)


def kernel(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (batch, heads, queries, head_dim) and its float32 log-sum-exp, (batch, heads, queries), which torch's public function
    keeps to itself."""
    aten: Any = torch.ops.aten
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, 0.0, causal, scale=scaling)
    if query.device.type == "cuda":
        found = aten._scaled_dot_product_efficient_attention(query, keys, values, None, True, 0.0, causal, scale=scaling)
        return found[0], found[1][..., : query.shape[2]]  # sums are padded to whole blocks of queries
    logits = (query @ keys.mT).float() * scaling
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(), float("-inf"))
    return logits.softmax(-1).to(values.dtype) @ values, logits.logsumexp(-1)


AttentionInterface.register(NAME, attend)  # type: ignore[arg-type]
