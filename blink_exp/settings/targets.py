"""Schemas of the config groups whose presets differ, by ``_target_``: a model, a method, a benchmark, a judge, training data, a callback, a
logger are what it says.

What a package outside of this one brings has no schema here; its own constructor checks it.
"""

from __future__ import annotations

from blink_exp.settings.schemas import benchmarks, judges, loggers, methods, models, training

BY_TARGET: dict[str, type] = models.TARGETS | training.TARGETS | loggers.TARGETS | judges.TARGETS | methods.TARGETS | benchmarks.TARGETS
