"""Scans: the attention scores that a policy decides by.

Before a layer, patch by patch (Blink): the attention of the last prompt token that the layer is about to compute, from the states at
its input. Behind a layer, token by token: the attention of chosen text tokens that it has paid (FastV, SparseVLM) or that the next
layer is about to pay (PyramidDrop), or no attention, but keys and outputs (DART). Only the required queries are computed, never an
attention matrix, and shared keys are not copied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.core import saliency
from blink_exp.core.base_view import BaseViewMap
from blink_exp.core.method import KeyScan
from blink_exp.core.saliency import PatchGrid, Scorer, ScorerInputs, products
from blink_exp.decoder.segments import Front, Segment, length, shared_kv, starts
from blink_exp.decoder.shared_attention import alike, by_part, by_row, rows_of, stacked
from blink_exp.decoder.tiles import by_value, independent, linear


@dataclass(frozen=True)
class ScanRow:
    """The segments in front of one text; see ``Branch`` and ``QuestionInputs``."""

    blocks: Front
    expanded: tuple[Front, ...]
    base_maps: tuple[BaseViewMap | None, ...]

    @property
    def front(self) -> Front:
        return tuple(s for block, parts in zip(self.blocks, self.expanded, strict=True) for s in (block, *parts) if s.tokens)

    def visual_end(self, image: int) -> int:
        """Tokens up to and including the last visual token of an image."""
        return (
            sum(b.tokens + length(parts) for b, parts in zip(self.blocks[:image], self.expanded, strict=False)) + self.blocks[image].tokens
        )

    @property
    def visual_places(self) -> list[int]:
        """Places in the row's sequence of all visual tokens."""
        ends = [self.visual_end(k) for k in range(len(self.blocks))]
        return [place for end, block in zip(ends, self.blocks, strict=True) for place in range(end - block.visual, end)]


@dataclass(frozen=True)
class ScanBatch:
    """The texts that a scan at layer ``layer`` reads, each with its row of ``rows``.

    ``states``, ``valid``, ``positions``: at the layer's input, (rows, tokens, ...), padded on the left, the last prompt token last.
    """

    llm: Any
    layer: int
    rows: Rows[ScanRow]
    states: torch.Tensor
    valid: torch.Tensor
    positions: torch.Tensor

    def parts(self) -> Iterator[tuple[list[int], ScanBatch]]:
        """The batches that are scanned by themselves, each with the indices of its rows: all rows, or, where rows are kept
        ``independent``, those of equal lengths without their padding."""
        if not independent(self.states):
            yield list(range(len(self.rows))), self
            return
        lengths = zip((length(row.front) for row in self.rows), self.valid.sum(1).tolist(), strict=True)
        for (_, tokens), rows in by_value(list(lengths)).items():
            texts = (x[rows, -tokens:] for x in (self.states, self.valid, self.positions))
            yield rows, ScanBatch(self.llm, self.layer, [self.rows[b] for b in rows], *texts)


class LazyScorerInputs:
    """``ScorerInputs`` whose query-key products are computed when they are read.

    ``make``: returns (batch, heads, queries, keys) float32; ``make_raw``: returns (batch, heads, keys), None where the scorer does not
    declare ``raw``.
    """

    def __init__(
        self,
        visible: torch.Tensor,
        text: torch.Tensor,
        make: Callable[[], torch.Tensor],
        make_raw: Callable[[], torch.Tensor] | None = None,
    ):
        self.visible, self.text, self._make, self._make_raw = visible, text, make, make_raw
        self._made: torch.Tensor | None = None
        self._raw: torch.Tensor | None = None

    def logits(self, queries: slice) -> torch.Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made[:, :, queries]

    def raw_logits(self) -> torch.Tensor:
        if self._make_raw is None:
            raise TypeError("a scorer that reads raw_logits() declares it: @scorer(raw=True)")
        if self._raw is None:
            self._raw = self._make_raw()
        return self._raw

    def row(self, b: int) -> LazyScorerInputs:
        """One row as a batch of its own."""
        one = slice(b, b + 1)
        raw = (lambda: self.raw_logits()[one]) if self._make_raw is not None else None
        return LazyScorerInputs(self.visible[one], self.text[one], lambda: self.logits(slice(None))[one], raw)


