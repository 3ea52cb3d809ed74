"""What policies see of a layer, for many branches at once: the same scans as ``backbone.scan``, over keys that branches share."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp import saliency
from blink_exp.backbone.scan import heads_of, row_patches
from blink_exp.saliency import Attended, PatchGrid, Scorer
from blink_exp.sequence import Segment
from blink_exp.sharing.expansions import Chain, Expansion, before, length
from blink_exp.sharing.prefixes import Prefix
from blink_exp.shown import Shown


@dataclass(frozen=True)
class Asked:
    """A branch as a scan needs it."""

    prefix: Prefix
    chain: Chain
    shown: Shown | None


def scan(
    llm: Any, i: int, asked: Rows[Asked], text: Segment, positions: torch.Tensor, scorer: Scorer, grid: PatchGrid, scan_expanded: bool
) -> list[dict[str, Any]]:
    """{rho, region, patch_scores} of each branch, from the states at layer i's input, which the texts have not run through yet.

    ``text``: (branches, tokens, hidden); ``positions``: (branches, tokens) of its tokens.
    """
    seen, ends = attended(llm, i, asked, text, positions, scorer is saliency.text_mean)
    cells = grid.height * grid.width
    if all(a.shown is None and not (scan_expanded and a.chain) for a in asked):
        columns = torch.arange(ends[0] - cells, ends[0], device=text.states.device)
        patches = grid.sums(scorer(seen, columns))
    else:
        patches = torch.stack([_row(scorer, grid, seen.row(b), a, ends, scan_expanded) for b, a in enumerate(asked)])
    rho, region = saliency.saliency_ratio(patches)
    found = zip(rho.tolist(), region.tolist(), patches.tolist(), strict=True)
    return [{"rho": ratio, "region": best, "patch_scores": tuple(scores)} for ratio, best, scores in found]


def _row(scorer: Scorer, grid: PatchGrid, seen: Attended, a: Asked, ends: tuple[int, int], scan_expanded: bool) -> torch.Tensor:
    parts, column = [], ends[1] - length(a.chain)
    for e in a.chain if scan_expanded else ():
        parts.append((e.wish.region, torch.arange(column, column + e.tokens)))
        column += e.tokens
    return row_patches(scorer, grid, seen, a.shown.cells if a.shown is not None else None, ends[0], parts)


def attended(
    llm: Any, i: int, asked: Rows[Asked], text: Segment, positions: torch.Tensor, all_queries: bool
) -> tuple[Attended, tuple[int, int]]:
    """What scorers see, and the columns at which the prefixes and the expanded segments end."""
    attention, norm = llm.layers[i].self_attn, llm.layers[i].input_layernorm
    rows = [(a.prefix, a.chain) for a in asked]
    projected = {e: _Keyed(e, llm, i) for e in dict.fromkeys(e for a in asked for e in a.chain)}
    shadow = [(prefix, tuple(projected[e] for e in chain)) for prefix, chain in rows]
    keys, _, real = before(i, shadow, text.length)
    normed = norm(text.states)
    cos, sin = llm.rotary_emb(normed, position_ids=positions)
    own = heads_of(attention, attention.k_proj(normed))
    keys[:, :, -text.length :] = apply_rotary_pos_emb(own, own, cos, sin)[1]
    columns = slice(0 if all_queries else text.length - 1, text.length)
    query = heads_of(attention, attention.q_proj(normed[:, columns]))
    query = apply_rotary_pos_emb(query, query, cos[:, columns], sin[:, columns])[0]
    valid = torch.cat([real, text.valid], dim=1)
    order = torch.arange(valid.shape[1], device=valid.device)
    visible = valid[:, None] & (order <= order[-text.length :][columns][:, None])
    first, longest = max(p.tokens for p, _ in rows), max(length(chain) for _, chain in rows)
    seen = Attended(
        query,
        keys,
        visible,
        text.valid[:, columns],
        attention.scaling,
        lambda: heads_of(attention, attention.q_proj(text.states[:, columns])),
        lambda: _raw(attention, i, rows, keys, first, longest),
    )
    return seen, (first, first + longest)


class _Keyed:
    """An expansion in front of a layer that it has not run through: its keys are projected, its values do not matter to a scan."""

    def __init__(self, e: Expansion, llm: Any, i: int):
        layer = llm.layers[i]
        key = heads_of(layer.self_attn, layer.self_attn.k_proj(layer.input_layernorm(e.states[None])))
        cos, sin = llm.rotary_emb(e.states[None], position_ids=e.positions()[None])
        self.keys = {i: apply_rotary_pos_emb(key, key, cos, sin)[1][0]}
        self.values = self.keys
        self.tokens = e.tokens


def _raw(attention: Any, i: int, rows: Rows[tuple[Prefix, Chain]], like: torch.Tensor, first: int, longest: int) -> torch.Tensor:
    """Keys without norm and RoPE of the visual and the expanded tokens, the only ones that scorers read; elsewhere 0."""
    out = torch.zeros_like(like)
    known: dict[Any, torch.Tensor] = {}
    for b, (prefix, chain) in enumerate(rows):
        column = first + longest - length(chain)
        for part, states, end in [(prefix, prefix.states[i], first), *((e, e.states, 0) for e in chain)]:
            if part not in known:
                known[part] = heads_of(attention, attention.k_proj(states[None]))[0]
            if not end:
                column += len(states)
            stop = end or column
            out[b, :, stop - len(states) : stop] = known[part]
    return out
