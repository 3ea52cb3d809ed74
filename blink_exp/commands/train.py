"""train.py: reads the settings as typed values and runs the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from blink_exp.settings.roots import TrainSettings
from blink_exp.settings.values import typed
from blink_exp.training import training
from blink_exp.training.job import Job
from blink_exp.training.optimization import Optimization


def run(cfg: DictConfig) -> dict[int, dict[str, float]]:
    """train.py: trains for ``cfg``. Returns {layer: held-out losses and gain}."""
    hydra = HydraConfig.get()
    folder = "hydra.sweep.dir" if hydra.mode == RunMode.MULTIRUN else "hydra.run.dir"
    words = [word for word in hydra.overrides.task if word.split("=")[0].split(".")[0] in ("model", "tokensr")]
    return training.run(job_of(cfg, Path(hydra.runtime.output_dir), folder, words))


def job_of(cfg: DictConfig, out: Path, folder: str = "hydra.run.dir", words: Sequence[str] = ()) -> Job:
    """The training job of the settings ``cfg`` in the run folder ``out``; ``folder``: the setting that names it; ``words``: see ``Job``."""
    settings: TrainSettings = typed(cfg)
    optim = settings.optim
    trainer = instantiate(cfg.trainer, _partial_=True, _convert_="all")
    return Job(
        settings=settings,
        text=OmegaConf.to_yaml(cfg, resolve=True),
        out=out,
        backbone=instantiate(cfg.model, _partial_=True, _convert_="all"),
        data=instantiate(cfg.data, seed=cfg.seed, _partial_=True, _convert_="all"),
        trainer=trainer,
        callbacks=list(trainer.keywords["callbacks"].values()),
        optimization=Optimization(
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            betas=None if optim.betas is None else tuple(optim.betas),
            eps=optim.eps,
            warmup=optim.warmup,
            optimizer=instantiate(cfg.optim.optimizer, _convert_="all"),
            schedule=instantiate(cfg.optim.schedule, _convert_="all"),
        ),
        folder=folder,
        words=words,
    )
