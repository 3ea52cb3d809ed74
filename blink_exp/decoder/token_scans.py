"""Token scans: what policies that drop visual tokens behind a layer decide by, token by token.

The attention of chosen text tokens that the layer has paid (FastV, SparseVLM) or that the next layer is about to pay (PyramidDrop), or no
attention, but keys and outputs (DART). Points with the same raters share one scan.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch.nn import functional as F

from blink_exp.core import saliency
from blink_exp.core.method import KeyScan, Method, Scan, TokenReading
from blink_exp.decoder.branches import Branch, LayerPass, QuestionInputs, Text
from blink_exp.decoder.scan import ScanBatch, scorer_inputs
from blink_exp.decoder.segments import length, visual_at
from blink_exp.decoder.tiles import filled_indices


class TokenScanner:
    """Scans the branches of ``questions`` behind a layer.

    Args:
        generated: generated tokens at the end of each text; scans read the prompt's.
    """

    def __init__(self, llm: Any, questions: Rows[QuestionInputs], methods: Rows[Method], generated: int):
        self.llm, self.questions, self.methods, self.generated = llm, questions, methods, generated
        self._raters: dict[tuple[int, Any], torch.Tensor] = {}

    @torch.no_grad()
    def scan(self, branches: Rows[Branch], ran: LayerPass, deciding: Rows[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """{(row, point): scan} behind a layer for the pairs ``deciding``, by what the policy of each point reads."""
        readers: dict[TokenReading, Callable[..., dict[tuple[int, int], Scan]]] = {
            "attention": self._attention,
            "next_attention": self._next_attention,
            "keys": self._keys,
        }
        by_reading: dict[TokenReading, list[tuple[int, int]]] = {}
        for r, p in deciding:
            policy: Any = self.methods[p].policy
            by_reading.setdefault(policy.reads, []).append((r, p))
        out: dict[tuple[int, int], Scan] = {}
        for reading, pairs in by_reading.items():
            out |= readers[reading](branches, ran, pairs)
        return {pair: out[pair] for pair in deciding}

    def _attention(self, branches: Rows[Branch], ran: LayerPass, pairs: Rows[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """By the queries and keys of the layer itself."""
        return self._rated(branches, ran.layer, ran, ran.before, ran.keys, pairs)

    def _next_attention(self, branches: Rows[Branch], ran: LayerPass, pairs: Rows[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """By the queries and keys that the next layer makes of this one's output."""
        return self._rated(branches, ran.layer + 1, ran, ran.behind, None, pairs)

    def _rated(
        self, branches: Rows[Branch], i: int, ran: LayerPass, text: Text, keys: torch.Tensor | None, pairs: Rows[tuple[int, int]]
    ) -> dict[tuple[int, int], Scan]:
        """Scans with the attention of layer i, whose input is ``text``; points with the same raters share one. ``keys``: of the texts;
        None: computed."""
        groups: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
        raters_of: dict[tuple[int, bytes], torch.Tensor] = {}
        for r, p in pairs:
            raters = self._chosen_raters(branches[r].question, p, text.length - self.generated)
            group = (r, raters.cpu().numpy().tobytes())
            raters_of[group] = raters
            groups.setdefault(group, []).append((r, p))
        rows = [r for r, _ in groups]
        batch = ScanBatch.of(self.llm, i, branches, rows, text, self.generated)
        if keys is not None:
            keys = keys[torch.tensor(rows, device=keys.device)][:, :, : batch.states.shape[1]]
        scores = scan_tokens(batch, keys, torch.stack(list(raters_of.values())))
        out: dict[tuple[int, int], Scan] = {}
        for (r, _), same, row_scores in zip(groups, groups.values(), scores, strict=True):
            out |= dict.fromkeys(same, self._row_scan(branches[r], ran.layer, token_scores=row_scores))
        return out

    def _keys(self, branches: Rows[Branch], ran: LayerPass, pairs: Rows[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        out: dict[tuple[int, int], Scan] = {}
        for r in dict.fromkeys(r for r, _ in pairs):
            branch, end = branches[r], ran.behind.length - self.generated
            prompt = ran.behind.valid[r, :end]
            key_scan = scan_keys(self.llm, ran.layer, branch, ran.behind.states[r, :end][prompt], ran.keys[r, :, :end][:, prompt])
            out |= dict.fromkeys([pair for pair in pairs if pair[0] == r], self._row_scan(branch, ran.layer, keys=key_scan))
        return out

    def _row_scan(self, branch: Branch, i: int, **fields: Any) -> Scan:
        """The scan of a row behind layer i, with ``fields`` of what was read."""
        question = self.questions[branch.question]
        visual = visual_at(branch.blocks, i + 1)
        return Scan(
            *(i, question.sample, 0, False),
            visual=sum(block.visual for block in question.blocks),
            image_tokens=tuple(block.visual for block in branch.blocks),
            distances=functools.partial(distances, visual),
            **fields,
        )

    def _chosen_raters(self, q: int, p: int, prompt: int) -> torch.Tensor:
        """(prompt,) bool over the left-padded text: the tokens whose attention a point's policy reads."""
        policy: Any = self.methods[p].policy
        if (q, policy) not in self._raters:
            question = self.questions[q]
            assert question.visual is not None
            prompt_text = question.text[: len(question.text) - self.generated]
            mask = torch.zeros(prompt, dtype=torch.bool, device=prompt_text.device)
            mask[prompt - len(prompt_text) :] = policy.raters(question.visual, prompt_text)
            self._raters[q, policy] = mask
        return self._raters[q, policy]


def scan_tokens(batch: ScanBatch, keys: torch.Tensor | None, raters: torch.Tensor) -> list[tuple[float, ...]]:
    """The attention in the layer from the raters to each visual token that is left, mean over heads and raters.

    ``keys``: (rows, kv_heads, tokens, head_dim) of the texts in the layer; None: it has not run, they are computed. ``raters``: (rows,
    tokens) bool.
    """
    out: dict[int, tuple[float, ...]] = {}
    for rows, part in batch.parts(raters):
        text = part.states.shape[1]
        part_keys = None if keys is None else keys[rows, :, -text:]
        out |= zip(rows, _scan_part(part, part_keys, raters[rows, -text:]), strict=True)
    return [out[b] for b in range(len(batch.branches))]


def _scan_part(batch: ScanBatch, keys: torch.Tensor | None, raters: torch.Tensor) -> list[tuple[float, ...]]:
    chosen = raters.any(0).nonzero()[:, 0]
    queries = filled_indices(chosen)
    inputs, ahead = scorer_inputs(batch, queries, keys)
    inputs.text = raters[:, queries]
    inputs.text[:, len(chosen) :] = False
    scores = saliency.text_mean(inputs, torch.arange(inputs.visible.shape[2], device=batch.states.device))
    out = []
    for branch, row_scores in zip(batch.branches, scores.tolist(), strict=True):
        first = ahead - length(branch.front)
        out.append(tuple(row_scores[first + position] for position in branch.visual_places))
    return out


def scan_keys(llm: Any, i: int, branch: Branch, states: torch.Tensor, keys: torch.Tensor) -> KeyScan:
    """Keys of layer i, which has just run, and the likeness of its outputs. ``states``, ``keys``: (text, hidden) and (kv_heads, text,
    head_dim) of the branch's prompt text."""
    visual_keys = [block.keys[i][:, block.tokens - block.visual :] for block in branch.blocks]
    norms = torch.cat([*visual_keys, keys], dim=1).float().abs().sum((0, 2))
    ahead = length(branch.front)
    outputs = torch.cat([*(block.visual_at(i + 1) for block in branch.blocks), states])
    visual = sum(block.visual for block in branch.blocks)
    return KeyScan(
        tuple(norms.tolist()),
        (*branch.visual_places, *range(ahead, ahead + len(states))),
        functools.partial(similarities, llm.norm, outputs, visual),
    )


def distances(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances between rows of (tokens, hidden) ``states``, over sqrt(hidden), on the CPU. Exact: equal rows are 0 apart."""
    x = states[indices.to(states.device)].float()
    result = pairwise_distances(x) if x.device.type == "cpu" else torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return result.cpu() / math.sqrt(x.shape[1])


def similarities(norm: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, visual: int, tokens: torch.Tensor) -> torch.Tensor:
    """(n, visual) float32 cosine similarities of ``tokens`` with the first ``visual`` rows of (tokens, hidden) ``states`` behind ``norm``,
    on the CPU. Without a matrix product, whose tiles may give equal rows unequal results."""
    features = norm(states).float()
    rows = [F.cosine_similarity(features[token], features[:visual], dim=-1) for token in tokens.tolist()]
    return torch.stack(rows).cpu()


def pairwise_distances(x: torch.Tensor) -> torch.Tensor:
    """(n, n) L2 distances of (n, width) rows by one matrix product, on a CPU 18 times as fast as pairwise differences.

    In float64 against cancellation; distances of equal rows, which are rounding errors, become 0.
    """
    centred = x.double()
    centred -= centred.mean(0)
    products = centred @ centred.T
    both = products.diagonal()[:, None] + products.diagonal()
    apart = both - 2 * products
    return apart.masked_fill(apart < 1e-12 * both, 0).sqrt().to(x)
