"""Attention over keys that rows share, without copying them for every row.

The context in front of a row's own tokens is a list of parts, each with its keys and values. The queries of all rows that share a part
attend to it in one call, and the results are merged by their log-sum-exps, which is exact. Layers are called unmodified: they find this
attention by its name in the registry of transformers, and get a ``SharedKVCache`` as their cache.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from blink_exp.decoder.tiles import by_value, elementwise, filled, independent

NAME = "blink_exp_shared"


@dataclass(frozen=True)
class Part:
    """Keys and values, (kv_heads, tokens, head_dim) each, shared by rows ``start`` to ``stop`` of a batch. ``depth``: 0 for the first
    segment of a row, 1 for the second, and so on."""

    start: int
    stop: int
    keys: torch.Tensor
    values: torch.Tensor
    depth: int = 0


@dataclass
class Masks:
    """Masks over fronts in one piece, the same in all layers in which the fronts have the same lengths. ``real``: see
    ``SharedKVCache.dense``; ``visible``: see there."""

    real: torch.Tensor | None = None
    visible: torch.Tensor | None = None


@dataclass
class SharedKVCache:
    """The cache object that a layer is called with.

    Args:
        front: the parts in front of the rows' own tokens.
        earlier: keys and values of rows' own earlier tokens, two (rows, kv_heads, tokens, head_dim).
        mask: (rows, queries, own tokens) bool, causal behind each row's padding, which is on the left; None: causal.
        alone: whether no rows share a part, so that keys are concatenated into one dense tensor, which the rows' caches need anyway.
        weights: whether attention weights are returned, (rows, heads, queries, keys), as the eager kernel does.
        masks: those of an earlier layer, or none yet.
        own: keys and values of all own tokens, set when the layer runs.
        aside: whether the rows are not part of any prompt (close-ups).
    """

    front: list[Part]
    earlier: tuple[torch.Tensor, torch.Tensor] | None = None
    mask: torch.Tensor | None = None
    alone: bool = False
    weights: bool = False
    masks: Masks = field(default_factory=Masks)
    own: tuple[torch.Tensor, ...] = field(default=())
    aside: bool = False
    _dense: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[SharedKVCache, SharedKVCache]:
        self.own = keys, values
        if self.earlier is not None:
            self.own = tuple(torch.cat(pair, dim=2) for pair in zip(self.earlier, self.own, strict=True))
        return self, self

    @property
    def known(self) -> int:
        """Keys in front of the first row's current tokens."""
        earlier = 0 if self.earlier is None else self.earlier[0].shape[2]
        return earlier + sum(part.keys.shape[1] for part in self.front if part.start == 0)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each row's front, then its own tokens: two (rows, kv_heads, keys, head_dim), and (rows, keys) bool, false on
        padding and on own tokens that the last one does not see. Rows are padded on the left."""
        if self._dense is None:
            self._dense = self._in_one_piece()
        return self._dense

    def _in_one_piece(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lengths = [0] * len(self.own[0])
        for part in self.front:
            for row in range(part.start, part.stop):
                lengths[row] += part.keys.shape[1]
        ahead = max(lengths)
        if self.masks.real is None:
            self.masks.real = self._real(lengths, ahead)
        if not self.front:
            return self.own[0], self.own[1], self.masks.real
        keys, values = (part.new_empty(*part.shape[:2], ahead + part.shape[2], part.shape[3]) for part in self.own)
        filled = [ahead - length for length in lengths]
        for row, column in enumerate(filled):
            if column:
                keys[row, :, :column], values[row, :, :column] = 0, 0
        spans: list[tuple[tuple[int, int, int], int, Part]] = []  # equal keys: neighbouring rows, the same columns
        for part in self.front:
            tokens = part.keys.shape[1]
            for row in range(part.start, part.stop):
                spans.append(((row - len(spans), filled[row], filled[row] + tokens), row, part))
                filled[row] += tokens
        for (_, first, last), same in itertools.groupby(spans, key=lambda span: span[0]):
            numbers, parts = zip(*((row, part) for _, row, part in same), strict=True)
            rows = slice(numbers[0], numbers[-1] + 1)
            keys[rows, :, first:last] = stacked([part.keys for part in parts])
            values[rows, :, first:last] = stacked([part.values for part in parts])
        keys[:, :, ahead:], values[:, :, ahead:] = self.own
        return keys, values, self.masks.real

    def _real(self, lengths: list[int], ahead: int) -> torch.Tensor:
        keys = self.own[0]
        rows, _, tokens, _ = keys.shape
        valid = keys.new_ones(rows, tokens, dtype=torch.bool) if self.mask is None else self.mask[:, -1].expand(rows, tokens)
        columns = torch.arange(ahead, device=keys.device)
        return torch.cat([columns >= ahead - torch.tensor(lengths, device=keys.device)[:, None], valid], dim=1)

    def visible(self, queries: int) -> torch.Tensor:
        """(rows, queries, keys) bool: which of the keys of ``dense`` each query sees."""
        if self.masks.visible is None:
            _, _, real = self.dense()
            ahead = real[:, None, : real.shape[1] - self.own[0].shape[2]].expand(-1, queries, -1)
            self.masks.visible = torch.cat([ahead, self.own_mask(queries).expand(len(real), -1, -1)], dim=2)
        return self.masks.visible

    def own_mask(self, queries: int) -> torch.Tensor:
        """(rows or 1, queries, own tokens) bool: which own tokens each query sees."""
        if self.mask is not None:
            return self.mask
        keys = self.own[0]
        whole = torch.ones(queries, keys.shape[2], dtype=torch.bool, device=keys.device)
        return whole.tril(keys.shape[2] - queries)[None]


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
    module: Any, query: torch.Tensor, key: SharedKVCache, value: SharedKVCache, attention_mask: None, scaling: float, **_unused: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(rows, queries, heads, head_dim) of a (rows, heads, queries, head_dim) ``query``; an attention function of transformers."""
    cache = key
    if cache.weights:
        return _with_weights(query, cache, scaling)
    keys, values = cache.own
    if not cache.front:
        return _own_alone(query, keys, values, cache, scaling).transpose(1, 2), None
    if cache.alone or _has_gradients(query, keys, *(part.keys for part in cache.front)):
        keys, values, _valid = cache.dense()
        out = F.scaled_dot_product_attention(
            query, *_repeated(query, keys, values), attn_mask=cache.visible(query.shape[2])[:, None], scale=scaling
        )
        return out.transpose(1, 2), None
    out, total = _own(query, keys, values, cache, scaling)
    out = out.float()  # parts are merged unrounded
    depths = [list(parts) for _, parts in itertools.groupby(cache.front, key=lambda part: part.depth)]
    for n, parts in enumerate(depths, 1):
        part_out, part_total = _at_depth(query, parts, scaling)
        weight = elementwise(torch.sigmoid, part_total - total)  # exp(total - sum of both), normalised
        out.lerp_(part_out, weight)
        if n < len(depths):
            total = elementwise(torch.logaddexp, total, part_total)
    return out.to(query.dtype).transpose(1, 2), None


