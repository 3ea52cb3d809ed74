"""How many visual tokens a method really works on, from the records of its answers."""

from __future__ import annotations

import itertools

from blink_exp.backbone.shipped import shipped
from blink_exp.documents import Record


def realised(records: list[Record], depth: int | None) -> dict[str, float | None]:
    """Means over ``records``, the evaluator's own.

    ``entering``: visual tokens that enter the LLM, without newlines; ``newlines``: newline tokens beside them; ``layer``: visual tokens
    that a layer works on, averaged over the LLM's ``depth`` layers (None where the depth is needed and not known). Methods that drop
    inside the LLM choose among newlines too, so there ``layer`` counts them. Empty for records that do not say what entered.
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
    """Visual tokens that a layer works on for one sample, averaged over ``depth`` layers."""
    steps, entering = record["layers"], record["visual_tokens"]
    if not steps:
        return float(entering)
    if depth is None:
        return None
    inside = any(step["decision"] == "retain" for step in steps)
    # A step's count holds from its own layer on (Blink, which decides before a layer) or from the next (what drops behind a layer).
    changes = sorted((step["layer"] + inside, step["visual_tokens"]) for step in steps)
    edges = [0, *(first for first, _ in changes), depth]
    counts = [entering + record["newline_tokens"] * inside, *(count for _, count in changes)]
    return sum(n * (b - a) for n, (a, b) in zip(counts, itertools.pairwise(edges), strict=True)) / depth


def llm_depth(path: str, revision: str | None = None) -> int | None:
    """Layers of the LLM of a model folder, hub id or shipped model, from its configuration alone; None where that is not at hand."""
    from transformers import AutoConfig

    shipped_model = shipped(path)
    try:
        return AutoConfig.from_pretrained(
            str(shipped_model[0]) if shipped_model else path, revision=revision or "main"
        ).text_config.num_hidden_layers
    except (OSError, ValueError, AttributeError):
        return None
