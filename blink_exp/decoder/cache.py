"""A KV cache whose layers may hold different sequences.

Layer l's keys are the sequence as layer l saw it, so lengths, padding and the next free position differ from layer to layer. All of
that lives on the cache layer itself: it is reordered with the beams and dies with the cache.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, DynamicLayer

from blink_exp.decoder.segments import Front
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
