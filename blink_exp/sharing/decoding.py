"""Greedy answers of branches: one decoding for all points that decided alike."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Rows
from typing import Any

import torch
from transformers.cache_utils import Cache

from blink_exp.backbone import decode
from blink_exp.backbone.cache import SegmentedLayer, segmented
from blink_exp.sharing.branches import Leaves, Question
from blink_exp.sharing.expansions import before


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
    return model.lm_head(hidden).float().argmax(-1)


def _go_on(
    model: Any, leaves: Leaves, questions: Rows[Question], rows: list[int], said: list[list[int]], most: int, ends: Collection[int]
) -> None:
    """Appends to ``said`` what branches ``rows`` say behind their first token."""
    llm = model.model.language_model
    cache = held(leaves, questions, rows, len(llm.layers))
    tokens = torch.tensor([said[r][-1] for r in rows], device=leaves.hidden.device)
    while rows:
        states = decode.extend(llm, model.get_input_embeddings()(tokens[:, None]), cache)
        tokens = _next(model, states[:, -1])
        for r, token in zip(rows, tokens.tolist(), strict=True):
            said[r].append(token)
        going = [n for n, r in enumerate(rows) if said[r][-1] not in ends and len(said[r]) < most]
        if len(going) < len(rows):
            stay = torch.tensor(going, dtype=torch.long, device=tokens.device)
            rows, tokens = [rows[n] for n in going], tokens[stay]
            if rows:
                cache.batch_select_indices(stay)


def held(leaves: Leaves, questions: Rows[Question], rows: Rows[int], depth: int) -> Cache:
    """A cache with all that each layer knows of branches ``rows``: prefixes, the expanded segments of that layer, texts."""
    cache = segmented(None, depth)
    index = torch.tensor(list(rows), device=leaves.hidden.device)
    text = leaves.valid[index]
    known: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}  # layers with the same sequence share one validity, so one mask
    for i in reversed(range(depth)):
        step = leaves.steps[i]
        chosen = [(questions[leaves.branches[r].question].prefix, step.chains[n]) for r, n in zip(rows, index.tolist(), strict=True)]
        keys, values, real = before(i, chosen, text.shape[1])
        keys[:, :, -text.shape[1] :], values[:, :, -text.shape[1] :] = step.keys[index], step.values[index]
        sequence = tuple((p, *c) for p, c in chosen)
        if sequence not in known:
            ahead = [p.tokens + sum(e.tokens for e in c if not e.wish.inherit) for p, c in chosen]
            known[sequence] = torch.cat([real, text], dim=1), torch.tensor(ahead, device=text.device) + text.sum(1)
        layer = cache.layers[i]
        assert isinstance(layer, SegmentedLayer)
        layer.update(keys, values)
        layer.seen(*known[sequence], 0)
        if step.parent is not None:
            index = step.parent[index]
    return cache
