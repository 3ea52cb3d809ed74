"""Patch scans: the attention that Blink decides by.

Before a layer, patch by patch: the attention of the last prompt token that the layer is about to compute, from the states at its input.
Only the required queries are computed, never an attention matrix, and shared keys are not copied. Policies that drop tokens behind a layer
read ``token_scans``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.core import saliency
from blink_exp.core.method import Method, Scan
from blink_exp.core.saliency import PatchGrid, Scorer, ScorerInputs, products
from blink_exp.core.views import BaseViewMap
from blink_exp.decoder.branches import Branch, QuestionInputs, Text, text_positions
from blink_exp.decoder.segments import Front, Segment, length, shared_kv, starts
from blink_exp.decoder.shared_attention import alike, by_part, by_row, rows_of, stacked
from blink_exp.decoder.tiles import by_value, independent, linear


@dataclass(frozen=True)
class ScanBatch:
    """The prompt texts that a scan at layer ``layer`` reads, one for each of ``branches``.

    ``states``, ``valid``, ``positions``: at the layer's input, (branches, tokens, ...), padded on the left, the last prompt token last.
    """

    llm: Any
    layer: int
    branches: Rows[Branch]
    states: torch.Tensor
    valid: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, llm: Any, i: int, branches: Rows[Branch], rows: Rows[int], text: Text, generated: int) -> ScanBatch:
        """The rows ``rows`` of ``branches`` and their ``text``, without the last ``generated`` tokens."""
        end = text.length - generated
        index = torch.tensor(rows, device=text.states.device)
        chosen, valid = [branches[r] for r in rows], text.valid[index, :end]
        return cls(llm, i, chosen, text.states[index, :end], valid, text_positions(chosen, valid))

    def parts(self, raters: torch.Tensor | None = None) -> Iterator[tuple[list[int], ScanBatch]]:
        """The batches that are scanned by themselves, each with the indices of its rows: all rows, or, where rows are kept
        ``independent``, those of equal lengths and, if given, equal ``raters``, (rows, tokens) bool, without their padding."""
        if not independent(self.states):
            yield list(range(len(self.branches))), self
            return
        fronts = [length(branch.front) for branch in self.branches]
        masks = [b"" if raters is None else raters[b].numpy().tobytes() for b in range(len(fronts))]
        alike_rows = by_value(list(zip(fronts, self.valid.sum(1).tolist(), masks, strict=True)))
        for (_, tokens, _), rows in alike_rows.items():
            texts = (x[rows, -tokens:] for x in (self.states, self.valid, self.positions))
            yield rows, ScanBatch(self.llm, self.layer, [self.branches[b] for b in rows], *texts)


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


class PatchScores(NamedTuple):
    """What a scorer says of one row's image, the fields of ``Scan``; without a scorer their defaults."""

    rho: float | None = None
    region: int | None = None
    patch_scores: tuple[float, ...] = ()


class PatchScanner:
    """Scans the branches of ``questions`` before a layer.

    Args:
        generated: generated tokens at the end of each text; scans read the last prompt token.
    """

    def __init__(self, llm: Any, questions: Rows[QuestionInputs], methods: Rows[Method], grids: Rows[PatchGrid | None], generated: int):
        self.llm, self.questions, self.methods, self.grids, self.generated = llm, questions, methods, grids, generated

    @torch.no_grad()  # decisions have no gradient
    def scan(self, i: int, branches: Rows[Branch], text: Text, deciding: Rows[tuple[int, int]]) -> dict[tuple[int, int], list[Scan]]:
        """{(row, point): a scan of each image} before layer i, for the pairs ``deciding``; points with one scorer and grid share a scan."""
        groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for r, p in deciding:
            policy: Any = self.methods[p].policy
            groups.setdefault((policy.scorer, policy.scan_expanded, self.grids[p]), []).append((r, p))
        out: dict[tuple[int, int], list[Scan]] = {}
        for (scorer, scan_expanded, grid), pairs in groups.items():
            rows = list(dict.fromkeys(r for r, _ in pairs))
            scores: dict[tuple[int, int], PatchScores] = {}
            if scorer is not None:
                base_maps = [self.questions[branches[r].question].base_maps for r in rows]
                batch = ScanBatch.of(self.llm, i, branches, rows, text, self.generated)
                scored = scan_patches(batch, base_maps, scorer, grid, scan_expanded)
                scores = {(rows[n], k): of_image for (n, k), of_image in scored.items()}
            for r, p in pairs:
                sample = self.questions[branches[r].question].sample
                out[r, p] = [
                    Scan(i, sample, k, bool(branches[r].expanded[k]), *scores.get((r, k), PatchScores()))
                    for k, block in enumerate(branches[r].blocks)
                    if block.visual
                ]
        return {pair: out[pair] for pair in deciding}


