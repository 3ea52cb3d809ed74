"""Lightning's Trainer for TokenSR."""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from blink_exp.errors import UserError, flat
from blink_exp.tracking import lightning_logger
from blink_exp.training.distributed import check_devices, strategy
from blink_exp.training.job import Job
from blink_exp.training.progress import ProgressLines
from blink_exp.training.rotation import Rotation, WholeFiles


def make_trainer(job: Job, sound: bool = True) -> pl.Trainer:
    """The Trainer of ``job``. ``sound``: see ``Rotation``. Raises UserError for settings that Lightning refuses."""
    chosen = job.settings.trainer
    check_devices(chosen.accelerator, chosen.devices)
    rotation = Rotation(sound)
    for callback in job.callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(job.out)
    try:
        return job.trainer(
            strategy=strategy(chosen.strategy, chosen.accelerator, rotation),
            plugins=None if chosen.strategy.startswith("deepspeed") else [WholeFiles(rotation)],
            default_root_dir=job.out,
            logger=lightning_logger(job.settings, job.out, name=f"tokensr-{job.settings.tokensr.architecture}"),
            callbacks=job.callbacks,
            enable_progress_bar=not any(isinstance(callback, ProgressLines) for callback in job.callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # GlobalBatches gives each device its own
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        overrides = " ".join(f"trainer.{name}={getattr(chosen, name)}" for name in ("accelerator", "strategy", "devices", "precision"))
        raise UserError(f"{overrides} do not go together ({flat(error, 200)}); see conf/trainer for those that do") from error


def quieten() -> None:
    """Silences messages of Lightning that a user cannot act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*your dataloader is not resumable",  # PairedCrops starts at the restored step by itself
        ".*treespec, LeafSpec",  # Lightning's
        ".*is smaller than the logging interval",
        ".*does not have many workers",
        ".*`srun` command is available",  # on a machine of a SLURM cluster, whoever starts the training
        ".*Checkpoint directory .* exists and is not empty",
        ".*Experiment logs directory .* exists and is not empty",  # rows are kept
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
