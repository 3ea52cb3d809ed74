"""Generating from a prompt's cache with buffers that never move, so that one step can be a CUDA graph.

A dynamic cache grows by copying: new addresses every token, and a launch from Python for every kernel. Here each layer's keys and values
stand in a buffer with room for the answer, the new token's place is a number on the device, and a step is the same kernels at the same
addresses every time. Layers may hold different sequences, as Blink's, FastV's and SparseVLM's do. Greedy, one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blink_exp.backbone.cache_name import CACHE


class Fixed:
    """The cache of a prompt, refitted, and the token that comes next. The stock attention modules call ``update`` on it."""

    def __init__(self, model: Any, cache: Any, token: torch.Tensor, room: int):
        self.model, self.llm = model, model.model.language_model
        self.token = token.clone().view(1, 1)
        self.keys = [_with_room(layer.keys, room) for layer in cache.layers]
        self.values = [_with_room(layer.values, room) for layer in cache.layers]
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        positions = [
            n if getattr(h, "next_position", None) is None else int(h.next_position) for h, n in zip(cache.layers, lengths, strict=True)
        ]
        self.kinds = sorted(set(zip(lengths, positions, strict=True)))  # layers that hold the same sequence share mask and positions
        self.kind = [self.kinds.index(pair) for pair in zip(lengths, positions, strict=True)]
        device = self.token.device
        self.length = [torch.tensor([n], device=device) for n, _ in self.kinds]
        self.position = [torch.tensor([[p]], device=device) for _, p in self.kinds]
        self.order = [torch.arange(n + room, device=device) for n, _ in self.kinds]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        at = self.length[self.kind[layer]]
        self.keys[layer].index_copy_(2, at, keys)
        self.values[layer].index_copy_(2, at, values)
        return self.keys[layer], self.values[layer]

    @torch.no_grad()
    def step(self) -> None:
        """Runs the layers on the token and puts the next one in its place."""
        states = self.model.get_input_embeddings()(self.token)
        rope = [self.llm.rotary_emb(states, position_ids=p) for p in self.position]
        masks = [(order <= n)[None, None, None] for order, n in zip(self.order, self.length, strict=True)]
        for layer, k in zip(self.llm.layers, self.kind, strict=True):
            states = layer(states, attention_mask=masks[k], position_embeddings=rope[k], use_cache=True, **{CACHE: self})
        self.token.copy_(self.model.lm_head(self.llm.norm(states)).argmax(-1))
        for n, p in zip(self.length, self.position, strict=True):
            n += 1
            p += 1

    def rewind(self, token: torch.Tensor) -> None:
        """Back to the end of the prompt, in place: what a graph has recorded stays valid."""
        self.token.copy_(token.view(1, 1))
        for (n, p), length, position in zip(self.kinds, self.length, self.position, strict=True):
            length.fill_(n)
            position.fill_(p)


def _with_room(states: torch.Tensor, room: int) -> torch.Tensor:
    batch, heads, tokens, width = states.shape
    out = states.new_zeros(batch, heads, tokens + room, width)
    out[:, :, :tokens] = states
    return out


def answer(fixed: Fixed, tokens: int, step: Callable[[], None] | None = None) -> torch.Tensor:
    """(tokens,) greedy tokens behind the prompt, the first being the one that the prompt itself gave. Read once, at the end."""
    generated = [fixed.token.clone()]
    for _ in range(tokens - 1):
        (step or fixed.step)()
        generated.append(fixed.token.clone())
    return torch.cat(generated).flatten()


def graphed(fixed: Fixed, compiled: bool = False) -> Callable[[], None]:
    """One step as a CUDA graph, of the plain or of the compiled layers. Leaves ``fixed`` some tokens further: rewind it."""
    step = fixed.step
    if compiled:
        torch._dynamo.reset()  # else the eighth prompt reaches its limit of compilations, and later ones run as they are without a word
        step = torch.compile(fixed.step, dynamic=False)
    stream, before = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):  # lazy initialisation and compiling must be over before a graph is recorded
        for _ in range(2):
            step()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind
    return graph.replay