def _at_depth(query: torch.Tensor, parts: list[Part], scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to ``parts`` of one depth, of which a row has one or none, unrounded, and its log-sum-exp: 0 and -inf for rows without."""
    groups = alike(parts)
    if len(groups) == 1 and rows_of(parts) == slice(0, len(query)):
        return _front(query, parts, scaling)
    out = query.new_zeros(query.shape, dtype=torch.float32)
    total = query.new_full((*query.shape[:3], 1), -math.inf, dtype=torch.float32)
    for same in groups:
        rows = rows_of(same)
        out[rows], total[rows] = _front(query[rows], same, scaling)
    return out, total


def _has_gradients(*tensors: torch.Tensor) -> bool:
    """Whether autograd records. The log-sum-exps by which parts are merged have no gradient in the fused kernels; keys in one piece need
    none."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _with_weights(query: torch.Tensor, cache: SharedKVCache, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As the eager kernel computes it: with the whole matrix of weights, which it returns."""
    keys, values, _ = cache.dense()
    keys, values = _repeated(query, keys, values)
    logits = (query @ keys.mT) * scaling
    logits = logits.masked_fill(~cache.visible(query.shape[2])[:, None], torch.finfo(logits.dtype).min)
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values).transpose(1, 2).contiguous(), weights


def alike(front: list[Part]) -> list[list[Part]]:
    """Groups of parts that one kernel call serves: equal in depth, tokens and rows."""
    groups: dict[tuple[int, int, int], list[Part]] = {}
    for part in front:
        groups.setdefault((part.depth, part.keys.shape[1], part.stop - part.start), []).append(part)
    return list(groups.values())


def rows_of(parts: list[Part]) -> slice | list[int]:
    """The rows behind some parts in order, as a ``span``."""
    return span([row for part in parts for row in range(part.start, part.stop)])


