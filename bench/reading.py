"""What it costs to read attention: scoring beside the tower's own time, and each method beside the usual way."""

from __future__ import annotations

import contextlib
import itertools
from functools import partial
from typing import Any

import torch

from bench import report, usual
from bench.meters import peak_bytes
from bench.shapes import Prompt, attention_by, prefill
from bench.timing import Clock, Work, compared, rounds
from bench.ways import Ground, lengths
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.method import Method

TOKENS = 2673  # of the prompt at which the usual way is measured (HERO, Table VIII)
SCORING, FASTER, MEMORY = 0.03, 2.0, 0.5
COLUMNS = ("scoring / tower", "usual / ours: time", "usual, dropping nothing / ours: time", "ours / usual: memory")
Rows = dict[str, dict[str, Any]]


def scoring(ground: Ground, rows: Rows, pruners: dict[str, Any], repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """What a pruner adds to a pass of the tower (CLS rows, budgets, choice), as a share of that pass."""

    def scores(pruner: Any) -> Work:
        return lambda: pruner.select(ground.encoding(pruner.needs), "")

    works = {name: scores(pruner) for name, pruner in pruners.items()}
    taken = rounds({"tower": lambda: ground.encoding(EncoderRequirements(), real=True)} | works, repeats, warm=0, clock=clock)
    bars = []
    for name in pruners:
        rows[name]["scoring / tower"] = share = compared(taken[name], taken["tower"]).ratio
        bars.append(report.bar(f"{name}: scoring / tower", share, SCORING))
    return bars


def against_usual(
    ground: Ground, rows: Rows, policies: dict[str, Method], pruners: dict[str, Any], repeats: int, clock: Clock
) -> list[dict[str, Any]]:
    """Time and memory of both ways to read attention. Rows of the same ratio differ in their choice only, so of HERO's one is measured."""
    pairs = _in_llm(ground, policies) | _before_llm(ground, {n: p for n, p in pruners.items() if p.ratio == 0.2})
    device = str(ground.model.device)
    bars = []
    for name, works in pairs.items():  # pair by pair, so that one pair's memory is free before the next
        faster = longest = memory = None
        with contextlib.suppress(torch.OutOfMemoryError):  # whole matrices may not fit: then there is nothing to compare with
            warm = int(device.startswith("cuda"))  # the first run asks the driver for what whole matrices take
            taken = rounds(works, repeats, warm=warm, clock=clock)
            faster = compared(taken["usual"], taken["ours"]).ratio
            longest = compared(taken["whole"], taken["ours"]).ratio if "whole" in works else None
            memory = peak_bytes(works["ours"], device) / max(1, peak_bytes(works["usual"], device))
        rows[name] |= {COLUMNS[1]: faster, COLUMNS[2]: longest, COLUMNS[3]: memory}
        bars.append(report.bar(f"{name}: faster than the usual way", faster, FASTER, at_most=False))
        bars.append(report.bar(f"{name}: extra memory / that of the usual way", memory, MEMORY))
    return bars


def _in_llm(ground: Ground, policies: dict[str, Method]) -> dict[str, dict[str, Work]]:
    """Methods that read attention in the LLM: prefill of a prompt of TOKENS. ``whole``: the usual way of code that masks what is dropped,
    or drops it in the cache alone, so that every layer works on every token."""
    whole = ground.whole()
    prompt = whole.cut(min(TOKENS, whole.tokens - 1))

    def pair(method: Method) -> dict[str, Work]:
        choose = chooser(lengths(ground.under(method, prompt)), prompt)
        whole = {} if choose is usual.nothing else {"whole": partial(usual.with_attentions, ground.model, prompt, usual.nothing)}
        return {
            "ours": partial(ground.under, method, prompt),
            "usual": partial(usual.with_attentions, ground.model, prompt, choose),
            **whole,
        }

    return {name: pair(method) for name, method in policies.items()}


def chooser(tokens: list[int], prompt: Prompt) -> usual.Choose:
    """Drops as many tokens behind each layer as a method did whose layers held ``tokens``."""
    text = prompt.tokens - len(prompt.features)
    cuts = {i: after - text for i, (before, after) in enumerate(itertools.pairwise(tokens)) if after < before}
    return usual.last_row_keeps(cuts) if cuts else usual.nothing


def _before_llm(ground: Ground, pruners: dict[str, Any]) -> dict[str, dict[str, Work]]:
    """Methods that read attention in the tower: from pixels to the first token. The usual way has the whole model in eager attention."""

    def pair(pruner: Any) -> dict[str, Work]:
        chosen = ground.pruned(pruner)

        def ours() -> Any:
            with torch.no_grad():
                encoding = ground.encoding(pruner.needs, real=True)
                return prefill(ground.model, ground.projected(encoding, pruner))

        def theirs() -> Any:
            layers = pruner.needs.attention
            encoding, scores = usual.tower_with_attentions(ground.model, ground.pixels, ground.views, layers)
            torch.stack([scores[layer].mean(1) for layer in layers]).mean(0).topk(1)  # the choice itself is not what is compared
            with torch.no_grad():
                ground.model.model.multi_modal_projector(encoding.hidden.flatten(0, 1)[: len(chosen.features)])
            with attention_by(ground.model, "eager"):
                return prefill(ground.model, chosen)

        return {"ours": ours, "usual": theirs}

    return {name: pair(pruner) for name, pruner in pruners.items()}
