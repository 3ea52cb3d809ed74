"""States of visual tokens at some layers, without a text: for TokenSR's training, and for close-ups."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from blink_exp.backbone.encode import encode
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import ViewGeometry
from blink_exp.decoder.layers import PrefixBatch, run_layers
from blink_exp.decoder.segments import Segment


class StatesOnly(Segment):
    """A segment without tokens behind it, so its keys and values are not kept."""

    def advance(self, i: int, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, read: Collection[int]) -> None:
        self.pass_on(i, states, read)


def visual_states(llm: Any, embeds: torch.Tensor, visual: int, layers: Collection[int]) -> dict[int, torch.Tensor]:
    """The visual tokens' states at the input of ``layers``, {layer: (batch, visual, hidden)}.

    ``embeds``: (batch, opening + visual, hidden). No text is run, as the states depend on the image alone. The forward stops
    before the last of ``layers``.
    """
    layer_set = set(layers)
    rows = [StatesOnly(row, visual) for row in embeds]
    run_layers(llm, PrefixBatch(llm, rows, layer_set), 0, max(layer_set))
    return {layer: torch.stack([row.visual_at(layer) for row in rows]) for layer in layer_set}


@torch.no_grad()
def base_view_embeds(backbone: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(images, opening + H * W, hidden) embeddings of the prompt's opening and one view, from (images, 3, size, size) pixels."""
    encodings = encode(backbone.model, pixels, [ViewGeometry(backbone.grid[0])] * len(pixels), EncoderRequirements())
    features = backbone.model.model.multi_modal_projector(torch.cat([encoding.hidden for encoding in encodings]))
    opening = backbone.processor.tokenizer(backbone.prompt("").split(backbone.processor.image_token)[0], return_tensors="pt").input_ids
    embeds = backbone.model.get_input_embeddings()(opening.to(features.device)).expand(len(features), -1, -1)
    return torch.cat([embeds, features], dim=1)


@torch.no_grad()
def image_states(backbone: Any, pixels: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
    """{layer: (images, H * W, width)} visual tokens of the base view at each layer's input, from (images, 3, size, size) pixels.

    The sequence is the prompt's opening and the image; text behind the image cannot change these states.
    """
    return visual_states(backbone.llm, base_view_embeds(backbone, pixels), backbone.grid[0] * backbone.grid[1], layers)
