"""The decoder, layer by layer and segment by segment, over unmodified layer modules.

Each segment runs over the keys and values of everything that stands before it, so its result does not depend on what comes behind:
`system | visual` is the same for every question and every decision, and Blink becomes "put a segment in front of the text, or take
it away". FastV and SparseVLM drop visual tokens for good: behind a layer, they cut the segments themselves. This loop serves prompts
(``prefill``), generated tokens (``extend``) and the capture of training features (``visual_states``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache

from blink_exp.backbone.encode import encode
from blink_exp.core.encoding import Needs
from blink_exp.core.method import LayerPolicy, Method, Scan, TokenPolicy
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Decision, Expand, Keep, Layout, Segment, Sequence
from blink_exp.core.views import Views
from blink_exp.decoder.cache import segmented
from blink_exp.decoder.scan import find_raters, scan_patches, scan_tokens


@dataclass(frozen=True)
class Record:
    """One decision, as it was taken: what was seen, what was decided, how many visual tokens are worked on from there (Blink: by this
    layer; FastV and SparseVLM, which decide behind a layer: by the next one)."""

    row: int
    scan: Scan
    decision: Decision
    visual_tokens: int


class Stretch(NamedTuple):
    """Neighbouring segments that run as one; their positions (as cos and sin) and attention mask."""

    segments: slice
    rope: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor | None


@dataclass
class Plan:
    """How the segments of a sequence run; made anew only when the sequence changes.

    ``rope``: positions (as cos and sin) of each segment; ``whole``: stretches of all segments, for layers that nobody decides at; ``front``
    and ``behind``: the first segment and what follows it, between which a decision is taken. A stretch is all that it can be: a few dozen
    tokens of text alone read as many weights as thousands do. Where rows are padded it is one segment, as the mask of several would cost
    the kernel its causal rule.
    """

    rope: list[tuple[torch.Tensor, torch.Tensor]]
    whole: list[Stretch]
    front: list[Stretch]
    behind: list[Stretch]
    valid: torch.Tensor
    next_position: torch.Tensor

    @classmethod
    def of(cls, llm, sequence: Sequence) -> Plan:
        segments, positions = sequence.segments(), sequence.positions()
        rope = [llm.rotary_emb(s.states, position_ids=p) for s, p in zip(segments, positions, strict=True)]
        valid = torch.cat([s.valid for s in segments], dim=1)
        ends = [0, *itertools.accumulate(s.length for s in segments)]
        full = torch.stack([s.valid.all() for s in segments]).tolist()  # one copy from the device

        def stretch(first: int, last: int) -> Stretch:
            cos, sin = rope[first] if last == first + 1 else (torch.cat(parts, dim=1) for parts in zip(*rope[first:last], strict=True))
            before, own = valid[:, : ends[first]], valid[:, ends[first] : ends[last]]
            mask = causal_mask(llm, before, own, segments[0].states.dtype, padded=not all(full[:last]))
            return Stretch(slice(first, last), (cos, sin), mask)

        count = len(segments)
        if all(full):
            front, whole = [stretch(0, 1)], [stretch(0, count)]
            behind = [stretch(1, count)] if count > 1 else []
        else:
            whole = [stretch(k, k + 1) for k in range(count)]
            front, behind = whole[:1], whole[1:]
        # A token generated at step t stands at T_l + t, behind everything that layer l holds.
        return cls(rope, whole, front, behind, valid, positions[-1][:, -1] + 1)


def causal_mask(llm, before: torch.Tensor, own: torch.Tensor, dtype: torch.dtype, padded: bool) -> torch.Tensor | None:
    """(batch or 1, 1, queries, keys): causal over a segment's own keys, everything real before it.

    None where the kernel's own causal rule says the same, which lets it skip the upper triangle. Queries on padding see
    themselves, since a row without any key would be nan in some kernels. ``padded``: whether ``before`` or ``own`` are false anywhere.
    """
    length = own.shape[1]
    eager = llm.config._attn_implementation == "eager"  # has no causal rule of its own
    if not padded and (length == 1 or (before.shape[1] == 0 and not eager)):
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
    if eager:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


def _run(layer, states: torch.Tensor, rope, mask: torch.Tensor | None, cache: Cache) -> torch.Tensor:
    return layer(states, attention_mask=mask, position_embeddings=rope, position_ids=None, past_key_values=cache, use_cache=True)


def _through(
    layer, segments: list[Segment], stretches: list[Stretch], cache: Cache, together: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Runs one layer over stretches of ``segments``. Returns the states of each segment behind it and, where there was one stretch, the
    tensor that they are parts of, which the next layer takes as ``together``."""
    found: list[torch.Tensor] = []
    for stretch in stretches:
        own = segments[stretch.segments]
        if together is None:
            together = own[0].states if len(own) == 1 else torch.cat([segment.states for segment in own], dim=1)
        together = _run(layer, together, stretch.rope, stretch.mask, cache)
        found += together.split([segment.length for segment in own], dim=1)
        if len(stretches) > 1:
            together = None
    return found, together


