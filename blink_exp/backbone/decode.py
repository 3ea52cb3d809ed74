"""The decoder, layer by layer and segment by segment, over unmodified layer modules.

Each segment runs over the keys and values of everything that stands before it, so its result does not depend on what comes behind:
`system | visual` is the same for every question and every decision, and Blink becomes "put a segment in front of the text, or take
it away". This loop serves prompts (``prefill``), generated tokens (``extend``) and the capture of training features
(``visual_states``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp import saliency
from blink_exp.backbone.cache import segmented
from blink_exp.methods.base import LayerPolicy, Method, Scan
from blink_exp.saliency import Attended, PatchGrid
from blink_exp.sequence import Decision, Expand, Keep, Layout, Segment, Sequence


@dataclass(frozen=True)
class Record:
    """One decision, as it was taken: what was seen, what was decided, how many visual tokens the layer then works on."""

    row: int
    scan: Scan
    decision: Decision
    visual_tokens: int


@dataclass
class Plan:
    """Positions (as cos and sin) and attention masks of a sequence's segments; made anew only when the sequence changes."""

    rope: list[tuple[torch.Tensor, torch.Tensor]]
    masks: list[torch.Tensor | None]
    valid: torch.Tensor
    next_position: torch.Tensor

    @classmethod
    def of(cls, llm, sequence: Sequence) -> Plan:
        segments, positions = sequence.segments(), sequence.positions()
        rope = [llm.rotary_emb(s.states, position_ids=p) for s, p in zip(segments, positions, strict=True)]
        valid, masks = segments[0].valid[:, :0], []
        for segment in segments:
            masks.append(_mask(llm, valid, segment.valid, segment.states.dtype))
            valid = torch.cat([valid, segment.valid], dim=1)
        # A token generated at step t stands at T_l + t, behind everything that layer l holds.
        return cls(rope, masks, valid, positions[-1][:, -1] + 1)


