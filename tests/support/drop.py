"""What the tests of methods that drop tokens inside the LLM share."""

from __future__ import annotations

import math

import torch

from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy
from support.models import IMAGE


class Depth:
    """As much of a backbone as configure() reads."""

    def __init__(self, depth: int):
        self.depth = depth


def peaks_by_hand(d: list[list[float]], c: int) -> list[tuple[int, ...]]:
    """Density peaks in loops, from the description alone."""
    n = len(d)
    density = [math.exp(-sum(x * x for x in sorted(row)[:c]) / c) for row in d]
    rank = sorted(range(n), key=lambda i: (-density[i], i))  # densest first, lower index first
    separation = [0.0] * n
    for place, i in enumerate(rank):
        separation[i] = min((d[i][j] for j in rank[:place]), default=max(map(max, d)))
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
