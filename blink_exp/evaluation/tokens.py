"""Visual tokens that a method actually processes, computed from its records."""

from __future__ import annotations

import itertools
from pathlib import Path

from blink_exp import hub
from blink_exp.backbone.shipped import shipped
from blink_exp.documents import Record


def realised(records: list[Record], depth: int | None) -> dict[str, float | None]:
    """Means over the evaluator's ``records``.

    ``entering``: visual tokens that enter the LLM, without newlines; ``newlines``: newline tokens; ``layer``: visual tokens per
    layer, averaged over the LLM's ``depth`` layers (None if the depth is needed and unknown). Methods that drop inside the LLM may also
    drop newlines, so ``layer`` counts them there. Empty if a record lacks ``visual_tokens``.
    """
    if not records or any("visual_tokens" not in r for r in records):
        return {}
    layers = [layer_average(r, depth) for r in records]
    counts = [n for n in layers if n is not None]
    return {
        "entering": sum(r["visual_tokens"] for r in records) / len(records),
        "newlines": sum(r["newline_tokens"] for r in records) / len(records),
        "layer": sum(counts) / len(counts) if len(counts) == len(layers) else None,
    }


def layer_average(record: Record, depth: int | None) -> float | None:
    """Visual tokens per layer of one sample, averaged over ``depth`` layers."""
    steps, entering = record["layers"], record["visual_tokens"]
    if not steps:
        return float(entering)
    if depth is None:
        return None
    inside = any(step["decision"] == "retain" for step in steps)
    # A step's count holds from its own layer on (Blink decides before a layer) or from the next (policies that drop after a layer).
    changes = sorted((step["layer"] + inside, step["visual_tokens"]) for step in steps)
    edges = [0, *(first for first, _ in changes), depth]
    counts = [entering + record["newline_tokens"] * inside, *(count for _, count in changes)]
    return sum(n * (b - a) for n, (a, b) in zip(counts, itertools.pairwise(edges), strict=True)) / depth


def llm_depth(path: str, revision: str | None = None) -> int | None:
    """Number of LLM layers of a model folder, hub id or shipped model, from its configuration; None if that is not available."""
    from transformers import AutoConfig

    shipped_model = shipped(path)
    source = str(shipped_model[0]) if shipped_model else path
    if not Path(source).is_dir():
        hub.check_connection()
    try:
        depth: int = AutoConfig.from_pretrained(source, revision=revision or "main").text_config.num_hidden_layers
        return depth
    except (OSError, ValueError, AttributeError):
        return None
