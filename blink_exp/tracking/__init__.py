"""Loggers besides the output folder: none by default; W&B, TensorBoard or MLflow by ``logger=`` (docs/tracking.md).

No result depends on a logger: metrics.json and records.jsonl are written first, and a failing logger only prints a warning.
"""

from blink_exp.tracking.base import check, logger_of, tracker
from blink_exp.tracking.interface import Run, Tracker
from blink_exp.tracking.points import log_point, log_summary, output_and_group
from blink_exp.tracking.training import finish, keep_rows, lightning_logger

__all__ = [
    "Run",
    "Tracker",
    "check",
    "finish",
    "keep_rows",
    "lightning_logger",
    "log_point",
    "log_summary",
    "logger_of",
    "output_and_group",
    "tracker",
]