def prefill(
    llm, layout: Layout, embeds: torch.Tensor, method: Method, grid: PatchGrid, samples: list[str], cache: Cache | None, answer: int = 0
) -> tuple[torch.Tensor, Cache | None, list[Record]]:
    """Runs a prompt under a method. Returns (batch, tokens, hidden) final states, the cache and the decisions.

    ``cache``: an empty cache to fill, or None to keep nothing; ``answer``: how many tokens at the end of the text were generated
    already, when everything is recomputed without a cache (the scan looks from the last prompt token, not from them). The final states
    of tokens that were dropped are 0.
    """
    policy = method.policy
    assert policy is not None
    keep = cache is not None
    cache = segmented(cache, len(llm.layers))
    sequence = Sequence(layout, layout.split(embeds), inherit=policy.inherit_positions)
    plan = Plan.of(llm, sequence)
    raters = find_raters(policy, sequence, answer) if isinstance(policy, TokenPolicy) else None
    records: list[Record] = []
    together: torch.Tensor | None = None  # the segments' states as one tensor, as long as nobody has touched them
    for i, layer in enumerate(llm.layers):
        segments = sequence.segments()
        asking = segments[-1].states  # of the text, at the layer's input
        if raters is None and i in policy.layers:
            states, _ = _through(layer, segments, plan.front, cache)
            scans = scan_patches(llm, i, sequence, plan, policy, grid, samples, cache, answer)
            old = list(sequence.expanded)
            records += _expand_or_drop(i, sequence, scans, policy, grid, method)
            if any(a is not b for a, b in zip(old, sequence.expanded, strict=True)):
                plan = Plan.of(llm, sequence)
                segments = sequence.segments()
            states += _through(layer, segments, plan.behind, cache)[0]
            together = None
        else:
            states, together = _through(layer, segments, plan.whole, cache, together)
        for segment, behind in zip(segments, states, strict=True):
            segment.states = behind
        held: Any = cache.layers[i]
        held.seen(plan.valid, plan.next_position, embeds.shape[1])
        if isinstance(policy, TokenPolicy) and raters is not None and i in policy.layers:
            records += _retain(i, sequence, scan_tokens(llm, i, sequence, plan, asking, raters, samples, cache), policy)
            plan, together = Plan.of(llm, sequence), None
        if not keep:
            held.reset()
    return llm.norm(sequence.layout.join(sequence.blocks, embeds.shape[1])), cache if keep else None, records


