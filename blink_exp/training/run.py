"""train.py: trains TokenSR modules, saves them, and says what they gain over interpolation on held-out images."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp.errors import UserError, flat
from blink_exp.evaluation import locks, results
from blink_exp.files import write_json, write_text
from blink_exp.methods.blink import selected_layers
from blink_exp.reports.console import wide_console
from blink_exp.settings.check import check
from blink_exp.settings.values import plain
from blink_exp.tracking import finish, keep_rows, lightning_logger
from blink_exp.training.batches import share_out
from blink_exp.training.data import BaseView, PairedCrops
from blink_exp.training.distributed import check_devices, strategy, together
from blink_exp.training.export import save_modules
from blink_exp.training.losses import weighted
from blink_exp.training.module import TokenSRTraining, parameters
from blink_exp.training.progress import ProgressLines
from blink_exp.training.recipe import backbone_type, check_output, check_recipe
from blink_exp.training.resume import OLD, Start, resume_from
from blink_exp.training.rotation import Rotation, WholeFiles
from blink_exp.training.signals import OwnSignals, stoppable


def run(cfg: DictConfig) -> dict[int, dict[str, float]]:
    """Trains for ``cfg``, going on from a checkpoint where there is one. Returns {layer: held-out losses and gain}.

    Raises UserError for what cannot be trained, and where a loss or a weight becomes nan or inf. SIGTERM and Ctrl-C: see
    ``signals``.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    quieten()
    check(cfg)
    settings = plain(cfg)
    hydra = HydraConfig.get()
    out = Path(hydra.runtime.output_dir)
    check_recipe(settings["trainer"])
    check_output(settings["output"])
    if cfg.tokensr.architecture == "interp":
        raise UserError("tokensr=interp has no parameters to train; choose conv, residual_conv, mlp, depthwise or pixel_shuffle")
    made: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(stoppable(out, lambda: made[0].global_step if made else 0, lambda: made[0].is_global_zero if made else True))
        start = resume_from(settings, out)
        trainer = make_trainer(settings, out, sound=not (start.path and start.path.resolve() == (out / OLD).resolve()))
        made.append(trainer)
        if trainer.is_global_zero:
            locks.claim(out, "hydra.sweep.dir" if hydra.mode == RunMode.MULTIRUN else "hydra.run.dir")
            if settings["output"]:
                locks.claim(settings["output"], "output")
        return train(cfg, settings, out, trainer, start)