def scan_patches(
    batch: ScanBatch, base_maps: Rows[Rows[BaseViewMap | None]], scorer: Scorer, grid: PatchGrid, scan_expanded: bool
) -> dict[tuple[int, int], PatchScores]:
    """{(row, image): scores}, from the states at the layer's input.

    ``base_maps``: of each row's images, see ``QuestionInputs``; ``scan_expanded``: whether expanded tokens count towards the patch that
    they show.
    """
    out: dict[tuple[int, int], PatchScores] = {}
    for rows, part in batch.parts():
        scored = _scan_part(part, [base_maps[b] for b in rows], scorer, grid, scan_expanded)
        out |= {(rows[b], k): of_image for (b, k), of_image in scored.items()}
    return out


def _scan_part(
    batch: ScanBatch, base_maps: Rows[Rows[BaseViewMap | None]], scorer: Scorer, grid: PatchGrid, scan_expanded: bool
) -> dict[tuple[int, int], PatchScores]:
    rows, states = batch.branches, batch.states
    queries = slice(0 if scorer.queries == "text" else states.shape[1] - 1, states.shape[1])
    inputs, ahead = scorer_inputs(batch, queries, raw=scorer.raw)
    cells = grid.height * grid.width
    patches_of: dict[tuple[int, int], torch.Tensor] = {}
    for k in range(max(len(row.blocks) for row in rows)):
        with_image = [b for b, row in enumerate(rows) if k < len(row.blocks) and row.blocks[k].visual]
        ends = {b: ahead - length(rows[b].front) + rows[b].visual_end(k) for b in with_image}
        if all(base_maps[b][k] is None and not (scan_expanded and rows[b].expanded[k]) for b in with_image):
            columns = torch.tensor([[ends.get(b, cells) - cells] for b in range(len(rows))]) + torch.arange(cells)
            patches = grid.sums(scorer(inputs, columns.to(states.device, non_blocking=True)))
            patches_of |= {(b, k): patches[b] for b in with_image}
        else:
            for b in with_image:
                parts = rows[b].expanded[k] if scan_expanded else ()
                patches_of[b, k] = row_patches(scorer, grid, inputs.row(b), base_maps[b][k], parts, ends[b])
    patch_scores = torch.stack(list(patches_of.values()))
    rho, region = saliency.saliency_ratio(patch_scores)
    values = torch.cat([rho[:, None], region[:, None].to(rho), patch_scores], dim=1).tolist()  # one copy from the device
    return {pair: PatchScores(r, int(best), tuple(rest)) for pair, (r, best, *rest) in zip(patches_of, values, strict=True)}


def row_patches(
    scorer: Scorer, grid: PatchGrid, inputs: ScorerInputs, base_map: BaseViewMap | None, parts: Front, end: int
) -> torch.Tensor:
    """(patches,) sums over the base view's tokens of one row and image, wherever they stand in front of column ``end``; behind that stand
    the expanded ``parts``."""
    cells = torch.arange(grid.height * grid.width) if base_map is None else base_map.cells.cpu()
    columns = torch.arange(end - len(cells), end)[cells >= 0]
    cells = cells[cells >= 0]
    read_columns = torch.cat([columns, torch.arange(end, end + length(parts))])
    scores = scorer(inputs, read_columns.to(inputs.visible.device, non_blocking=True))[0]  # the device need not be waited for
    sums = grid.sums_at(scores[: len(cells)], cells)
    for part, part_scores in zip(parts, scores[len(cells) :].split([part.tokens for part in parts]) if parts else (), strict=True):
        sums[part.region] += part_scores.sum()
    return sums


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
    fronts = [branch.front for branch in batch.branches]
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
