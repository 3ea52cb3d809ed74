"""What the last prompt token attends to while a method runs: original tokens and expanded ones, layer by layer.

A layer's fused kernel does not give its attention. One row of it is made again behind the layer, from the keys that it has just cached
and the query of its last token, so no attention matrix is ever made and the run itself is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp import saliency
from blink_exp.backbone.decode import Record
from blink_exp.backbone.load import Backbone
from blink_exp.methods.base import Method
from blink_exp.saliency import Attended, PatchGrid
from blink_exp.sequence import Decision, Drop, Expand, Retain

Part = tuple[int, int]  # (patch, tokens) of an expansion


@dataclass(frozen=True)
class Looked:
    """Attention of the last prompt token at one layer: softmax over every key that it sees, mean over heads.

    ``visual``: (H * W,) on the base view's tokens in raster order, 0 where one was dropped; ``expanded``: (tokens,) on the expanded
    segment; ``parts``: (patch, tokens) of each expansion in it, in order.
    """

    visual: torch.Tensor
    expanded: torch.Tensor
    parts: tuple[Part, ...]

    def region(self, grid: PatchGrid) -> int:
        """The patch with most attention on its original tokens."""
        return int(grid.sums(self.visual).argmax())


@contextlib.contextmanager
def recording(llm: Any, layers: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Gives a dict that holds {layer: (keys,)}: attention of the last token of whatever ran last through each of ``layers``.

    For a batch of one, which has no padding, with a cache. A prompt that runs segment by segment ends with its text, so what remains is
    the row of the last prompt token over all segments.
    """
    rows: dict[int, torch.Tensor] = {}
    hooks = [
        llm.layers[i].self_attn.register_forward_hook(functools.partial(_note, rows, i), with_kwargs=True) for i in sorted(set(layers))
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _note(rows: dict[int, torch.Tensor], i: int, module: Any, args: tuple, kwargs: dict[str, Any], _output: Any) -> None:
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    assert len(states) == 1, "a row without padding is read from a batch of one"
    cos, sin = kwargs["position_embeddings"]
    query = module.q_proj(states[:, -1:]).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    query = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])[0]
    keys = kwargs["past_key_values"].layers[i].keys
    every = torch.arange(keys.shape[2], device=keys.device)
    true, nothing = torch.ones(1, 1, dtype=torch.bool, device=keys.device), torch.empty(0)
    seen = Attended(query, keys, true.expand(1, 1, len(every)), true, module.scaling, lambda: nothing, lambda: nothing)
    rows[i] = saliency.attention(seen, every)[0].cpu()


def split(rows: dict[int, torch.Tensor], records: list[Record], start: int, cells: torch.Tensor, text: int, size: int) -> dict[int, Looked]:
    """{layer: (keys,)} of ``recording`` taken apart, by what the method did to the sequence.

    ``records``: the prompt's decisions on its one image; ``start``: tokens in front of the image; ``cells``: (tokens,) where on the base
    view each visual token stands, -1 for none; ``text``: tokens behind the image; ``size``: H * W.
    """
    found: dict[int, Looked] = {}
    parts: tuple[Part, ...] = ()
    decided = {r.scan.layer: r for r in records}
    for i in range(max(rows, default=-1) + 1):
        record = decided.get(i)
        if record is not None:
            parts = _parts(parts, record.decision, record.visual_tokens - len(cells))
        if i in rows:
            end = start + len(cells)
            visual = rows[i].new_zeros(size).index_add(0, cells[cells >= 0], rows[i][start:end][cells >= 0])
            found[i] = Looked(visual, rows[i][end : len(rows[i]) - text], parts)
            assert len(found[i].expanded) == sum(n for _, n in parts), "the layer's keys are not those that the decisions speak of"
        if record is not None and isinstance(record.decision, Retain):  # works behind its layer
            merged = cells.new_full((len(record.decision.clusters),), -1)
            cells = torch.cat([cells[list(record.decision.indices)], merged])
    return found


def _parts(parts: tuple[Part, ...], decision: Decision, expanded: int) -> tuple[Part, ...]:
    """The expansions that are there once ``decision`` was carried out, which leaves ``expanded`` expanded tokens."""
    if isinstance(decision, Drop):
        return ()
    if not isinstance(decision, Expand) or (parts and decision.on_reexpand == "keep"):
        return parts
    stays = parts if decision.on_reexpand == "append" else ()
    return (*stays, (decision.region, expanded - sum(n for _, n in stays)))


@torch.no_grad()
def look(
    backbone: Backbone, method: Method, image: Image.Image, key: str, question: str, layers: Iterable[int]
) -> tuple[dict[int, Looked], list[Record]]:
    """({layer: what the last prompt token attends to}, the decisions) while ``method`` reads one question on one image.

    ``key``: an id of the image, under which the backbone keeps what it made of it; ``question``: as the benchmark's prompt has it.
    """
    visual = backbone.visual({key: image}, [(key, question)], method.pruner, method.recall)[0]
    ids = backbone.batch([visual.features], [question])["input_ids"][0]
    start = int((ids == backbone.model.config.image_token_id).nonzero()[0])
    with method.attach(backbone.model) as attached, recording(backbone.llm, layers) as rows:
        if attached is not None:
            attached.images = [[visual.shown]]
            attached.samples = [key]
        backbone.generate([visual.features], [question], 1)
        records = list(attached.records) if attached is not None else []
    height, width = backbone.grid
    text = len(ids) - start - len(visual.features)
    return split(rows, records, start, visual.shown.cells.cpu(), text, height * width), records


def evenness(weights: torch.Tensor) -> float | None:
    """Entropy of (n,) weights over that of equal ones, 0 (all on one) to 1 (all equal); None where there is nothing to spread."""
    total = float(weights.sum())
    if len(weights) < 2 or total <= 0:
        return None
    p = (weights / total).double()
    return float(-(p * p.clamp(min=1e-300).log()).sum() / torch.tensor(float(len(p))).log())
