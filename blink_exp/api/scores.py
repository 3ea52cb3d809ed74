"""Scores of several methods on one benchmark as a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Probes, Sample
from blink_exp.core.method import Method
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import Point, ask, check_annotation
from blink_exp.evaluation.evaluator import check_complete

if TYPE_CHECKING:
    import pandas as pd


def scores(backbone: Backbone, methods: Mapping[str, Method], benchmark: Benchmark, samples: list[Sample], batch_size: int) -> pd.DataFrame:
    """One row a method: its headline score with its standard error, what it spent, and its other scores.

    The methods answer together, and what they share is run once.

    Raises UserError where more than 1 % of the samples cannot be read, or the benchmark asks nothing.
    """
    import pandas as pd

    if isinstance(benchmark, Probes):
        raise UserError(f"benchmark={benchmark.name} measures the model's attention and asks no questions; use evaluate.py")
    for method in methods.values():
        check_annotation(method, f"benchmark={benchmark.name}", samples)
    points = {name: Point(method) for name, method in methods.items()}
    skipped = ask(backbone, list(points.values()), benchmark, samples, batch_size, lambda count: None)
    rows = {}
    for name, point in points.items():
        records = [point.done[sample.id] for sample in samples if sample.id in point.done]
        check_complete(records, skipped, 0.01)
        measured = benchmark.score(records)
        rows[name] = {
            benchmark.headline: measured[benchmark.headline].value,
            f"{benchmark.headline} ±": measured[benchmark.headline].stderr,
            "visual tokens in": sum(record["visual_tokens"] for record in records) / len(records),
            "visual tokens a layer": sum(record["layer_tokens"] for record in records) / len(records),
            "prefill GFLOPs": sum(record["prefill_flops"] for record in records) / len(records) / 1e9,
            "samples": len(records),
            **{key: score.value for key, score in measured.items() if key != benchmark.headline},
        }
    return pd.DataFrame.from_dict(rows, orient="index")
