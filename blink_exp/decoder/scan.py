"""Scans: what a policy gets to see of a layer.

Before a layer, patch by patch (Blink): the attention of the last prompt token that the layer is about to compute, from the states at
its input. Behind a layer, token by token (FastV, SparseVLM): the attention of chosen text tokens, over the keys that the layer has
cached. Either way only the queries asked for are made, never an attention matrix, so the layers keep their fused kernels.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.core import saliency
from blink_exp.core.method import LayerPolicy, Scan, TokenPolicy
from blink_exp.core.saliency import Attended, PatchGrid, Scorer, Seen
from blink_exp.core.sequence import Segment, Sequence

if TYPE_CHECKING:
    from blink_exp.decoder.decode import Plan


def scan_patches(
    llm, i: int, sequence: Sequence, plan: Plan, policy: LayerPolicy, grid: PatchGrid, samples: list[str], cache: Cache, answer: int
) -> list[list[Scan | None]]:
    """One Scan for each image and row (None where a row has no such image), from the states at layer i's input.

    The first segment has been run already, so its keys are taken from the cache; the others' are projected here. Only the query
    of the last prompt token (all text queries where the scorer reads them) is made.
    """
    segments = sequence.segments()
    text = segments[-1]
    batch, prompt = text.states.shape[0], text.length - answer
    read: list[list[float]] = []
    if policy.scorer is not None:
        seen = attended(llm, i, segments, plan, cache, policy.scorer.queries == "text", prompt)
    out: list[list[Scan | None]] = []
    start = 0  # column of the next segment's first key
    for k in range(sequence.images):
        end = start + sequence.blocks[k].length
        expanded = sequence.expanded[k]
        if policy.scorer is not None:
            if sequence.layout.shown is not None or (policy.scan_expanded and expanded is not None):
                patches = torch.stack([_row_patches(policy, grid, seen.row(b), sequence, k, b, end) for b in range(batch)])
            else:
                columns = torch.arange(end - grid.height * grid.width, end, device=text.states.device)
                patches = grid.sums(policy.scorer(seen, columns))
            rho, region = saliency.saliency_ratio(patches)
            read = torch.cat([rho[:, None], region[:, None].to(rho), patches], dim=1).tolist()  # one copy from the device
        start = end + (expanded.length if expanded is not None else 0)
        row: list[Scan | None] = []
        for b in range(batch):
            found: dict[str, Any] = {"rho": read[b][0], "region": int(read[b][1]), "patch_scores": tuple(read[b][2:])} if read else {}
            row.append(Scan(i, samples[b], k, bool(sequence.origins[k][b]), **found) if sequence.layout.visual[b][k] else None)
        out.append(row)
    return out


def attended(llm, i: int, segments: list[Segment], plan: Plan, cache: Cache, all_queries: bool, prompt: int) -> Attended:
    """What scorers see at the input of layer i."""
    layer = llm.layers[i]
    attention, norm = layer.self_attn, layer.input_layernorm
    text, held = segments[-1], cast(Any, cache.layers[i])
    keys = [held.keys]
    for segment, (cos, sin) in zip(segments[1:], plan.rope[1:], strict=True):
        key = heads_of(attention, attention.k_proj(norm(segment.states)))
        keys.append(apply_rotary_pos_emb(key, key, cos, sin)[1])
    columns = slice(0 if all_queries else prompt - 1, prompt)
    query, visible = _queries(layer, text.states, columns, plan)
    return Attended(
        query,
        torch.cat(keys, dim=2),
        visible,
        text.valid[:, columns],
        attention.scaling,
        lambda: heads_of(attention, attention.q_proj(text.states[:, columns])),
        lambda: torch.cat([heads_of(attention, attention.k_proj(s.states)) for s in segments], dim=2),
    )


def heads_of(attention, x: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads * head_dim) to (batch, heads, tokens, head_dim)."""
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _queries(layer, text: torch.Tensor, columns: slice | torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries of some tokens of the last segment, (batch, heads, queries, head_dim), from its states ``text`` at the layer's input, and
    which keys each may see, (batch, queries, keys)."""
    cos, sin = (part[:, columns] for part in plan.rope[-1])
    query = heads_of(layer.self_attn, layer.self_attn.q_proj(layer.input_layernorm(text[:, columns])))
    query = apply_rotary_pos_emb(query, query, cos, sin)[0]
    order = torch.arange(plan.valid.shape[1], device=text.device)
    last_seen = order[-text.shape[1] :][columns]  # itself: the text stands last
    return query, plan.valid[:, None] & (order <= last_seen[:, None])


def _row_patches(policy, grid: PatchGrid, seen: Attended, sequence: Sequence, image: int, b: int, end: int) -> torch.Tensor:
    """``row_patches`` of one row and image, whose visual tokens stand in front of column ``end``."""
    layout, expanded = sequence.layout, sequence.expanded[image]
    if not layout.visual[b][image]:
        return torch.zeros(grid.p**2, device=seen.keys.device)
    parts, column = [], 0
    if policy.scan_expanded and expanded is not None:
        column = end + expanded.length - sequence.expanded_tokens(image, b)
        for origin in sequence.origins[image][b]:
            parts.append((origin.region, torch.arange(column, column + origin.tokens)))
            column += origin.tokens
    return row_patches(policy.scorer, grid, seen, layout.shown[b][image].cells if layout.shown is not None else None, end, parts)


def row_patches(
    scorer: Scorer, grid: PatchGrid, seen: Seen, cells: torch.Tensor | None, end: int, parts: list[tuple[int, torch.Tensor]]
) -> torch.Tensor:
    """(patches,) sums over the base view's tokens of one row, wherever they stand in front of column ``end``.

    ``cells``: what the visual tokens show, see ``Shown``; None: all of one view; ``parts``: (region, columns) of expanded tokens, which
    count towards the patch that they show.
    """
    cells = torch.arange(grid.height * grid.width) if cells is None else cells.cpu()
    columns = torch.arange(end - len(cells), end)[cells >= 0]
    cells = cells[cells >= 0]
    read = torch.cat([columns, *(own for _, own in parts)]).to(seen.visible.device, non_blocking=True)  # the device need not be waited for
    scores = scorer(seen, read)[0]
    sums = grid.sums_at(scores[: len(cells)], cells)
    for (region, _), part in zip(parts, scores[len(cells) :].split([len(own) for _, own in parts]) if parts else (), strict=True):
        sums[region] += part.sum()
    return sums


def find_raters(policy: TokenPolicy, sequence: Sequence, answer: int) -> torch.Tensor:
    """(batch, text) bool: the text tokens whose attention the policy reads. Of the embeddings, so ``sequence`` has not run yet."""
    text = sequence.blocks[-1]
    prompt = text.length - answer
    chosen = torch.zeros_like(text.valid[:, :prompt])
    for b, real in enumerate(text.valid[:, :prompt]):
        visual = sequence.row_visual(b)
        if len(visual):
            chosen[b, real] = policy.raters(visual, text.states[b, :prompt][real])
    return chosen


def scan_tokens(
    llm, i: int, sequence: Sequence, plan: Plan, asking: torch.Tensor, raters: torch.Tensor, samples: list[str], cache: Cache
) -> list[Scan | None]:
    """One Scan for each row (None without an image) behind layer i, whose attention from the raters to the visual tokens it holds.

    ``asking``: (batch, text, hidden) states of the text at the layer's input; ``raters``: see ``find_raters``.
    """
    layer, held = llm.layers[i], cast(Any, cache.layers[i])
    columns = raters.any(0).nonzero()[:, 0]
    query, visible = _queries(layer, asking, columns, plan)
    nothing = torch.empty(0)
    seen = Attended(query, held.keys, visible, raters[:, columns], layer.self_attn.scaling, lambda: nothing, lambda: nothing)
    scores = saliency.text_mean(seen, torch.arange(plan.valid.shape[1], device=asking.device))
    out: list[Scan | None] = []
    for b, sample in enumerate(samples):
        found = tuple(scores[b, sequence.visual_columns(b)].tolist())
        states = sequence.row_visual(b)
        scan = Scan(
            i, sample, 0, False, visual=sum(sequence.prompt.visual[b]), token_scores=found, distances=functools.partial(_distances, states)
        )
        out.append(scan if found else None)
    return out


def _distances(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances between rows of (tokens, hidden) ``states``, over sqrt(hidden), on the CPU. Exact: equal rows are 0 apart."""
    x = states[indices.to(states.device)].float()
    found = by_products(x) if x.device.type == "cpu" else torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return found.cpu() / math.sqrt(x.shape[1])


def by_products(x: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances of (n, width) rows by one matrix product, on a CPU 18 times as fast as differences one by one. In float64, as
    the difference of two large numbers is a small one; what is left there of rows that are equal is rounding, and becomes 0."""
    centred = x.double()
    centred -= centred.mean(0)
    products = centred @ centred.T
    both = products.diagonal()[:, None] + products.diagonal()
    apart = both - 2 * products
    return apart.masked_fill(apart < 1e-12 * both, 0).sqrt().to(x)
