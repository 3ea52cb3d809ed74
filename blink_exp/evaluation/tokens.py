"""Visual tokens that a method actually processes, computed from its records."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from blink_exp import hub
from blink_exp.backbone.shipped import shipped
from blink_exp.documents.records import Record
from blink_exp.documents.runs import TokenCounts


def realised(records: list[Record], depth: int | None) -> TokenCounts:
    """Means over the evaluator's ``records``.

    ``entering``: visual tokens that enter the LLM, without newlines; ``newlines``: newline tokens; ``layer``: visual tokens per
    layer, averaged over the LLM's ``depth`` layers (None if the depth is needed and unknown). Methods that drop inside the LLM may also
    drop newlines, so ``layer`` counts them there; ``gflops``: 1e9 FLOPs of a prompt's prefill by formula (``prompt_flops``), where every
    record has them. Empty if a record lacks ``visual_tokens``.
    """
    if not records or any("visual_tokens" not in r for r in records):
        return {}
    layers = [layer_average(r, depth) for r in records]
    counts = [n for n in layers if n is not None]
    flops = [r["prefill_flops"] for r in records if "prefill_flops" in r]
    costs: TokenCounts = {"gflops": sum(flops) / len(flops) / 1e9} if len(flops) == len(records) else {}
    return {
        **costs,
        "entering": sum(r["visual_tokens"] for r in records) / len(records),
        "newlines": sum(r["newline_tokens"] for r in records) / len(records),
        "layer": sum(counts) / len(counts) if len(counts) == len(layers) else None,
    }


def layer_average(record: Record, depth: int | None) -> float | None:
    """Visual tokens per layer of one sample, averaged over ``depth`` layers."""
    if not record["layers"]:
        return float(record["visual_tokens"])
    return None if depth is None else sum(tokens_by_layer(record, depth)) / depth


def tokens_by_layer(record: Record, depth: int) -> list[float]:
    """Visual tokens in each of ``depth`` layers of one sample. Newlines count where tokens are dropped inside the LLM, which may drop them
    too."""
    return _by_layer(record, depth, record["visual_tokens"] + record["newline_tokens"] * _drops(record))


def layer_flops(q: int, k: int, d: int, m: int) -> int:
    """FLOPs of one decoder layer with hidden size ``d`` and a gated MLP of size ``m``; a multiply-add counts as two."""
    return 8 * q * d**2 + 4 * q * k * d + 6 * q * d * m


def prompt_flops(record: Record, text: int, llm: Any) -> int:
    """FLOPs of the LLM's layers over a prompt by formula (``layer_flops``): of the visual tokens of each layer, newlines included, and
    ``text`` others. ``llm``: its config. What a policy's scans and modules cost is not in it; the cost meter counts it."""
    lengths = _by_layer(record, llm.num_hidden_layers, record["visual_tokens"] + record["newline_tokens"])
    return sum(layer_flops(int(n) + text, int(n) + text, llm.hidden_size, llm.intermediate_size) for n in lengths)


def _drops(record: Record) -> bool:
    """Whether visual tokens were dropped inside the LLM."""
    return any(step["decision"] == "retain" for step in record["layers"])


def _by_layer(record: Record, depth: int, first: float) -> list[float]:
    """Visual tokens in each of ``depth`` layers, ``first`` of them before a decision changes their number. A step's count holds from its
    own layer on (Blink decides before a layer) or from the next (policies that drop after a layer)."""
    inside = _drops(record)
    changes = sorted((step["layer"] + inside, step["visual_tokens"]) for step in record["layers"])
    edges = [0, *(layer for layer, _ in changes), depth]
    counts = [first, *(count for _, count in changes)]
    return [n for n, (a, b) in zip(counts, itertools.pairwise(edges), strict=True) for _ in range(a, b)]


def llm_depth(path: str, revision: str | None = None) -> int | None:
    """Number of LLM layers of a model folder, hub id or shipped model, from its configuration; None if that is not available."""
    from transformers import AutoConfig

    shipped_model = shipped(path)
    source = str(shipped_model[0]) if shipped_model else path
    if not Path(source).is_dir():
        hub.check_connection()
    try:
        config = AutoConfig.from_pretrained(source, revision=revision or "main", trust_remote_code=False)
        depth: int = config.text_config.num_hidden_layers
        return depth
    except (OSError, ValueError, AttributeError):
        return None
