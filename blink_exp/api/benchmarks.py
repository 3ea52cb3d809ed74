"""A benchmark with its questions, images and rule of grading: ``load_benchmark("mosaic_detail").samples()``."""

from __future__ import annotations

from typing import Any

from blink_exp.api.errors import in_one_line
from blink_exp.benchmarks.base import Benchmark
from blink_exp.errors import UserError, flat, nearest
from blink_exp.evaluation.evaluator import prepare_benchmark
from blink_exp.settings.check import format_value
from blink_exp.settings.compose import composed
from blink_exp.settings.presets import presets


@in_one_line()
def load_benchmark(name: str, **settings: Any) -> Benchmark:
    """The benchmark of a preset of conf/benchmark. Its ``samples()`` have ``image()`` (a PIL image), ``question`` and ``answer``; its
    ``correct(sample, text)`` grades an answer.

    ``settings``: of conf/benchmark/``name``.yaml that differ, such as ``path="/data/gqa"``. Raises UserError for an unknown benchmark or
    setting, and where its data are missing.
    """
    if name not in presets("benchmark"):
        raise UserError(f"benchmark={flat(name, 80)} is not a preset; {nearest(str(name), presets('benchmark'))}")
    words = [f"benchmark={name}", *(f"benchmark.{key}={format_value(value)}" for key, value in settings.items())]
    return prepare_benchmark(composed("evaluate", words))