def scan_patches(batch: ScanBatch, scorer: Scorer, grid: PatchGrid, scan_expanded: bool) -> dict[tuple[int, int], dict[str, Any]]:
    """{(row, image): {rho, region, patch_scores}}, from the states at the layer's input.

    ``scan_expanded``: whether expanded tokens count towards the patch that they show.
    """
    out: dict[tuple[int, int], dict[str, Any]] = {}
    for rows, part in batch.parts():
        out |= {(rows[b], k): fields for (b, k), fields in _scan_part(part, scorer, grid, scan_expanded).items()}
    return out


def _scan_part(batch: ScanBatch, scorer: Scorer, grid: PatchGrid, scan_expanded: bool) -> dict[tuple[int, int], dict[str, Any]]:
    rows, states = batch.rows, batch.states
    queries = slice(0 if scorer.queries == "text" else states.shape[1] - 1, states.shape[1])
    inputs, ahead = scorer_inputs(batch, queries, raw=scorer.raw)
    cells = grid.height * grid.width
    patches_of: dict[tuple[int, int], torch.Tensor] = {}
    for k in range(max(len(row.blocks) for row in rows)):
        with_image = [b for b, row in enumerate(rows) if k < len(row.blocks) and row.blocks[k].visual]
        ends = {b: ahead - length(rows[b].front) + rows[b].visual_end(k) for b in with_image}
        if all(rows[b].base_maps[k] is None and not (scan_expanded and rows[b].expanded[k]) for b in with_image):
            columns = torch.tensor([[ends.get(b, cells) - cells] for b in range(len(rows))]) + torch.arange(cells)
            patches = grid.sums(scorer(inputs, columns.to(states.device, non_blocking=True)))
            patches_of |= {(b, k): patches[b] for b in with_image}
        else:
            patches_of |= {(b, k): row_patches(scorer, grid, inputs.row(b), rows[b], k, ends[b], scan_expanded) for b in with_image}
    patch_scores = torch.stack(list(patches_of.values()))
    rho, region = saliency.saliency_ratio(patch_scores)
    values = torch.cat([rho[:, None], region[:, None].to(rho), patch_scores], dim=1).tolist()  # one copy from the device
    return {
        pair: {"rho": r, "region": int(best), "patch_scores": tuple(rest)}
        for pair, (r, best, *rest) in zip(patches_of, values, strict=True)
    }


def row_patches(
    scorer: Scorer, grid: PatchGrid, inputs: ScorerInputs, row: ScanRow, image: int, end: int, scan_expanded: bool
) -> torch.Tensor:
    """(patches,) sums over the base view's tokens of one row and image, wherever they stand in front of column ``end``; behind that stand
    the expanded ones."""
    base_map = row.base_maps[image]
    cells = torch.arange(grid.height * grid.width) if base_map is None else base_map.cells.cpu()
    columns = torch.arange(end - len(cells), end)[cells >= 0]
    cells = cells[cells >= 0]
    parts = row.expanded[image] if scan_expanded else ()
    read_columns = torch.cat([columns, torch.arange(end, end + length(parts))])
    scores = scorer(inputs, read_columns.to(inputs.visible.device, non_blocking=True))[0]  # the device need not be waited for
    sums = grid.sums_at(scores[: len(cells)], cells)
    for part, part_scores in zip(parts, scores[len(cells) :].split([part.tokens for part in parts]) if parts else (), strict=True):
        sums[part.region] += part_scores.sum()
    return sums


def scan_tokens(batch: ScanBatch, keys: torch.Tensor | None, raters: torch.Tensor) -> list[tuple[float, ...]]:
    """The attention in the layer from the raters to each visual token that is left, mean over heads and raters.

    ``keys``: (rows, kv_heads, tokens, head_dim) of the texts in the layer; None: it has not run, they are computed. ``raters``: (rows,
    tokens) bool.
    """
    out: dict[int, tuple[float, ...]] = {}
    for rows, part in batch.parts():
        text = part.states.shape[1]
        part_keys = None if keys is None else keys[rows, :, -text:]
        out |= zip(rows, _scan_tokens_of_part(part, part_keys, raters[rows, -text:]), strict=True)
    return [out[b] for b in range(len(batch.rows))]


