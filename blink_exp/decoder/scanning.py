"""What policies see of a layer, for many branches at once: the scans of ``backbone.scan``, over keys that branches share."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.core import saliency
from blink_exp.core.base_view import Shown
from blink_exp.core.saliency import PatchGrid, Scorer, Seen, products
from blink_exp.core.sequence import Segment
from blink_exp.decoder.expansions import Chain, Expansion, front, length
from blink_exp.decoder.prefixes import Prefix
from blink_exp.decoder.scan import heads_of, row_patches


@dataclass(frozen=True)
class Asked:
    """A branch as a scan needs it."""

    prefix: Prefix
    chain: Chain
    shown: Shown | None


@dataclass
class Products:
    """``Seen`` from products that were made already; the raw ones are of visual and expanded tokens only, which scorers read, else 0."""

    visible: torch.Tensor
    text: torch.Tensor
    made: torch.Tensor
    raw: torch.Tensor | None

    def logits(self, queries: slice) -> torch.Tensor:
        return self.made[:, :, queries]

    def raw_logits(self) -> torch.Tensor:
        assert self.raw is not None
        return self.raw

    def row(self, b: int) -> Products:
        one = slice(b, b + 1)
        return Products(self.visible[one], self.text[one], self.made[one], None if self.raw is None else self.raw[one])


def scan(
    llm: Any, i: int, asked: Rows[Asked], text: Segment, positions: torch.Tensor, scorer: Scorer, grid: PatchGrid, scan_expanded: bool
) -> list[dict[str, Any]]:
    """{rho, region, patch_scores} of each branch, from the states at layer i's input, which the texts have not run through yet.

    ``text``: (branches, tokens, hidden); ``positions``: (branches, tokens) of its tokens.
    """
    prefixes = max(a.prefix.tokens for a in asked)
    columns = Columns(prefixes, prefixes + max(length(a.chain) for a in asked), text.length)
    seen = products_of(llm, i, asked, text, positions, columns, scorer)
    cells = grid.height * grid.width
    if all(a.shown is None and not (scan_expanded and a.chain) for a in asked):
        patches = grid.sums(scorer(seen, torch.arange(prefixes - cells, prefixes, device=text.states.device)))
    else:
        patches = torch.stack([_row(scorer, grid, seen.row(b), a, columns, scan_expanded) for b, a in enumerate(asked)])
    rho, region = saliency.saliency_ratio(patches)
    found = zip(rho.tolist(), region.tolist(), patches.tolist(), strict=True)
    return [{"rho": ratio, "region": best, "patch_scores": tuple(scores)} for ratio, best, scores in found]


@dataclass(frozen=True)
class Columns:
    """Where keys stand, as if every row had its own: prefixes end at ``prefixes``, expanded segments at ``expanded``, both padded on the
    left; ``text`` columns follow."""

    prefixes: int
    expanded: int
    text: int

    def real(self, asked: Rows[Asked], text: torch.Tensor) -> torch.Tensor:
        """(branches, columns), false on padding; ``text``: (branches, tokens) that of the texts."""
        ahead = torch.zeros(len(asked), self.expanded, dtype=torch.bool, device=text.device)
        for b, a in enumerate(asked):
            ahead[b, self.prefixes - a.prefix.tokens : self.prefixes] = True
            ahead[b, self.expanded - length(a.chain) :] = True
        return torch.cat([ahead, text], dim=1)


def _row(scorer: Scorer, grid: PatchGrid, seen: Seen, a: Asked, columns: Columns, scan_expanded: bool) -> torch.Tensor:
    parts, column = [], columns.expanded - length(a.chain)
    for e in a.chain if scan_expanded else ():
        parts.append((e.wish.region, torch.arange(column, column + e.tokens)))
        column += e.tokens
    return row_patches(scorer, grid, seen, a.shown.cells if a.shown is not None else None, columns.prefixes, parts)


def products_of(llm: Any, i: int, asked: Rows[Asked], text: Segment, positions: torch.Tensor, columns: Columns, scorer: Scorer) -> Products:
    layer = llm.layers[i]
    attention = layer.self_attn
    asking = slice(0 if scorer.queries == "text" else text.length - 1, text.length)
    real = columns.real(asked, text.valid)
    order = torch.arange(real.shape[1], device=real.device)
    visible = real[:, None] & (order <= order[-text.length :][asking][:, None])
    chains = list(dict.fromkeys(e for a in asked for e in a.chain))
    if scorer.raw:
        held = {e: _Keys(i, heads_of(attention, attention.k_proj(e.at(i)[None]))[0]) for e in chains}
        raw = {a.prefix: a.prefix.states[i] for a in asked}
        shadow = {p: _Keys(i, heads_of(attention, attention.k_proj(states[None]))[0]) for p, states in raw.items()}
        query = heads_of(attention, attention.q_proj(text.states[:, -1:]))
        made = _spread(query, i, [(shadow[a.prefix], [held[e] for e in a.chain]) for a in asked], columns, None).float()
        return Products(visible, text.valid[:, asking], made, made[:, :, 0])
    normed = layer.input_layernorm(text.states)
    cos, sin = llm.rotary_emb(normed, position_ids=positions)
    own = heads_of(attention, attention.k_proj(normed))
    query = heads_of(attention, attention.q_proj(normed[:, asking]))
    query = apply_rotary_pos_emb(query, query, cos[:, asking], sin[:, asking])[0]
    own = apply_rotary_pos_emb(own, own, cos, sin)[1]
    held = {e: _projected(e, llm, i) for e in chains}
    made = _spread(query, i, [(a.prefix, [held[e] for e in a.chain]) for a in asked], columns, own)
    return Products(visible, text.valid[:, asking], made.float() * attention.scaling, None)


@dataclass(eq=False)
class _Keys:
    """Keys of one layer, (kv_heads, tokens, head_dim), where a scan would look for those of a prefix or an expanded segment."""

    layer: int
    own: torch.Tensor

    @property
    def keys(self) -> dict[int, torch.Tensor]:
        return {self.layer: self.own}

    values = keys


def _projected(e: Expansion, llm: Any, i: int) -> _Keys:
    """Keys of an expanded segment in front of a layer that it has not run through, and perhaps never will."""
    layer = llm.layers[i]
    key = heads_of(layer.self_attn, layer.self_attn.k_proj(layer.input_layernorm(e.at(i)[None])))
    cos, sin = llm.rotary_emb(e.at(i)[None], position_ids=e.positions()[None])
    return _Keys(i, apply_rotary_pos_emb(key, key, cos, sin)[1][0])


def _spread(query: torch.Tensor, i: int, rows: list, columns: Columns, own: torch.Tensor | None) -> torch.Tensor:
    """(branches, heads, queries, columns) products of a (branches, heads, queries, head_dim) ``query`` with what stands in front of each
    row, part by part, and with the text's ``own`` keys."""
    branches, heads, asking, width = query.shape
    out = query.new_zeros(branches, heads, asking, columns.expanded + columns.text)
    if own is not None:
        out[..., columns.expanded :] = products(query, own)
    filled = [sum(part.keys[i].shape[1] for part in chain) for _, chain in rows]  # columns left of the expanded segments' end
    for part in front(i, rows):
        cut, tokens = slice(part.start, part.stop), part.keys.shape[1]
        some = query[cut].transpose(0, 1).reshape(1, heads, -1, width)
        found = products(some, part.keys[None]).reshape(heads, -1, asking, tokens).transpose(0, 1)
        if part.place == 0:
            out[cut, ..., columns.prefixes - tokens : columns.prefixes] = found
            continue
        for b in range(part.start, part.stop):  # neighbours with a segment in common may have others that differ
            start = columns.expanded - filled[b]
            out[b, ..., start : start + tokens] = found[b - part.start]
            filled[b] -= tokens
    return out
