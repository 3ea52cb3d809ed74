"""Packed questions behind an image with an expanded segment: what Blink's ``expand_once`` makes of a prompt, in a form that can be trained.

The segment enters behind the visual tokens before one layer, as at inference; the text before that layer has not seen it, and from there on
stands behind it. Every part is run once: the prefix for all questions of a scene, the segment behind it, the text behind both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.core.saliency import PatchGrid
from blink_exp.decoder.segments import enlarge
from blink_exp.scale_model.packing import LOOK_LAYERS, Pack, ids_of

Memory = dict[int, tuple[torch.Tensor, torch.Tensor]]  # keys and values, (batch, heads, tokens, head_dim), by layer


class ExpandedForward:
    """The forward pass of a LLaVA-1.5 whose expanded segment enters before ``layer``.

    Args:
        llava: its LLM is run layer by layer, with gradients.
        visual: (batch, tokens, hidden) projected features of the full view.
    """

    def __init__(self, llava: Any, tokenizer: Any, visual: torch.Tensor, layer: int):
        self.llm, self.embed, self.layer = llava.model.language_model, llava.get_input_embeddings(), layer
        opening = self.embed(torch.tensor(ids_of(tokenizer, "<s>USER: "), device=visual.device))
        self.opening = opening
        self.columns = slice(len(opening), len(opening) + visual.shape[1])  # of the full view
        self.memory: Memory = {}
        self.states = self._prefix(visual, len(self.llm.layers), self.memory)

    def interpolated(self, regions: torch.Tensor, p: int = 2) -> torch.Tensor:
        """(batch, tokens, hidden) enlarged patch ``regions``, (batch,), of the full view at the layer's input: Blink-interp."""
        states = self.states[:, self.columns]
        side = round(states.shape[1] ** 0.5)
        grid = PatchGrid(p, side, side)
        rows = torch.stack([grid.indices(int(region)) for region in regions]).to(states.device)
        patch = states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1])).mT.unflatten(2, grid.patch)
        return enlarge(patch, (side, side)).flatten(2).mT

    def close_up(self, visual: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden) states of another view at the layer's input, behind the opening alone: TokenSR's teacher."""
        return self._prefix(visual, self.layer, {})[:, len(self.opening) :]

    def hidden(self, packed: Pack, segment: torch.Tensor, at: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As ``packing.hidden_of``, with ``segment``, (batch, tokens, hidden), between the view and the text."""
        front = self.columns.stop
        early, seen = self._text(self.embed(packed.ids), packed, self.memory, front, range(self.layer), at)
        memory = self._behind(segment)
        late = range(self.layer, len(self.llm.layers))
        states, more = self._text(early, packed, memory, front + segment.shape[1], late, at)
        return self.llm.norm(states), [*seen, *more]

    def _prefix(self, visual: torch.Tensor, last: int, memory: Memory) -> torch.Tensor:
        """States of ``opening | visual`` at the input of ``self.layer``. ``memory`` gets keys and values of the layers before ``last``."""
        states = torch.cat([self.opening.expand(len(visual), -1, -1), visual], dim=1)
        rope = self._rope(states, torch.arange(states.shape[1], device=states.device).expand(len(visual), -1))
        reached = states
        for i in range(last):
            queries, keys, values = self._projected(i, states, rope)
            memory[i] = keys, values
            states = self._outputs(i, states, queries, keys, values, causal=True)
            if i + 1 == self.layer:
                reached = states
        return reached

    def _behind(self, segment: torch.Tensor) -> Memory:
        """Keys and values of ``prefix | segment`` from the layer on."""
        first, tokens = self.columns.stop, segment.shape[1]
        rope = self._rope(segment, torch.arange(first, first + tokens, device=segment.device).expand(len(segment), -1))
        mask = torch.ones(tokens, first + tokens, dtype=torch.bool, device=segment.device).tril(first)[None, None]
        memory: Memory = {}
        states = segment
        for i in range(self.layer, len(self.llm.layers)):
            queries, keys, values = self._projected(i, states, rope)
            memory[i] = torch.cat([self.memory[i][0], keys], dim=2), torch.cat([self.memory[i][1], values], dim=2)
            states = self._outputs(i, states, queries, *memory[i], mask)
        return memory

    def _text(
        self, states: torch.Tensor, packed: Pack, memory: Memory, front: int, layers: range, at: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The text's states behind ``layers``, and where ``at`` looks on the full view in those of LOOK_LAYERS."""
        text = states.shape[1]
        same_owner = packed.owner[:, :, None] == packed.owner[:, None, :]
        causal = torch.ones(text, text, dtype=torch.bool, device=states.device).tril()
        mask = F.pad(same_owner & causal, (front, 0), value=True)[:, None]
        rope = self._rope(states, front + packed.offset)
        looks = []
        for i in layers:
            queries, keys, values = self._projected(i, states, rope)
            if at is not None and i in LOOK_LAYERS:
                scores = queries[at[:, 0], :, at[:, 1], None] @ self.memory[i][0][at[:, 0], :, self.columns].mT
                looks.append((scores * queries.shape[-1] ** -0.5)[:, :, 0].softmax(-1).mean(1))
            keys, values = torch.cat([memory[i][0], keys], dim=2), torch.cat([memory[i][1], values], dim=2)
            states = self._outputs(i, states, queries, keys, values, mask)
        return states, looks

    def _rope(self, states: torch.Tensor, positions: torch.Tensor) -> Any:
        return self.llm.rotary_emb(states, position_ids=positions)

    def _projected(self, i: int, states: torch.Tensor, rope: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        attention = self.llm.layers[i].self_attn
        normed = self.llm.layers[i].input_layernorm(states)
        queries, keys, values = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return *apply_rotary_pos_emb(queries, keys, *rope), values

    def _outputs(
        self,
        i: int,
        states: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        layer = self.llm.layers[i]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
        states = states + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        out: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
        return out