def _scan_tokens_of_part(batch: ScanBatch, keys: torch.Tensor | None, raters: torch.Tensor) -> list[tuple[float, ...]]:
    queries = raters.any(0).nonzero()[:, 0]
    inputs, ahead = scorer_inputs(batch, queries, keys)
    inputs.text = raters[:, queries]
    scores = saliency.text_mean(inputs, torch.arange(inputs.visible.shape[2], device=batch.states.device))
    out = []
    for row, row_scores in zip(batch.rows, scores.tolist(), strict=True):
        first = ahead - length(row.front)
        out.append(tuple(row_scores[first + place] for place in row.visual_places))
    return out


def scan_keys(llm: Any, i: int, row: ScanRow, states: torch.Tensor, keys: torch.Tensor) -> KeyScan:
    """Keys of layer i, which has just run, and the likeness of its outputs. ``states``, ``keys``: (text, hidden) and (kv_heads, text,
    head_dim) of the row's prompt text."""
    visual_keys = [block.keys[i][:, block.tokens - block.visual :] for block in row.blocks]
    norms = torch.cat([*visual_keys, keys], dim=1).float().abs().sum((0, 2))
    ahead = length(row.front)
    outputs = torch.cat([*(block.visual_at(i + 1) for block in row.blocks), states])
    visual = sum(block.visual for block in row.blocks)
    return KeyScan(
        tuple(norms.tolist()),
        (*row.visual_places, *range(ahead, ahead + len(states))),
        functools.partial(similarities, llm.norm, outputs, visual),
    )


def scorer_inputs(
    batch: ScanBatch, queries: slice | torch.Tensor, keys: torch.Tensor | None = None, raw: bool = False
) -> tuple[LazyScorerInputs, int]:
    """Inputs of a scorer, and the number of key columns in front of the texts.

    Columns are each row's front, padded on the left, then its text. ``queries``: query tokens of the texts; ``keys``: of the texts; None:
    computed here.
    """
    llm, i, states, valid, positions = batch.llm, batch.layer, batch.states, batch.valid, batch.positions
    layer = llm.layers[i]
    attention = layer.self_attn
    fronts = [row.front for row in batch.rows]
    ahead = max(map(length, fronts))
    columns = torch.arange(ahead, device=states.device)
    real = columns >= ahead - torch.tensor([length(front) for front in fronts], device=states.device)[:, None]
    real = torch.cat([real, valid], dim=1)
    order = torch.arange(real.shape[1], device=states.device)
    visible = real[:, None] & (order <= order[ahead:][queries][:, None])

    def make() -> torch.Tensor:
        normed = layer.input_layernorm(states if keys is None else states[:, queries])
        cos, sin = llm.rotary_emb(normed, position_ids=positions if keys is None else positions[:, queries])
        text_keys, selected = keys, slice(None) if keys is not None else queries
        if text_keys is None:
            text_keys = heads_of(attention, linear(attention.k_proj, normed))
            text_keys = apply_rotary_pos_emb(text_keys, text_keys, cos, sin)[1]
        query = heads_of(attention, linear(attention.q_proj, normed[:, selected]))
        query = apply_rotary_pos_emb(query, query, cos[:, selected], sin[:, selected])[0]
        keys_of = _keys_at(llm, i, {s: start for front in fronts for s, start in zip(front, starts(front), strict=False)})
        products = _spread(query, [[keys_of[s] for s in front] for front in fronts], ahead, text_keys).float()
        return products * float(attention.scaling)

    def make_raw() -> torch.Tensor:
        segments = dict.fromkeys(s for front in fronts for s in front)
        keys_of = {s: _Keys(heads_of(attention, linear(attention.k_proj, s.at(i)[None]))[0]) for s in segments}
        text_keys = heads_of(attention, linear(attention.k_proj, states))
        query = heads_of(attention, linear(attention.q_proj, states[:, -1:]))
        return _spread(query, [[keys_of[s] for s in front] for front in fronts], ahead, text_keys).float()[:, :, 0]

    return LazyScorerInputs(visible, valid[:, queries], make, make_raw if raw else None), ahead