def _expand_or_drop(
    i: int, sequence: Sequence, scans: list[list[Scan | None]], policy: LayerPolicy, grid: PatchGrid, method: Method
) -> list[Record]:
    """Decides before layer i, image by image."""
    records = []
    for k in range(sequence.images):
        chosen = [s and policy.decide(i, s) for s in scans[k]]
        decisions: list[Decision] = [d or Keep() for d in chosen]
        made = {  # from the states before the layer's norm (Blink, Alg. 1)
            b: expansion(sequence.base_view(k, b, grid.height, grid.width), d, policy, grid, method, i)
            for b, d in enumerate(decisions)
            if isinstance(d, Expand)
        }
        sequence.apply(k, decisions, made, i)
        records += [
            Record(b, s, d, sequence.layout.visual[b][k] + sequence.expanded_tokens(k, b))
            for b, (s, d) in enumerate(zip(scans[k], decisions, strict=True))
            if s
        ]
    return records


def _retain(i: int, sequence: Sequence, scans: list[Scan | None], policy: TokenPolicy) -> list[Record]:
    """Decides behind layer i, row by row."""
    decisions = [None if s is None else policy.decide(i, s) for s in scans]
    sequence.retain(decisions)
    return [
        Record(b, replace(s, distances=None), d, sum(sequence.layout.visual[b]))  # a record must not keep the states alive
        for b, (s, d) in enumerate(zip(scans, decisions, strict=True))
        if s and d
    ]


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
            mask = causal_mask(llm, held.key_valid, own, embeds.dtype, not bool(held.key_valid.all()))
            known[key] = (rope, mask, valid, held.next_position + length, held.key_valid)  # the last keeps the id from being reused
        rope, mask, valid, position, _ = known[key]
        embeds = _run(layer, embeds, rope, mask, cache)
        held.key_valid, held.next_position, held.prompt_tokens = valid, position, held.prompt_tokens + length
    return llm.norm(embeds)


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
    places = grid.places(decision.region, (patch.shape[-2], patch.shape[-1])).to(visual.device)
    return patch[0].flatten(1).T, places


def enlarge(patch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(batch, hidden, h, w) to (batch, hidden, H, W), bilinear (Blink, Sec. 3.2.1), as inference and training both need it."""
    return F.interpolate(patch, size=size, mode="bilinear", align_corners=False)


def visual_states(llm, embeds: torch.Tensor, visual: int, layers: Iterable[int]) -> dict[int, torch.Tensor]:
    """The visual tokens' states at the input of ``layers``, {layer: (batch, visual, hidden)}, for TokenSR's training.

    ``embeds``: (batch, system + visual, hidden). No text is run, as the states depend on the image alone, and the forward stops at
    the last layer asked for. A token sees itself and what stands before it, as in a prompt, under every attention kernel.
    """
    wanted = set(layers)
    found: dict[int, torch.Tensor] = {}
    rope = llm.rotary_emb(embeds, position_ids=torch.arange(embeds.shape[1], device=embeds.device)[None])
    real = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask = causal_mask(llm, real[:, :0], real, embeds.dtype, padded=False)
    for i, layer in enumerate(llm.layers[: max(wanted) + 1]):
        if i in wanted:
            found[i] = embeds[:, -visual:]
        if i < max(wanted):
            embeds = layer(embeds, attention_mask=mask, position_embeddings=rope, position_ids=None)
    return found


@torch.no_grad()
def image_states(backbone: Any, pixels: torch.Tensor, layers: list[int]) -> dict[int, torch.Tensor]:
    """{layer: (images, H * W, width)} visual tokens of the base view at each layer's input, from (images, 3, size, size) pixels.

    The prompt's opening stands before the image; no text behind it can change them.
    """
    encodings = encode(backbone.model, pixels, [Views(backbone.grid[0])] * len(pixels), Needs())
    features = backbone.model.model.multi_modal_projector(torch.cat([encoding.hidden for encoding in encodings]))
    opening = backbone.processor.tokenizer(backbone.prompt("").split(backbone.processor.image_token)[0], return_tensors="pt").input_ids
    embeds = backbone.model.get_input_embeddings()(opening.to(features.device)).expand(len(features), -1, -1)
    return visual_states(backbone.llm, torch.cat([embeds, features], dim=1), features.shape[1], layers)
