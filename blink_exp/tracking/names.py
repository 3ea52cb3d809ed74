"""The names of logged metrics. They are stable: dashboards depend on them (``blink_exp.studies.dashboards``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from blink_exp.documents.records import LayerStep, Record
from blink_exp.documents.runs import Metrics, TokenCounts
from blink_exp.documents.settings import PlainSettings

LEFT_OUT = (
    "logger",
    "table",
    "tables",
    "figure",
    "figures",
    "dashboard",
    "store",
    "force",
    "devices",
    "report",
)  # of a run's configuration
LAYER = "layer"  # axis of per-layer values, 0-based
BY_LAYER = {"rho": "rho", "expand": "expand", "drop": "drop", "visual_tokens": "tokens"}  # of metrics.json's "blink"
COLUMNS = ("id", "image", "category", "question", "answer", "prediction", "correct", "decisions", "tokens")


def config_of(settings: PlainSettings) -> PlainSettings:
    """The settings of a run as plain values: None, bool, int, float, str, lists and dicts of them."""
    return {k: plain(v) for k, v in settings.items() if k not in LEFT_OUT}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def tags_of(model: str, finished: Metrics, experiment: str | None) -> tuple[str, ...]:
    """Tags of a measured point: experiment, method, model and benchmark."""
    of = {"experiment": experiment, "method": finished["method"], "model": model, "benchmark": finished["benchmark"]}
    return tuple(f"{kind}:{value}" for kind, value in of.items() if value)


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The finite numbers among ``values``."""
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)}


def key(name: str) -> str:
    """``name`` with unsupported characters replaced: W&B reads a dot as a path, MLflow rejects most punctuation."""
    return re.sub(r"[^\w -]", "_", name)


def metrics_of(finished: Metrics, tokens: TokenCounts, experiment: str | None = None) -> dict[str, float]:
    """{name: number} of a measured point.

    ``finished``: metrics.json; ``tokens``: ``evaluation.tokens.realised``. Names: ``scores/NAME``, ``stderr/NAME``, ``tokens/entering``,
    ``tokens/layer``, ``tokens/gflops``, ``cost/NAME`` (units in the name), ``layers/first``, ``layers/last``, ``run/samples``,
    ``run/skipped``, ``run/seconds``, and, for a point of ``experiment``, ``EXPERIMENT/BENCHMARK``: its headline score, so that bars show
    that experiment's points alone.
    """
    scores = finished["scores"]
    layers = finished.get("layers") or []
    out: dict[str, object] = {f"scores/{key(k)}": v["value"] for k, v in scores.items()}
    out |= {f"stderr/{key(k)}": v["stderr"] for k, v in scores.items()}
    out |= {f"tokens/{k}": v for k, v in tokens.items()}
    out |= {f"cost/{k}": v for k, v in (finished.get("cost") or {}).items()}
    out |= {"layers/first": min(layers), "layers/last": max(layers)} if layers else {}
    out |= {"run/samples": finished["samples"], "run/skipped": len(finished["skipped"]), "run/seconds": finished["seconds"]}
    if experiment is not None and (name := headline(finished)) in scores:
        out[f"{experiment}/{finished['benchmark']}"] = scores[name]["value"]
    return numbers(out)


def held_out_metrics(layer: int, row: dict[str, float]) -> dict[str, float]:
    """{name: number} of a layer's held-out row (``training.quality``).

    Names: ``loss/held_out/layer_N``, ``cosine/held_out/layer_N``, ``relative_error/held_out/layer_N``, those of plain interpolation with
    ``interpolation`` in place of ``held_out``, and ``gain/layer_N``."""
    out = {}
    for word, way in (("held_out", "tokensr"), ("interpolation", "interpolation")):
        out[f"loss/{word}/layer_{layer}"] = row[way]
        for measure in ("cosine", "relative_error"):
            out[f"{measure}/{word}/layer_{layer}"] = row[f"{measure}_{way}"]
    return out | {f"gain/layer_{layer}": row["gain"]}


def answer_metrics(row: dict[str, float]) -> dict[str, float]:
    """{name: number} of the held-out answers of a training on answers (``training.answer_module``).

    Names: ``answers/loss/WAY`` (cross-entropy) and ``answers/accuracy/WAY``, WAY one of ``none``, ``interpolation``, ``held_out``."""
    ways = {"none": "none", "interpolation": "interpolation", "held_out": "tokensr"}
    loss = {f"answers/loss/{name}": row[way] for name, way in ways.items()}
    return loss | {f"answers/accuracy/{name}": row[f"accuracy_{way}"] for name, way in ways.items()}


def headline(finished: Metrics) -> str | None:
    """The headline score of a run: the last if a benchmark names several, which is their total."""
    names = finished.get("headline")
    return names if isinstance(names, str) or not names else names[-1]


def by_layer(finished: Metrics, experiment: str | None = None) -> list[dict[str, float]]:
    """One row per layer: ``layer``, ``blink/rho_by_layer``, ``blink/expand_by_layer`` and ``blink/drop_by_layer`` (shares of the samples),
    ``blink/tokens_by_layer``, ``cost/tokens_by_layer`` (the whole prompt), ``EXPERIMENT/rho_by_layer``; unknown values are omitted."""
    rows: dict[int, dict[str, object]] = {}
    for layer, step in (finished.get("blink") or {}).get("layers", {}).items():
        rows[int(layer)] = {f"blink/{name}_by_layer": step.get(field) for field, name in BY_LAYER.items()}
        if experiment is not None:
            rows[int(layer)][f"{experiment}/rho_by_layer"] = step.get("rho")
    for layer, count in enumerate((finished.get("cost") or {}).get("tokens_by_layer") or []):
        rows.setdefault(layer, {})["cost/tokens_by_layer"] = count
    return [{LAYER: layer} | numbers(row) for layer, row in sorted(rows.items())]


def record_row(record: Record) -> list[Any]:
    """The cells of a record under ``COLUMNS``. Missing text is None."""
    cells = [record.get(k) for k in ("id", "image_id", "category", "question", "answer", "prediction")]
    correct = record.get("correct")
    return [
        *(None if cell is None else str(cell) for cell in cells),
        None if correct is None else float(correct),
        decisions(record.get("layers") or []),
        record.get("visual_tokens"),
    ]


def decisions(steps: list[LayerStep]) -> str:
    """The decisions on a sample as text: "12 expand r2 (0.61), 15 drop, 16 retain 60". Ineffective ones are omitted."""
    parts = []
    for step in steps:
        kind = step["decision"]
        if kind == "keep" or not step.get("effective", True):
            continue
        detail = {"expand": f" r{step.get('region')}", "retain": f" {step.get('visual_tokens')}"}.get(kind, "")
        rho = f" ({step['rho']:.2f})" if step.get("rho") is not None else ""
        parts.append(f"{step['layer']} {kind}{detail}{rho}")
    return ", ".join(parts)


def evenly(values: list[Any], most: int) -> list[Any]:
    """At most ``most`` entries of ``values``, evenly spaced, in order."""
    count = min(len(values), max(0, most))
    return [values[k * len(values) // count] for k in range(count)]
