"""Attention of the last prompt token to original and expanded tokens, by layer, while a method runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from PIL import Image

from blink_exp.backbone.model import Backbone
from blink_exp.core.method import Method, Record
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Origin
from blink_exp.decoder.attach import attach
from blink_exp.decoder.attention import record_attention, replay


@dataclass(frozen=True)
class LayerAttention:
    """Attention of the last prompt token at one layer: softmax over all visible keys, mean over heads.

    ``visual``: (H * W,) on the base view's tokens in raster order, 0 where one was dropped; ``expanded``: (tokens,) on the expanded
    segment; ``parts``: the expansions in it, in order.
    """

    visual: torch.Tensor
    expanded: torch.Tensor
    parts: tuple[Origin, ...]

    def region(self, grid: PatchGrid) -> int:
        """The patch with the most attention on its original tokens."""
        return int(grid.sums(self.visual).argmax())


def split(
    rows: dict[int, torch.Tensor], records: list[Record], start: int, cells: torch.Tensor, text: int, size: int
) -> dict[int, LayerAttention]:
    """Splits {layer: (keys,)} attention into original and expanded tokens, by replaying the method's decisions.

    ``records``: the decisions on the prompt's one image; ``start``: tokens before the image; ``cells``: (tokens,) base-view position of
    each visual token, negative for none; ``text``: tokens after the image; ``size``: H * W.
    """
    attention: dict[int, LayerAttention] = {}
    for i, (positions, parts) in enumerate(replay(records, cells, max(rows, default=-1) + 1)):
        if i in rows:
            row, end, on_view = rows[i], start + len(positions), positions >= 0
            visual = row.new_zeros(size).index_add(0, positions[on_view], row[start:end][on_view])
            attention[i] = LayerAttention(visual, row[end : len(row) - text], parts)
            assert len(attention[i].expanded) == sum(o.tokens for o in parts), "the layer's keys are not those that the decisions speak of"
    return attention


@torch.no_grad()
def last_token_attention(
    backbone: Backbone, method: Method, image: Image.Image, key: str, question: str, layers: Collection[int]
) -> tuple[dict[int, LayerAttention], list[Record]]:
    """({layer: attention of the last prompt token}, decisions) of ``method`` on one question and one image.

    ``key``: the backbone's cache key of the image; ``question``: the benchmark's prompt.
    """
    visual = backbone.visual({key: image}, [(key, question)], method.pruner, method.restore_dropped)[0]
    ids = backbone.batch([visual.features], [question])["input_ids"][0]
    start = int((ids == backbone.model.config.image_token_id).nonzero()[0])
    with attach(backbone.model, method) as attached, record_attention(backbone.llm, layers) as rows:
        if attached is not None:
            attached.see([visual])
            attached.regions = [list(backbone.regions({key: image}).values())]
            attached.samples = [key]
        backbone.generate([visual.features], [question], 1)
        records = list(attached.records) if attached is not None else []
    height, width = backbone.grid
    text = len(ids) - start - len(visual.features)
    first = {i: row[0] for i, row in rows.items()}
    return split(first, records, start, visual.base_map.cells.cpu(), text, height * width), records


def evenness(weights: torch.Tensor) -> float | None:
    """Normalised entropy of (n,) weights, from 0 (one-hot) to 1 (uniform); None for fewer than two weights or a zero sum."""
    total = float(weights.sum())
    if len(weights) < 2 or total <= 0:
        return None
    p = (weights / total).double()
    return float(-(p * p.clamp(min=1e-300).log()).sum() / torch.tensor(float(len(p))).log())
