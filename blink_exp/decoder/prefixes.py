"""`system | visual` of an image, run through all layers once, whatever is asked about it and whatever is decided."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.core.base_view import Shown
from blink_exp.decoder.decode import causal_mask


@dataclass(eq=False)
class Prefix:
    """What one image leaves behind in a decoder.

    ``keys``, ``values``: (layers, kv_heads, tokens, head_dim), keys behind RoPE; ``states``: {layer: (visual, hidden)}, the visual tokens
    at the input of the layers that were asked for. The visual tokens are the last ones.
    """

    keys: torch.Tensor
    values: torch.Tensor
    states: dict[int, torch.Tensor]
    visual: int

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.keys, self.values, *self.states.values()))


@dataclass(frozen=True)
class Opening:
    """What a prefix is made of. ``ids``: (before,) token ids before the image; ``features``: (visual, hidden); ``shown``: which cells of
    the base view these show, None where they are all of one view."""

    ids: torch.Tensor
    features: torch.Tensor
    shown: Shown | None = None

    def digest(self) -> str:
        """Equal for equal content, wherever it comes from: two points that keep the same tokens have one prefix."""
        cells = self.ids if self.shown is None else self.shown.cells
        digest = hashlib.sha256(repr((self.features.dtype, len(self.ids), len(cells), self.shown is None)).encode())
        for part in (self.ids, cells, self.features):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Own:
    """What an attention module takes for a cache where nothing stands in front: it notes keys and values, and gives them back."""

    def __init__(self) -> None:
        self.own: tuple[torch.Tensor, ...] = ()

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
        self.own = keys, values
        return self.own


def run(llm: Any, embeds: Rows[torch.Tensor], visual: Rows[int], layers: Collection[int], at_once: int) -> list[Prefix]:
    """Prefixes of (tokens, hidden) ``embeds``, the last ``visual`` of which are visual tokens. ``layers``: see ``Prefix.states``;
    ``at_once``: how many run as a batch."""
    found: dict[int, Prefix] = {}
    order = sorted(range(len(embeds)), key=lambda r: len(embeds[r]))
    for _, same in itertools.groupby(order, key=lambda r: len(embeds[r])):  # of one length: no padding, the kernel's own causal rule
        rows = list(same)
        for start in range(0, len(rows), at_once):
            batch = rows[start : start + at_once]
            found.update(zip(batch, _run([embeds[r] for r in batch], [visual[r] for r in batch], llm, layers), strict=True))
    return [found[r] for r in range(len(embeds))]


def _run(embeds: list[torch.Tensor], visual: list[int], llm: Any, layers: Collection[int]) -> list[Prefix]:
    states = torch.stack(embeds)
    real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    rope = llm.rotary_emb(states, position_ids=torch.arange(states.shape[1], device=states.device)[None])
    mask = causal_mask(llm, real[:, :0], real, states.dtype, padded=False)
    order = sorted(layers)
    held: list[torch.Tensor] = []  # one allocation a row and kind: a row may be forgotten before the others, and leaves no gaps in the heap
    inputs = [states.new_empty(len(order), n, states.shape[2]) for n in visual]
    for i, layer in enumerate(llm.layers):
        if i in layers:
            for own, row in zip(inputs, states, strict=True):
                own[order.index(i)] = row[len(row) - own.shape[1] :]
        cache = Own()
        states = layer(states, attention_mask=mask, position_embeddings=rope, position_ids=None, past_key_values=cache, use_cache=True)
        keys, values = cache.own
        held = held or [keys.new_empty(2, len(llm.layers), *row.shape) for row in keys]
        for own, key, value in zip(held, keys, values, strict=True):
            own[0, i], own[1, i] = key, value
    return [Prefix(kept[0], kept[1], dict(zip(order, own, strict=True)), n) for kept, own, n in zip(held, inputs, visual, strict=True)]
