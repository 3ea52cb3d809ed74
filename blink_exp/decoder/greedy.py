"""Greedy answers of branches: one decoding for all points that decided alike."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch

from blink_exp.backbone.logits import check_logits
from blink_exp.decoder.branches import Leaves, Question
from blink_exp.decoder.expansions import Chain, ahead_of, front
from blink_exp.decoder.prefixes import Prefix
from blink_exp.decoder.shared_attention import Parts


def greedy(
    model: Any, leaves: Leaves, questions: Rows[Question], max_new_tokens: int, ends: Collection[int], at_once: int
) -> list[list[int]]:
    """The tokens that each branch goes on with, up to one of ``ends`` or ``max_new_tokens``, as Hugging Face's greedy generate() says them.

    ``at_once``: branches whose keys and values are held in one place.
    """
    first = _next(model, leaves.hidden)
    said = [[token] for token in first.tolist()]
    left = [r for r, (token,) in enumerate(said) if token not in ends] if max_new_tokens > 1 else []
    for start in range(0, len(left), at_once):
        _go_on(model, leaves, questions, left[start : start + at_once], said, max_new_tokens, ends)
    return said


def _next(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(rows,) the likeliest token of each. Raises UserError where logits are nan or inf."""
    best = model.lm_head(hidden).float().max(-1)
    check_logits(best.values)
    return best.indices


def _go_on(
    model: Any, leaves: Leaves, questions: Rows[Question], rows: list[int], said: list[list[int]], most: int, ends: Collection[int]
) -> None:
    """Appends to ``said`` what branches ``rows`` say behind their first token."""
    llm = model.model.language_model
    held, valid = gathered(leaves, questions, rows, len(llm.layers)), leaves.valid[rows]
    padded = not bool(valid.all())
    while rows:
        tokens = torch.tensor([said[r][-1] for r in rows], device=leaves.hidden.device)
        valid = torch.cat([valid, valid.new_ones(len(rows), 1)], dim=1)
        states = model.get_input_embeddings()(tokens[:, None])
        ropes: dict[tuple, tuple] = {}  # layers with the same sequence share the numbers of its tokens
        for i, (layer, known) in enumerate(zip(llm.layers, held, strict=True)):
            ahead = tuple(ahead_of(prefix, chain) for prefix, chain in known.rows)
            if ahead not in ropes:
                positions = torch.tensor(ahead, device=states.device) + valid.sum(1) - 1
                ropes[ahead] = llm.rotary_emb(states, position_ids=positions[:, None])
            mask = valid[:, None] if padded else None
            parts = Parts(front(i, known.rows), (known.keys, known.values), mask)
            states = layer(
                states, attention_mask=None, position_embeddings=ropes[ahead], position_ids=None, past_key_values=parts, use_cache=True
            )
            known.keys, known.values = parts.own
        for r, token in zip(rows, _next(model, llm.norm(states[:, -1])).tolist(), strict=True):
            said[r].append(token)
        going = [n for n, r in enumerate(rows) if said[r][-1] not in ends and len(said[r]) < most]
        if len(going) < len(rows):
            rows, valid, held = [rows[n] for n in going], valid[going], [known.only(going) for known in held]


@dataclass
class Held:
    """What a layer knows of the branches that are decoded: what stands in front of each, and its own keys and values."""

    rows: list[tuple[Prefix, Chain]]
    keys: torch.Tensor
    values: torch.Tensor

    def only(self, rows: list[int]) -> Held:
        return Held([self.rows[n] for n in rows], self.keys[rows], self.values[rows])


def gathered(leaves: Leaves, questions: Rows[Question], rows: Rows[int], depth: int) -> list[Held]:
    """By layer, what it knows of branches ``rows``: back through the forks, to the row that each of them was there."""
    index = torch.tensor(list(rows), device=leaves.hidden.device)
    out = []
    for i in reversed(range(depth)):
        step = leaves.steps[i]
        chosen = [(questions[leaves.branches[r].question].prefix, step.chains[n]) for r, n in zip(rows, index.tolist(), strict=True)]
        out.append(Held(chosen, step.keys[index], step.values[index]))
        if step.parent is not None:
            index = step.parent[index]
    return out[::-1]