def quieten() -> None:
    """Only what a user can act on is to be read."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for words in (
        ".*your dataloader is not resumable",  # PairedCrops starts at the restored step by itself
        ".*treespec, LeafSpec",  # Lightning's
        ".*is smaller than the logging interval",
        ".*does not have many workers",
        ".*Checkpoint directory .* exists and is not empty",
        ".*Experiment logs directory .* exists and is not empty",  # rows are kept
    ):
        warnings.filterwarnings("ignore", words)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


def train(cfg: DictConfig, settings: dict[str, Any], out: Path, trainer: Any, start: Start) -> dict[int, dict[str, float]]:
    import pytorch_lightning as pl
    from hydra.utils import instantiate

    started = time.time()
    recipe, speaks = settings["trainer"], trainer.is_global_zero
    weighted(settings["loss"]["weights"])
    data = PairedCrops(  # before the model is loaded: it says which of its settings cannot be
        BaseView(None), seed=cfg.seed, steps_done=start.step, global_batch=recipe["global_batch"], **settings["data"]
    )
    batch_size, trainer.accumulate_grad_batches = share_out(recipe["global_batch"], trainer.world_size, settings["data"]["batch_size"])
    if trainer.world_size > 1 and settings["model"].get("device_map"):
        raise UserError("model.device_map spreads one backbone over the devices that train; set model.device_map=null with several devices")
    dtype = backbone_type(recipe["precision"], settings["model"].get("dtype"))
    if dtype and speaks:
        print(f"the frozen backbone runs in {dtype}: trainer.precision={recipe['precision']} cannot mix with model.dtype=float16")
    device = trainer.strategy.root_device
    placed = {"device": "cpu" if device.type == "cpu" else str(device)} | ({"dtype": dtype} if dtype else {})
    backbone = instantiate(cfg.model, **placed, _convert_="all")
    layers = list(selected_layers(backbone.depth, **settings["layers"]))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data.transform = BaseView(backbone.processor.image_processor)
    optimization = {k: recipe[k] for k in ("lr", "warmup", "weight_decay", "checkpoint_activations", "channels_last")}
    module = TokenSRTraining(backbone, layers, cfg.tokensr.architecture, settings["loss"]["weights"], **optimization)
    if speaks:
        keep_rows(trainer.loggers, start.step)
        write_text(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        if start.note:
            print(start.note)
        many = f", {trainer.world_size} devices x {batch_size} pairs x {trainer.accumulate_grad_batches}" if trainer.world_size > 1 else ""
        print(
            f"layers {layers} of {backbone.depth}, {parameters(module.amplifiers):,} parameters{many}"
            + (f", going on from {start.path}" if start.path else "")
        )
    failed = True
    with together(trainer):
        try:
            trainer.fit(module, data, ckpt_path=start.path and str(start.path), weights_only=True if start.path else None)
            if not module.result:  # it was killed behind its last step
                trainer.validate(module, data, verbose=False)
            unreadable = data.unreadable_everywhere()
            failed = False
        except UserError as error:  # a worker process wraps its own in a traceback
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("blink_exp.errors.UserError: ")) from error
        finally:
            finish(trainer.loggers, failed)
    if speaks:
        write(settings, out, module, data, unreadable, time.time() - started)
    return module.result


def make_trainer(settings: dict[str, Any], out: Path, sound: bool = True) -> Any:
    """Lightning's Trainer for the group ``trainer``. ``sound``: see ``Rotation``. Raises UserError for what Lightning refuses."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
    from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    recipe = settings["trainer"]
    terminal = wide_console().is_terminal
    progress = RichProgressBar(theme=RichProgressBarTheme(metrics_format=".4f")) if terminal else ProgressLines()
    check_devices(recipe["accelerator"], recipe["devices"])
    rotation = Rotation(sound)
    chosen = strategy(recipe["strategy"], recipe["accelerator"], rotation)
    logger = lightning_logger(settings, out, name=f"tokensr-{settings['tokensr']['architecture']}")
    saved = ModelCheckpoint(
        dirpath=out, save_last=True, save_top_k=0, every_n_train_steps=recipe["checkpoint_every"], enable_version_counter=False
    )
    try:
        return pl.Trainer(
            accelerator=recipe["accelerator"],
            strategy=chosen,
            devices=recipe["devices"],
            num_nodes=recipe["num_nodes"],
            precision=recipe["precision"],
            plugins=None if str(recipe["strategy"]).startswith("deepspeed") else [WholeFiles(rotation)],
            max_epochs=recipe["epochs"],
            default_root_dir=out,
            logger=logger,
            callbacks=[saved, progress, OwnSignals()],
            enable_progress_bar=not isinstance(progress, ProgressLines),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=recipe["log_every"],
            use_distributed_sampler=False,  # GlobalBatches gives each device its own
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        words = " ".join(f"trainer.{name}={recipe[name]}" for name in ("accelerator", "strategy", "devices", "precision"))
        raise UserError(f"{words} do not go together ({flat(error, 200)}); see conf/trainer for those that do") from error


def write(settings: dict[str, Any], out: Path, module: Any, data: Any, unreadable: list[str], seconds: float) -> None:
    """The modules and what is known about their training."""
    target = Path(settings["output"]) if settings["output"] else out / "tokensr"
    training = {k: settings[k] for k in ("loss", "trainer", "data", "seed")}
    held_out = {layer: {"held_out": row} for layer, row in module.result.items()}
    save_modules(module.amplifiers, module.belonging, training, target, held_out)
    finished = {
        "layers": module.result,
        "images": data.found | {"unreadable": len(unreadable)},
        "skipped_images": [str(p) for p in data.broken] + unreadable,
        "backbone": module.backbone.settings,
        "devices": module.trainer.world_size,
        "parts_of_a_step": module.trainer.accumulate_grad_batches,
    }
    write_json(out / "metrics.json", finished | results.provenance(settings["seed"], seconds))
    show(module.result, len(data.held_out), seconds)
    if data.broken:
        print(f"{len(data.broken)} images could not be read and were left out, first {data.broken[0]}")
    if unreadable:
        print(f"{len(unreadable)} images could not be read and were replaced by the next ones, first {unreadable[0]}")
    print(f"modules written to {target}")


def show(result: dict[int, dict[str, float]], held_out: int, seconds: float) -> None:
    from rich.table import Table

    table = Table(title=f"held-out loss on {held_out} images not trained on ({seconds:.0f} s)")
    for column in ("layer", "interpolation", "TokenSR", "gain"):
        table.add_column(column, justify="right")
    for layer, row in sorted(result.items()):
        table.add_row(str(layer), f"{row['interpolation']:.4f}", f"{row['tokensr']:.4f}", f"{100 * row['gain']:.1f} %")
    wide_console().print(table)