def _mask(llm, before: torch.Tensor, own: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """(batch or 1, 1, queries, keys): causal over a segment's own keys, everything real before it.

    None where the kernel's own causal rule says the same, which lets it skip the upper triangle. Queries on padding see
    themselves, since a row without any key would be nan in some kernels.
    """
    length = own.shape[1]
    padded = not (bool(before.all()) and bool(own.all()))
    if not padded and (before.shape[1] == 0 or length == 1):
        return None
    causal = torch.ones(length, length, dtype=torch.bool, device=own.device).tril()
    if padded:
        causal = (causal & own[:, None]) | torch.eye(length, dtype=torch.bool, device=own.device)
        mask = torch.cat([before[:, None].expand(-1, length, -1), causal], dim=2)[:, None]
    else:
        mask = torch.cat([causal.new_ones(length, before.shape[1]), causal], dim=1)[None, None]
    if "flash" in llm.config._attn_implementation:
        if padded:
            raise ValueError("FlashAttention cannot run a batch whose rows differ in length; use batch_size=1 or attn_implementation=sdpa")
        return None  # it aligns its causal rule with the last key, which is what a segment behind others needs
    if llm.config._attn_implementation == "eager":
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def _run(layer, states: torch.Tensor, rope, mask: torch.Tensor | None, cache: Cache) -> torch.Tensor:
    return layer(states, attention_mask=mask, position_embeddings=rope, position_ids=None, past_key_values=cache, use_cache=True)


def prefill(
    llm, layout: Layout, embeds: torch.Tensor, method: Method, grid: PatchGrid, samples: list[str], cache: Cache | None, answer: int = 0
) -> tuple[torch.Tensor, Cache | None, list[Record]]:
    """Runs a prompt under a method. Returns (batch, tokens, hidden) final states, the cache and the decisions.

    ``cache``: an empty cache to fill, or None to keep nothing; ``answer``: how many tokens at the end of the text were generated
    already, when everything is recomputed without a cache (the scan looks from the last prompt token, not from them).
    """
    policy = method.policy
    assert policy is not None
    keep = cache is not None
    cache = segmented(cache, len(llm.layers))
    sequence = Sequence(layout, layout.split(embeds), inherit=policy.inherit_positions)
    plan = Plan.of(llm, sequence)
    records: list[Record] = []
    for i, layer in enumerate(llm.layers):
        segments = sequence.segments()
        inputs = [sequence.visual_states(k) for k in range(sequence.images)]  # before the layer's norm (Blink, Alg. 1)
        first = _run(layer, segments[0].states, plan.rope[0], plan.masks[0], cache)
        if i in policy.layers:
            scans = scan(llm, i, sequence, plan, policy, grid, samples, cache, answer)
            changed = False
            for k in range(sequence.images):
                chosen = [s and policy.decide(i, s) for s in scans[k]]
                decisions: list[Decision] = [d or Keep() for d in chosen]
                made = {b: expansion(inputs[k][b], d, policy, grid, method, i) for b, d in enumerate(decisions) if isinstance(d, Expand)}
                before = sequence.expanded[k]
                sequence.apply(k, decisions, made, i)
                changed |= sequence.expanded[k] is not before
                records += [
                    Record(b, s, d, layout.visual + sequence.expanded_tokens(k, b))
                    for b, (s, d) in enumerate(zip(scans[k], decisions, strict=True))
                    if s
                ]
            if changed:
                plan = Plan.of(llm, sequence)
        segments = sequence.segments()
        segments[0].states = first
        for segment, rope, mask in zip(segments[1:], plan.rope[1:], plan.masks[1:], strict=True):
            segment.states = _run(layer, segment.states, rope, mask, cache)
        held: Any = cache.layers[i]
        held.seen(plan.valid, plan.next_position, embeds.shape[1])
        if not keep:
            held.reset()
    return llm.norm(layout.join(sequence.blocks, embeds.shape[1])), cache if keep else None, records


def extend(llm, embeds: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Runs (batch, tokens, hidden) further tokens behind what each layer's cache holds. Returns their final states."""
    length = embeds.shape[1]
    own = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    known: dict[int, tuple] = {}  # layers between two decisions hold the same sequence: one mask and one RoPE serve them
    for i, layer in enumerate(llm.layers):
        held: Any = cache.layers[i]
        key = id(held.key_valid)
        if key not in known:
            positions = held.next_position[:, None] + torch.arange(length, device=embeds.device)
            rope = llm.rotary_emb(embeds, position_ids=positions)
            valid = torch.cat([held.key_valid, own], dim=1)
            mask = _mask(llm, held.key_valid, own, embeds.dtype)
            known[key] = (rope, mask, valid, held.next_position + length, held.key_valid)  # the last keeps the id from being reused
        rope, mask, valid, position, _ = known[key]
        embeds = _run(layer, embeds, rope, mask, cache)
        held.key_valid, held.next_position, held.prompt_tokens = valid, position, held.prompt_tokens + length
    return llm.norm(embeds)


def scan(
    llm, i: int, sequence: Sequence, plan: Plan, policy: LayerPolicy, grid: PatchGrid, samples: list[str], cache: Cache, answer: int
) -> list[list[Scan | None]]:
    """One Scan for each image and row (None where a row has no such image), from the states at layer i's input.

    The first segment has been run already, so its keys are taken from the cache; the others' are projected here. Only the query
    of the last prompt token (all text queries for ``text_mean``) is made.
    """
    segments = sequence.segments()
    text = segments[-1]
    batch, prompt = text.states.shape[0], text.length - answer
    rho = region = None
    patches = torch.empty(0)
    if policy.scorer is not None:
        seen = attended(llm, i, segments, plan, cache, policy.scorer is saliency.text_mean, prompt)
    out: list[list[Scan | None]] = []
    start = 0  # column of the next segment's first key
    for k in range(sequence.images):
        end = start + sequence.blocks[k].length
        expanded = sequence.expanded[k]
        if policy.scorer is not None:
            columns = torch.arange(end - grid.height * grid.width, end, device=text.states.device)
            if policy.scan_expanded and expanded is not None:
                patches = _patches_with_expanded(policy, grid, seen, columns, sequence, k, end)
            else:
                patches = grid.sums(policy.scorer(seen, columns))
            ratio, best = saliency.saliency_ratio(patches)
            rho, region = ratio.tolist(), best.tolist()
        start = end + (expanded.length if expanded is not None else 0)
        row: list[Scan | None] = []
        for b in range(batch):
            found = (
                {} if rho is None or region is None else {"rho": rho[b], "region": region[b], "patch_scores": tuple(patches[b].tolist())}
            )
            here = bool(sequence.layout.present[b, k])
            row.append(Scan(i, samples[b], k, bool(sequence.origins[k][b]), **found) if here else None)
        out.append(row)
    return out


def attended(llm, i: int, segments: list[Segment], plan: Plan, cache: Cache, all_queries: bool, prompt: int) -> Attended:
    """What scorers see at the input of layer i."""
    layer = llm.layers[i]
    attention, norm = layer.self_attn, layer.input_layernorm
    width, text = attention.head_dim, segments[-1]

    def heads(x):
        return x.unflatten(-1, (-1, width)).transpose(1, 2)

    held: Any = cache.layers[i]
    keys = [held.keys]
    for segment, (cos, sin) in zip(segments[1:], plan.rope[1:], strict=True):
        key = heads(attention.k_proj(norm(segment.states)))
        keys.append(apply_rotary_pos_emb(key, key, cos, sin)[1])
    queries = slice(0 if all_queries else prompt - 1, prompt)
    states = text.states[:, queries]
    cos, sin = (part[:, queries] for part in plan.rope[-1])
    query = heads(attention.q_proj(norm(states)))
    query = apply_rotary_pos_emb(query, query, cos, sin)[0]
    before = plan.valid.shape[1] - text.length
    order = torch.arange(plan.valid.shape[1], device=states.device)
    last_seen = before + torch.arange(text.length, device=states.device)[queries]
    visible = plan.valid[:, None] & (order <= last_seen[:, None])
    return Attended(
        query,
        torch.cat(keys, dim=2),
        visible,
        text.valid[:, queries],
        attention.scaling,
        lambda: heads(attention.q_proj(states)),
        lambda: torch.cat([heads(attention.k_proj(s.states)) for s in segments], dim=2),
    )


def _patches_with_expanded(policy, grid: PatchGrid, seen: Attended, columns, sequence: Sequence, image: int, end: int) -> torch.Tensor:
    """(batch, patches) sums in which the attention on expanded tokens counts towards the patch that they show."""
    length = sequence.expanded[image].length  # type: ignore[union-attr]
    out = []
    for b, origins in enumerate(sequence.origins[image]):
        own = sum(o.tokens for o in origins)
        extra = torch.arange(end + length - own, end + length, device=columns.device)
        scores = policy.scorer(seen.row(b), torch.cat([columns, extra]))[0]
        sums = grid.sums(scores[: len(columns)])
        for origin, part in zip(origins, scores[len(columns) :].split([o.tokens for o in origins]) if origins else (), strict=True):
            sums[origin.region] += part.sum()
        out.append(sums)
    return torch.stack(out)


def expansion(visual: torch.Tensor, decision: Expand, policy: LayerPolicy, grid: PatchGrid, method: Method, layer: int):
    """The tokens that an expansion inserts, (tokens, hidden), and the places they show, (tokens,). Blink, Eq. (4)-(5).

    ``visual``: (H * W, hidden), one image's visual tokens at the layer's input.
    """
    h, w = grid.patch
    patch = visual[grid.indices(decision.region).to(visual.device)].T.reshape(1, -1, h, w)
    if policy.interpolate:
        patch = enlarge(patch, (grid.height, grid.width))
    amplifiers = method.amplifiers
    if decision.amplify and amplifiers is not None:
        patch = amplifiers[str(layer)](patch)
    places = grid.places(decision.region, (patch.shape[-2], patch.shape[-1])).to(visual)
    return patch[0].flatten(1).T, places


def enlarge(patch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch, hidden, h, w) to (batch, hidden, H, W), bilinear (Blink, Sec. 3.2.1), as inference and training both need it."""
    return F.interpolate(patch, size=size, mode="bilinear", align_corners=False)


def visual_states(llm, embeds: torch.Tensor, visual: int, layers: Iterable[int]) -> dict[int, torch.Tensor]:
    """The visual tokens' states at the input of ``layers``, {layer: (batch, visual, hidden)}, for TokenSR's training.

    ``embeds``: (batch, system + visual, hidden). No text is run, as the states depend on the image alone, and the forward stops at
    the last layer asked for.
    """
    wanted = set(layers)
    found: dict[int, torch.Tensor] = {}
    rope = llm.rotary_emb(embeds, position_ids=torch.arange(embeds.shape[1], device=embeds.device)[None])
    for i, layer in enumerate(llm.layers[: max(wanted) + 1]):
        if i in wanted:
            found[i] = embeds[:, -visual:]
        if i < max(wanted):
            embeds = layer(embeds, attention_mask=None, position_embeddings=rope, position_ids=None)
    return found
