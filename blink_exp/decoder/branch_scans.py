"""Scans of branches, the inputs of decisions. Points with the same scorer, or with the same raters, share one scan."""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import torch

from blink_exp.core.base_view import BaseViewMap
from blink_exp.core.method import Method, Scan, TokenReading
from blink_exp.core.saliency import PatchGrid
from blink_exp.decoder import scan
from blink_exp.decoder.branches import Branch, LayerPass, QuestionInputs, Text, text_positions
from blink_exp.decoder.segments import visual_at

Maps = tuple[BaseViewMap | None, ...]


class BranchScanner:
    """Scans the branches of ``questions`` under ``methods``.

    Args:
        generated: generated tokens at the end of each text; scans read the last prompt token.
    """

    def __init__(self, llm: Any, questions: Rows[QuestionInputs], methods: Rows[Method], grids: Rows[PatchGrid | None], generated: int):
        self.llm, self.questions, self.methods, self.grids, self.generated = llm, questions, methods, grids, generated
        self._raters: dict[tuple[int, Any], torch.Tensor] = {}

    def _batch(self, i: int, text: Text, branches: list[Branch], rows: list[int], base_maps: Rows[Maps]) -> scan.ScanBatch:
        """The prompt texts of some branches, without generated tokens."""
        end = text.length - self.generated
        index = torch.tensor(rows, device=text.states.device)
        states, valid = text.states[index, :end], text.valid[index, :end]
        chosen = [branches[r] for r in rows]
        scan_rows = [scan.ScanRow(branch.blocks, branch.expanded, maps) for branch, maps in zip(chosen, base_maps, strict=True)]
        return scan.ScanBatch(self.llm, i, scan_rows, states, valid, text_positions(chosen, valid))

    @torch.no_grad()  # decisions have no gradient
    def patches(self, i: int, branches: list[Branch], text: Text, deciding: list[tuple[int, int]]) -> dict[tuple[int, int], list[Scan]]:
        """{(row, point): a scan of each image} before layer i; points with one scorer and grid share a scan."""
        groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for r, p in deciding:
            policy: Any = self.methods[p].policy
            groups.setdefault((policy.scorer, policy.scan_expanded, self.grids[p]), []).append((r, p))
        out: dict[tuple[int, int], list[Scan]] = {}
        for (scorer, scan_expanded, grid), pairs in groups.items():
            rows = list(dict.fromkeys(r for r, _ in pairs))
            scores: dict[tuple[int, int], dict[str, Any]] = {}
            if scorer is not None:
                base_maps = [self.questions[branches[r].question].base_maps for r in rows]
                scored = scan.scan_patches(self._batch(i, text, branches, rows, base_maps), scorer, grid, scan_expanded)
                scores = {(rows[n], k): fields for (n, k), fields in scored.items()}
            for r, p in pairs:
                sample = self.questions[branches[r].question].sample
                out[r, p] = [
                    Scan(i, sample, k, bool(branches[r].expanded[k]), **scores.get((r, k), {}))
                    for k, block in enumerate(branches[r].blocks)
                    if block.visual
                ]
        return {pair: out[pair] for pair in deciding}

    @torch.no_grad()
    def tokens(self, branches: list[Branch], ran: LayerPass, deciding: list[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """{(row, point): scan} behind a layer, by what the policy of each point reads."""
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

    def _attention(self, branches: list[Branch], ran: LayerPass, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """By the queries and keys of the layer itself."""
        return self._rated(branches, ran.layer, ran, ran.before, ran.keys, pairs)

    def _next_attention(self, branches: list[Branch], ran: LayerPass, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        """By the queries and keys that the next layer makes of this one's output."""
        return self._rated(branches, ran.layer + 1, ran, ran.behind, None, pairs)

    def _rated(
        self, branches: list[Branch], i: int, ran: LayerPass, text: Text, keys: torch.Tensor | None, pairs: list[tuple[int, int]]
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
        batch = self._batch(i, text, branches, rows, [()] * len(rows))
        if keys is not None:
            keys = keys[torch.tensor(rows, device=keys.device)][:, :, : batch.states.shape[1]]
        scores = scan.scan_tokens(batch, keys, torch.stack(list(raters_of.values())))
        out: dict[tuple[int, int], Scan] = {}
        for (r, _), same, row_scores in zip(groups, groups.values(), scores, strict=True):
            out |= dict.fromkeys(same, self._row_scan(branches[r], ran.layer, token_scores=row_scores))
        return out

    def _keys(self, branches: list[Branch], ran: LayerPass, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], Scan]:
        out: dict[tuple[int, int], Scan] = {}
        for r in dict.fromkeys(r for r, _ in pairs):
            branch, end = branches[r], ran.behind.length - self.generated
            prompt = ran.behind.valid[r, :end]
            row = scan.ScanRow(branch.blocks, branch.expanded, ())
            key_scan = scan.scan_keys(self.llm, ran.layer, row, ran.behind.states[r, :end][prompt], ran.keys[r, :, :end][:, prompt])
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
            distances=functools.partial(scan.distances, visual),
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