def heads_of(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads * head_dim) to (batch, heads, tokens, head_dim)."""
    heads: torch.Tensor = x.unflatten(-1, (-1, attention.head_dim))
    return heads.transpose(1, 2)


class _Keys:
    """Keys of a segment, (kv_heads, tokens, head_dim), in the form that ``shared_kv`` reads: as those of layer 0."""

    def __init__(self, keys: torch.Tensor):
        self.keys = self.values = {0: keys}


def _keys_at(llm: Any, i: int, first: dict[Segment, int]) -> dict[Segment, _Keys]:
    """Keys of segments in layer i, also of segments that have not run through it. ``first``: {segment: its first free position number}."""
    out = {segment: _Keys(segment.keys[i]) for segment in first if i in segment.keys}
    waiting: dict[int, list[Segment]] = {}  # those of one length at once
    for segment in first:
        if segment not in out:
            waiting.setdefault(segment.tokens, []).append(segment)
    layer = llm.layers[i]
    for segments in waiting.values():
        states = stacked([segment.at(i) for segment in segments])
        key = heads_of(layer.self_attn, linear(layer.self_attn.k_proj, layer.input_layernorm(states)))
        positions = torch.stack([segment.positions(first[segment]) for segment in segments])
        cos, sin = llm.rotary_emb(states, position_ids=positions)
        keys = apply_rotary_pos_emb(key, key, cos, sin)[1]
        out |= {segment: _Keys(segment_keys) for segment, segment_keys in zip(segments, keys, strict=True)}
    return out


def _spread(query: torch.Tensor, fronts: list[list[Any]], ahead: int, text_keys: torch.Tensor) -> torch.Tensor:
    """(rows, heads, queries, ahead + text) products of (rows, heads, queries, head_dim) ``query`` with the keys of each row's front, like
    parts at once, and with the texts' ``text_keys``."""
    out = query.new_zeros(*query.shape[:3], ahead + text_keys.shape[2])
    out[..., ahead:] = products(query, text_keys)
    filled = [ahead - sum(segment.keys[0].shape[1] for segment in front) for front in fronts]
    for parts in alike(shared_kv(0, fronts)):
        rows, tokens = rows_of(parts), parts[0].keys.shape[1]
        part_query = query[rows]
        part_products = by_row(by_part(part_query, parts) @ stacked([part.keys for part in parts]).mT, part_query)
        numbers = [row for part in parts for row in range(part.start, part.stop)]
        if len(firsts := {filled[row] for row in numbers}) == 1:
            (first,) = firsts
            out[rows, ..., first : first + tokens] = part_products
        else:
            for row, row_products in zip(numbers, part_products, strict=True):
                out[row, ..., filled[row] : filled[row] + tokens] = row_products
        for row in numbers:
            filled[row] += tokens
    return out


def distances(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances between rows of (tokens, hidden) ``states``, over sqrt(hidden), on the CPU. Exact: equal rows are 0 apart."""
    x = states[indices.to(states.device)].float()
    result = pairwise_distances(x) if x.device.type == "cpu" else torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return result.cpu() / math.sqrt(x.shape[1])


def similarities(norm: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, visual: int, tokens: torch.Tensor) -> torch.Tensor:
    """(n, visual) float32 cosine similarities of ``tokens`` with the first ``visual`` rows of (tokens, hidden) ``states`` behind ``norm``,
    on the CPU. Without a matrix product, whose tiles may give equal rows unequal results."""
    features = norm(states).float()
    rows = [F.cosine_similarity(features[token], features[:visual], dim=-1) for token in tokens.tolist()]
    return torch.stack(rows).cpu()


def pairwise_distances(x: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances of (n, width) rows by one matrix product, on a CPU 18 times as fast as pairwise differences.

    In float64 against cancellation; distances of equal rows, which are rounding errors, become 0.
    """
    centred = x.double()
    centred -= centred.mean(0)
    products = centred @ centred.T
    both = products.diagonal()[:, None] + products.diagonal()
    apart = both - 2 * products
    return apart.masked_fill(apart < 1e-12 * both, 0).sqrt().to(x)
