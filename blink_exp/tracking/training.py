"""The loggers of a training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from blink_exp.tracking.base import Run, attempt, check
from blink_exp.tracking.names import config_of

STEP = "trainer/global_step"  # Lightning's name for the axis of everything that it logs to W&B


def lightning_logger(settings: dict[str, Any], out: Path, name: str, group: str | None = None) -> list[Any]:
    """CSV files in ``out``, and by `logger=` one more beside them. It is opened now: what cannot be is said, and the training goes on
    without it. End with ``finish``.

    Raises:
        UserError: see ``check``.
    """
    from pytorch_lightning.loggers import CSVLogger
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    found: list[Any] = [CSVLogger(out, name="", version="log")]
    kind = settings["logger"]["kind"]
    if kind == "csv":
        return found
    check(settings)
    if getattr(rank_zero_only, "rank", 0) == 0:  # one run for all devices
        tags = (f"tokensr:{settings['tokensr']['architecture']}", f"model:{settings['model'].get('name') or settings['model']['path']}")
        ok, logger = attempt(kind, lambda: opened(settings, Path(out), Run(name, group, tags, "train")))
        found += [logger] if ok else []
    return found


def opened(settings: dict[str, Any], out: Path, run: Run) -> Any:
    """The Lightning logger of ``settings["logger"]``, its configuration logged."""
    from pytorch_lightning.loggers import WandbLogger

    from blink_exp.tracking import lightning
    from blink_exp.tracking.weights_and_biases import started

    out.mkdir(parents=True, exist_ok=True)
    if settings["logger"]["kind"] == "wandb":
        run_ = started(settings, out, run)  # ours, because it can fall back to offline
        run_.define_metric(STEP)
        run_.define_metric("*", step_metric=STEP, step_sync=True)
        return WandbLogger(experiment=run_)
    logger = lightning.tensorboard(out, run.name) if settings["logger"]["kind"] == "tensorboard" else lightning.mlflow(settings, out, run)
    logger.log_hyperparams(config_of(settings))
    return logger


def finish(loggers: list[Any], failed: bool = False) -> None:
    """Ends the W&B run of a training, which would else take in what the process logs next. Lightning ends the others."""
    from pytorch_lightning.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            attempt("wandb", partial(logger.experiment.finish, exit_code=int(failed)))
