"""Where results go besides the output folder: nowhere by default, W&B, TensorBoard or MLflow by ``logger=`` (docs/tracking.md).

Nothing here is needed for a result: metrics.json and records.jsonl are written first, and a logger that fails costs one line.
"""

from blink_exp.tracking.base import check, logger_of, tracker
from blink_exp.tracking.interface import Tracker
from blink_exp.tracking.points import log_point, log_summary, output_and_group
from blink_exp.tracking.training import finish, keep_rows, lightning_logger

__all__ = [
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
