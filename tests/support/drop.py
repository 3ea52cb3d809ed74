"""What the tests of methods that drop tokens inside the LLM share."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from blink_exp.methods.dart import DARTPolicy
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.pyramiddrop import PyramidDropPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy
from support.models import IMAGE


class Depth:
    """As much of a backbone as configure() reads."""

    def __init__(self, depth: int):
        self.depth = depth


class Gridded(Depth):
    """And what a budget in tokens reads: LLaVA-1.5's 576 tokens, or LLaVA-NeXT's five views of as many."""

    grid = (24, 24)

    def __init__(self, depth: int = 32, tiled: bool = False):
        super().__init__(depth)
        self.model = SimpleNamespace(config=SimpleNamespace(**({"image_grid_pinpoints": []} if tiled else {})))


def peaks_by_hand(d: list[list[float]], c: int) -> list[tuple[int, ...]]:
    """Density peaks in loops, from the description alone."""
    n = len(d)
    density = [math.exp(-sum(x * x for x in sorted(row)[:c]) / c) for row in d]
    rank = sorted(range(n), key=lambda i: (-density[i], i))  # densest first, lower index first
    separation = [0.0] * n
    for position, i in enumerate(rank):
        separation[i] = min((d[i][j] for j in rank[:position]), default=max(map(max, d)))
    centres = sorted(range(n), key=lambda i: (-density[i] * separation[i], i))[:c]
    groups: dict[int, list[int]] = {i: [] for i in centres}
    for i in range(n):
        groups[i if i in centres else min(centres, key=lambda j: d[i][j])].append(i)
    return [tuple(groups[i]) for i in centres]


def embeds_of(model, batch) -> torch.Tensor:
    return model(**batch, output_hidden_states=True).hidden_states[0]


def by_hand(llm, i: int, states: torch.Tensor, positions: torch.Tensor, blocked: torch.Tensor | None = None):
    """Layer i on one row (1, n, hidden), and its whole attention (heads, n, n). ``blocked``: (n,) keys that nobody but themselves sees."""
    n = states.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if blocked is not None:
        seen &= ~blocked | torch.eye(n, dtype=torch.bool)
    maps = []
    hook = llm.layers[i].self_attn.register_forward_hook(lambda m, a, out: maps.append(out[1]))
    mask = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
    states = llm.layers[i](states, attention_mask=mask, position_embeddings=llm.rotary_emb(states, position_ids=positions[None]))
    hook.remove()
    return states, maps[0][0]


def best(scores: torch.Tensor, k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:k])


def fastv_by_hand(model, batch, policy: FastVPolicy, masked: bool = False) -> torch.Tensor:
    """(vocabulary,) logits of the last token. ``masked``: dropped tokens stay, but nobody sees them (the paper's own ablation code)."""
    llm, states = model.model.language_model, embeds_of(model, batch)
    visual = (batch["input_ids"][0] == IMAGE).nonzero()[:, 0]
    positions, blocked = torch.arange(states.shape[1]), None
    for i in range(len(llm.layers)):
        states, attention = by_hand(llm, i, states, positions, blocked)
        if i == policy.full_layers - 1:
            kept = visual[best(attention.mean(0)[-1, visual], max(1, math.floor(len(visual) * policy.retention_ratio)))].tolist()
            gone = torch.tensor([p in visual.tolist() and p not in kept for p in positions.tolist()])
            if masked:
                blocked = gone
            else:
                states, positions = states[:, ~gone], positions[~gone]
    return model.lm_head(llm.norm(states))[0, -1]


def sparsevlm_by_hand(model, batch, policy: SparseVLMPolicy) -> torch.Tensor:
    llm, states = model.model.language_model, embeds_of(model, batch)
    kinds = ["v" if t == IMAGE else "t" for t in batch["input_ids"][0].tolist()]
    first = "".join(kinds).rindex("v") + 1
    total = visual = [i for i, kind in enumerate(kinds) if kind == "v"]
    votes = (states[0, visual] @ states[0, first:].T).softmax(1).mean(0)
    raters = [i for i in range(len(votes)) if votes[i] > votes.mean()] or list(range(len(votes)))
    for i in range(len(llm.layers)):
        states, attention = by_hand(llm, i, states, torch.arange(states.shape[1]))
        if i not in policy.layers:
            continue
        step = policy.layers.index(i)
        visual = [j for j, kind in enumerate(kinds) if kind == "v"]
        rows = [len(kinds) - len(votes) + r for r in raters]
        scores = attention.mean(0)[rows][:, visual].mean(0)
        wanted = policy.schedule[step] if policy.schedule else math.floor(policy.shares[step] * len(total) + 1e-9)
        kept = best(scores, min(wanted, len(visual) - 1))
        pruned = [j for j in range(len(visual)) if j not in kept]
        candidates = [pruned[j] for j in best(scores[pruned], int(0.3 * len(pruned)) + 1)]
        x = states[0, visual][candidates]
        d = (x[:, None] - x[None]).square().sum(-1).sqrt() / x.shape[1] ** 0.5
        groups = peaks_by_hand(d.tolist(), int(len(candidates) / 10) + 1)
        new = torch.stack([x[list(group)].mean(0) for group in groups])
        last = visual[-1] + 1
        stay = [j for j in range(last) if kinds[j] == "t" or visual.index(j) in kept]
        kinds = [kinds[j] for j in stay] + ["v"] * len(new) + kinds[last:]
        states = torch.cat([states[:, stay], new[None], states[:, last:]], dim=1)
    return model.lm_head(llm.norm(states))[0, -1]


def pyramiddrop_by_hand(model, batch, policy: PyramidDropPolicy) -> torch.Tensor:
    """The next layer is run on the undropped sequence for its whole attention map, and again on what is left."""
    llm, states = model.model.language_model, embeds_of(model, batch)
    visual = (batch["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    first = 36 if policy.mode == "reference" else len(visual)  # of the first image
    movable, total = visual[:first], first
    for i in range(len(llm.layers)):
        states, _ = by_hand(llm, i, states, torch.arange(states.shape[1]))
        if i not in policy.layers:
            continue
        _, attention = by_hand(llm, i + 1, states, torch.arange(states.shape[1]))
        step = policy.layers.index(i)
        wanted = policy.schedule[step] if policy.schedule else int(policy.ratios[step] * total)
        kept = [movable[j] for j in best(attention.mean(0)[-1, movable], wanted)]
        stay = [j for j in range(states.shape[1]) if j in kept or j not in movable]
        states, movable = states[:, stay], [n for n, j in enumerate(stay) if j in kept]
    return model.lm_head(llm.norm(states))[0, -1]


def dart_by_hand(model, batch, policy: DARTPolicy) -> torch.Tensor:
    llm, states = model.model.language_model, embeds_of(model, batch)
    visual = (batch["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    positions = torch.arange(states.shape[1])
    text = positions.tolist()[visual[-1] + 1 :]
    for i in range(len(llm.layers)):
        inputs = states
        states, _ = by_hand(llm, i, states, positions)
        if i != policy.full_layers - 1:
            continue
        layer = llm.layers[i]
        keys = layer.self_attn.k_proj(layer.input_layernorm(inputs))[0].unflatten(-1, (-1, layer.self_attn.head_dim))
        cos, sin = llm.rotary_emb(inputs, position_ids=positions[None])
        keys = apply_rotary_pos_emb(keys.transpose(0, 1)[None], keys.transpose(0, 1)[None], cos, sin)[1][0]
        norms = [float(keys[:, j].abs().sum()) for j in positions.tolist()]
        falling = sorted(positions.tolist(), key=lambda j, norms=norms: (-norms[j], j))
        pivots = [j for j in falling if j in visual][: policy.visual_pivots]
        guides = [j for j in falling if j in text][: policy.text_pivots]
        order = sorted(pivots + guides) if policy.mode == "paper" else list(set(pivots + guides))
        outputs = llm.norm(states)[0]
        kept, pool = set(pivots), [j for j in visual if j not in pivots]
        total = policy.visual_pivots + policy.text_pivots
        total *= min(int(len(visual) * policy.retention_ratio / total), (len(visual) - policy.visual_pivots) // total)
        for n, pivot in enumerate(order):
            likeness = {j: float(F.cosine_similarity(outputs[pivot], outputs[j], dim=0)) for j in pool}
            taken = sorted(pool, key=likeness.__getitem__)[: total // len(order) + (n < total % len(order))]
            kept, pool = kept | set(taken), [j for j in pool if j not in taken]
        stay = [j for j in positions.tolist() if j in kept or j not in visual]
        states, positions = states[:, stay], positions[stay]
    return model.lm_head(llm.norm(states))[0, -1]


BY_HAND = {
    FastVPolicy: fastv_by_hand,
    SparseVLMPolicy: sparsevlm_by_hand,
    PyramidDropPolicy: pyramiddrop_by_hand,
    DARTPolicy: dart_by_hand,
}
