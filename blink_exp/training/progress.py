"""Progress of a training: a bar on a terminal, occasional lines in a file or pipe."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

from blink_exp.evaluation.terminal import Lines
from blink_exp.reports.console import wide_console


def progress() -> Callback:
    """A bar on a terminal, lines elsewhere."""
    if wide_console().is_terminal:
        return RichProgressBar(theme=RichProgressBarTheme(metrics_format=".4f"))
    return ProgressLines()


class ProgressLines(Callback):
    """A line at every tenth of the training's batches and after every 30 seconds, on rank 0."""

    def __init__(self) -> None:
        self.lines: Lines | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            left = trainer.num_training_batches * (trainer.max_epochs - trainer.current_epoch)
            self.lines = Lines(int(left), "training")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.lines is not None:
            self.lines.advance(1)