def span(rows: list[int]) -> slice | list[int]:
    """Ascending ``rows``; a slice, which copies nothing, where they are neighbours."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    """(parts, ...) of tensors of one shape; a view where they are equally spaced in one storage, as the rows of a batch are."""
    first = parts[0]
    if len(parts) == 1:
        return first[None]
    if _has_gradients(*parts):
        return torch.stack(parts)  # a gradient of a view of the first one's storage would not reach the others
    address, strides, step = first.data_ptr(), first.stride(), parts[1].data_ptr() - first.data_ptr()
    in_one_piece = step > 0 and first.untyped_storage().data_ptr() == parts[-1].untyped_storage().data_ptr()
    if in_one_piece and all(part.data_ptr() == address + n * step and part.stride() == strides for n, part in enumerate(parts)):
        return first.as_strided((len(parts), *first.shape), (step // first.element_size(), *strides))
    return torch.stack(parts)


def _front(query: torch.Tensor, parts: list[Part], scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (rows, heads, queries, head_dim) to the parts in front, in float32, and its (rows, heads, queries, 1) log-sum-exp."""
    keys, values = stacked([p.keys for p in parts]), stacked([p.values for p in parts])
    out, size = kernel(by_part(query, parts), keys, values, scaling)
    return by_row(out, query).float(), by_row(size[..., None], query)


def by_part(query: torch.Tensor, parts: list[Part]) -> torch.Tensor:
    """(parts, kv_heads, heads / kv_heads * rows of a part * queries, head_dim): all queries that share a part and a key head as one long
    query, of a (rows, heads, queries, head_dim) one, filled up to whole tiles."""
    grouped: torch.Tensor = query.unflatten(0, (len(parts), -1)).transpose(1, 2)  # heads that share keys stand together
    return filled(grouped.reshape(len(parts), parts[0].keys.shape[0], -1, query.shape[-1]), -2)


def by_row(x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The inverse, for results of any width: (rows, heads, queries, ...)."""
    rows, heads, queries, _ = query.shape
    parts, kv_heads = x.shape[:2]
    unfilled = x[:, :, : heads // kv_heads * rows // parts * queries]
    return unfilled.reshape(parts, heads, rows // parts, queries, x.shape[-1]).transpose(1, 2).flatten(0, 1)


def _repeated(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values repeated to the number of query heads."""
    repeats = query.shape[1] // keys.shape[1]
    if repeats == 1:
        return keys, values
    return keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)


def _own_alone(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cache: SharedKVCache, scaling: float) -> torch.Tensor:
    """Attention of rows without a front, by torch's fused kernel."""
    keys, values = _repeated(query, keys, values)
    causal = cache.mask is None and query.shape[2] == keys.shape[2] > 1
    mask = None if causal or (cache.mask is None and query.shape[2] == 1) else cache.own_mask(query.shape[2])[:, None]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal, scale=scaling)


def _own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, cache: SharedKVCache, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to a row's own tokens, and its (rows, heads, queries, 1) log-sum-exp."""
    if cache.mask is not None and independent(query):
        return _own_by_length(query, keys, values, cache.mask, scaling)
    keys, values = _repeated(query, keys, values)
    if cache.mask is None and query.shape[2] == keys.shape[2]:
        out, size = kernel(query, keys, values, scaling, causal=True)
        return out, size[..., None]
    logits = (query @ keys.mT).float() * scaling
    if cache.mask is not None or query.shape[2] > 1:
        # finite: padding sees nothing, and must not be nan
        logits = logits.masked_fill(~cache.own_mask(query.shape[2])[:, None], torch.finfo(logits.dtype).min)
    return logits.softmax(-1).to(values.dtype) @ values, logits.logsumexp(-1, keepdim=True)


def _own_by_length(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``_own`` without the padding: rows of one length at once. It is 0 for padding."""
    out, total = torch.zeros_like(query), query.new_zeros(*query.shape[:3], 1, dtype=torch.float32)
    for tokens, same in by_value(mask[:, -1].sum(1).tolist()).items():  # the last token sees all
        rows, asked = span(same), min(tokens, query.shape[2])
        unpadded = keys[rows, :, -tokens:], values[rows, :, -tokens:]
        out[rows, :, -asked:], total[rows, :, -asked:] = _own(query[rows, :, -asked:], *unpadded, SharedKVCache([], own=unpadded), scaling)
    return out, total


def kernel(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (batch, heads, queries, head_dim) and its float32 log-sum-exp, (batch, heads, queries), which torch's public function
    does not return."""
    aten: Any = torch.ops.aten
    if query.device.type == "cpu":
        out, sums = aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values, 0.0, causal, scale=scaling)
        return out, sums
    if query.device.type == "cuda":
        out, sums = aten._scaled_dot_product_efficient_attention(query, keys, values, None, True, 0.0, causal, scale=scaling)[:2]
        return out, sums[..., : query.shape[2]]  # sums are padded to whole blocks of queries
    logits = (query @ keys.mT).float() * scaling
    if causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril(), float("-inf"))
    return logits.softmax(-1).to(values.dtype) @ values, logits.logsumexp(-1)


AttentionInterface.register(NAME, attend)
