"""train.py: trains TokenSR modules, saves them, and says what they gain over interpolation on held-out images."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from blink_exp.errors import UserError
from blink_exp.experiments import results

CHECKPOINT = "last.ckpt"


def run(cfg: DictConfig) -> dict[int, dict[str, float]]:
    """Trains for ``cfg``, going on from a checkpoint where there is one. Returns {layer: held-out losses and gain}."""
    import pytorch_lightning as pl
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate
    from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
    from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

    from blink_exp.methods.blink import selected_layers
    from blink_exp.tokensr import checkpoint
    from blink_exp.tokensr.data import PairedCrops
    from blink_exp.tokensr.training import TokenSRTraining, parameters
    from blink_exp.tracking import lightning_logger

    started = time.time()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # PairedCrops starts at the restored step by itself
    settings = results.plain(cfg)
    out = Path(HydraConfig.get().runtime.output_dir)
    resumed, steps_done = resume_from(settings, out)
    backbone = instantiate(cfg.model, _convert_="all")
    layers = list(selected_layers(backbone.depth, layer=cfg.layer, **settings["layers"]))
    if not layers:
        raise UserError("layers.indices=[] trains nothing; name at least one layer, e.g. layer=12")
    if cfg.tokensr.architecture == "interp":
        raise UserError("tokensr=interp has no parameters to train; choose conv, residual_conv, mlp, depthwise or pixel_shuffle")
    results.write(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = PairedCrops(backbone.transform, seed=cfg.seed, steps_done=steps_done, **settings["data"])
    trainer_settings = dict(settings["trainer"])
    optimization = {k: trainer_settings.pop(k) for k in ("lr", "warmup", "weight_decay")}
    module = TokenSRTraining(backbone, layers, cfg.tokensr.architecture, settings["loss"]["weights"], **optimization)
    checkpoint_every = trainer_settings.pop("checkpoint_every")
    if checkpoint_every < 1:
        raise UserError(f"trainer.checkpoint_every={checkpoint_every} keeps nothing to resume from; use 1 step or more")
    trainer = pl.Trainer(
        max_epochs=trainer_settings.pop("epochs"),
        default_root_dir=out,
        logger=lightning_logger(settings, out, name=f"tokensr-{cfg.tokensr.architecture}"),
        callbacks=[
            ModelCheckpoint(dirpath=out, save_last=True, save_top_k=0, every_n_train_steps=checkpoint_every, enable_version_counter=False),
            RichProgressBar(theme=RichProgressBarTheme(metrics_format=".4f")),
        ],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=8,
        **trainer_settings,
    )
    print(
        f"layers {layers} of {backbone.depth}, {parameters(module.amplifiers):,} parameters"
        + (f", going on from {resumed}" if resumed else "")
    )
    trainer.fit(module, data, ckpt_path=resumed, weights_only=True if resumed else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.time() - started
    target = Path(cfg.output) if cfg.output else out / "tokensr"
    if trainer.is_global_zero:
        for layer in layers:
            belonging = checkpoint.Belonging(
                backbone=backbone.identity,
                layer=layer,
                width=backbone.width,
                grid=backbone.grid,
                architecture=cfg.tokensr.architecture,
                training={k: settings[k] for k in ("loss", "trainer", "data", "seed")} | {"held_out": module.result[layer]},
            )
            checkpoint.save(module.amplifiers[str(layer)], belonging, target)
        finished = {"layers": module.result, "skipped_images": [str(p) for p in data.broken]} | results.provenance(cfg.seed, seconds)
        results.write_json(out / "metrics.json", finished)
        show(module.result, data, seconds)
        print(f"modules written to {target}")
    return module.result


def resume_from(settings: dict[str, Any], out: Path) -> tuple[str | None, int]:
    """The checkpoint to go on from and its steps: that of ``resume``, or one in the run folder itself (a job that its cluster started
    again).

    Raises UserError if it is missing, damaged, or of a training with other settings.
    """
    folder = Path(settings["resume"]) if settings["resume"] else out
    path = folder / CHECKPOINT
    if not path.is_file():
        if settings["resume"]:
            raise UserError(f"resume={folder} holds no {CHECKPOINT}; give the folder of a run that got to its first checkpoint")
        return None, 0
    before = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    free = ("resume", "output", "logger")
    changed = [k for k in settings if k not in free and settings[k] != before.get(k)]  # type: ignore[union-attr]
    if changed:
        raise UserError(f"resume={folder} was trained with another {', '.join(changed)}; repeat its settings or start a new run")
    try:
        steps_done = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:  # torch raises whatever its unpickler met
        raise UserError(f"{path} is corrupt or cut off ({type(error).__name__}); remove it and start again") from None
    return str(path), steps_done


def show(result: dict[int, dict[str, float]], data: Any, seconds: float) -> None:
    from rich.table import Table

    table = Table(title=f"held-out loss on {data.held_out_size} images not trained on ({seconds:.0f} s)")
    for column in ("layer", "interpolation", "TokenSR", "gain"):
        table.add_column(column, justify="right")
    for layer, row in sorted(result.items()):
        table.add_row(str(layer), f"{row['interpolation']:.4f}", f"{row['tokensr']:.4f}", f"{100 * row['gain']:.1f} %")
    results.console().print(table)
    if data.broken:
        print(f"{len(data.broken)} images could not be read and were left out, first {data.broken[0]}")
