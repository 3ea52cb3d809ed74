"""Decoding: further tokens over each layer's cache, and greedy answers of branches, one for all points that decided alike.

Layers may hold different sequences: layer l's keys are the sequence as layer l saw it, so lengths, padding and the next free position
differ from layer to layer. All of that lives on the cache layer itself: it is reordered with the beams and dies with the cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Sequence as Rows
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from blink_exp.backbone.logits import no_answer
from blink_exp.decoder.branches import FinalBranches
from blink_exp.decoder.layers import Rope, SegmentRun, run_layers
from blink_exp.decoder.segments import Front, shared_kv, starts
from blink_exp.decoder.shared_attention import SharedKVCache
from blink_exp.decoder.tiles import in_tiles, independent, linear
from blink_exp.errors import UserError


class SegmentedLayer(DynamicLayer):
    """A DynamicLayer with a key mask and the next token's position.

    ``keys``, ``values``: (batch, kv_heads, keys, head_dim) of rows' own tokens; ``key_valid``: (batch, keys) bool; ``next_position``:
    (batch,); ``fronts``: segments in front of each row that are shared (``blink_exp.decoder.answers``), else empty;
    ``prompt_tokens``: tokens of the caller's own sequence so far, which ``generate`` counts, whatever was inserted or dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key_valid: torch.Tensor | None = None
        self.next_position: torch.Tensor | None = None
        self.fronts: list[Front] = []
        self.prompt_tokens = 0

    def get_seq_length(self) -> int:
        return self.prompt_tokens

    def hold(self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor, next_position: torch.Tensor, tokens: int) -> None:
        """Sets all keys and values of this layer. ``tokens``: number of the caller's tokens added."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self.key_valid, self.next_position = keys, values, valid, next_position
        self.prompt_tokens += tokens

    def pick(self, index: torch.Tensor, picked: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Selects rows. ``picked``: {id: (tensor, selected tensor)}, so that layers that share a tensor share the selected one."""
        self.keys, self.values = self.keys[index], self.values[index]
        for name in ("key_valid", "next_position"):
            before = getattr(self, name)
            setattr(self, name, picked.setdefault(id(before), (before, before[index]))[1])
        self.fronts = [self.fronts[n] for n in index.tolist()] if self.fronts else []

    def _rows(self, index: torch.Tensor) -> None:
        if self.key_valid is not None and self.next_position is not None:
            self.key_valid = self.key_valid.index_select(0, index.to(self.key_valid.device))
            self.next_position = self.next_position.index_select(0, index.to(self.next_position.device))
        if self.fronts:
            self.fronts = [self.fronts[n] for n in index.tolist()]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.key_valid is not None:
            self._rows(torch.arange(len(self.key_valid)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise UserError("a cache whose layers hold different sequences cannot be cropped; do not use assisted decoding with a method")


def segmented(cache: Cache | None, layers: int) -> Cache:
    """An empty cache with segmented layers: ``cache`` itself, refitted, or a new one."""
    if cache is None:
        return Cache(layers=[SegmentedLayer() for _ in range(layers)])
    cache.layers = [SegmentedLayer() for _ in range(layers)]
    return cache


class _Tokens:
    """(rows, tokens, hidden) ``states`` of tokens behind the cache ``layers``; a ``Work``."""

    over = False

    def __init__(self, llm: Any, states: torch.Tensor, layers: Rows[SegmentedLayer], weights: bool):
        self.llm, self.states, self.layers, self.weights = llm, states, layers, weights
        # Layers between two decisions hold the same sequence: one mask and one RoPE serve them.
        self.known: dict[tuple[int, int], tuple[Rope, torch.Tensor | None, torch.Tensor, torch.Tensor, Any]] = {}

    def runs(self, i: int) -> Iterator[SegmentRun]:
        layer, tokens = self.layers[i], self.states.shape[1]
        valid, position = layer.key_valid, layer.next_position
        assert valid is not None and position is not None
        key = (id(valid), id(position))
        if key not in self.known:
            steps = torch.arange(tokens, device=position.device)
            rope = self.llm.rotary_emb(self.states, position_ids=position[:, None] + steps)
            key_valid = torch.cat([valid, valid.new_ones(len(valid), tokens)], dim=1)
            mask = None
            if not bool(valid.all()):
                mask = key_valid[:, None].expand(-1, tokens, -1) & key_valid.new_ones(tokens, key_valid.shape[1]).tril(valid.shape[1])
            self.known[key] = (rope, mask, key_valid, position + tokens, (valid, position))  # the last keep their ids from being reused
        rope, mask, key_valid, position, _ = self.known[key]
        cache = SharedKVCache(shared_kv(i, layer.fronts), (layer.keys, layer.values), mask, weights=self.weights)
        run = SegmentRun(self.states, rope, cache)
        yield run
        self.states = run.states
        keys, values = cache.own
        layer.hold(keys, values, key_valid, position, tokens)


def extend(llm: Any, embeds: torch.Tensor, layers: Rows[Any], weights: bool = False) -> torch.Tensor:
    """Runs (rows, tokens, hidden) further tokens behind the cache, which is extended. Returns their final states."""
    work = _Tokens(llm, embeds, layers, weights)
    run_layers(llm, work, 0, len(llm.layers))
    out: torch.Tensor = llm.norm(work.states)
    return out


def greedy(model: Any, final: FinalBranches, max_new_tokens: int, ends: Collection[int], at_once: int) -> list[list[int]]:
    """Generated tokens of each branch, up to one of ``ends`` or ``max_new_tokens``; the same as Hugging Face's greedy generate().

    ``at_once``: branches that are decoded as one batch.
    """
    first = _next(model, model.model.language_model.norm(final.text.states[:, -1]))
    tokens = [[token] for token in first.tolist()]
    left = [r for r, (token,) in enumerate(tokens) if token not in ends] if max_new_tokens > 1 else []
    for start in range(0, len(left), at_once):
        _go_on(model, final, left[start : start + at_once], tokens, max_new_tokens, ends)
    return tokens


def _next(model: Any, hidden: torch.Tensor, count: int = 0) -> torch.Tensor:
    """(rows,) most likely tokens. Raises UserError where logits are nan or inf. ``count``: rows that are not repetitions, the last ones; 0:
    all."""
    logits = linear(model.lm_head, hidden).float()
    best = logits.max(-1)
    if not bool(best.values.isfinite().all()):
        raise no_answer(best.values[-count:])
    return best.indices


def _go_on(model: Any, final: FinalBranches, rows: list[int], tokens: list[list[int]], most: int, ends: Collection[int]) -> None:
    """Appends to ``tokens`` the tokens of branches ``rows`` behind their first one."""
    tiled = in_tiles if independent(final.text.states) else list[int]
    rows = tiled(rows)
    llm, layers = model.model.language_model, cached(final, rows)
    while rows:
        last = torch.tensor([tokens[r][-1] for r in rows], device=final.text.states.device)
        hidden = extend(llm, model.get_input_embeddings()(last[:, None]), layers)
        new = dict(zip(rows, _next(model, hidden[:, -1], len(set(rows))).tolist(), strict=True))
        for r, token in new.items():
            tokens[r].append(token)
        unfinished = {r: n for n, r in enumerate(rows) if tokens[r][-1] not in ends and len(tokens[r]) < most}
        if len(unfinished) < len(new):
            rows = tiled(list(unfinished))
            index = torch.tensor([unfinished[r] for r in rows], dtype=torch.long, device=last.device)
            selected: dict[int, Any] = {}
            for layer in layers if rows else ():
                layer.pick(index, selected)


def cached(final: FinalBranches, rows: Rows[int]) -> list[SegmentedLayer]:
    """The cache of branches ``rows``, layer by layer: forks are followed back to each one's row in that layer."""
    index = torch.tensor(list(rows), device=final.text.states.device)
    valid = final.text.valid[index]
    out: list[SegmentedLayer] = []
    positions: dict[tuple[int, ...], torch.Tensor] = {}  # layers with the same sequence share the numbers of its tokens
    for step in reversed(final.steps):
        layer = SegmentedLayer()
        layer.fronts = [step.fronts[n] for n in index.tolist()]
        ahead = tuple(starts(front)[-1] for front in layer.fronts)
        if ahead not in positions:
            positions[ahead] = torch.tensor(ahead, device=valid.device) + valid.sum(1)
        layer.hold(step.keys[index], step.values[index], valid, positions[ahead], valid.shape[1])
        out.append(layer)
        if step.parent is not None:
            index = step.parent[index]
    return out[::-1]
