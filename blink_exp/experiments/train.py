"""train.py: trains TokenSR modules, saves them, and says what they gain over interpolation on held-out images."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp.errors import UserError
from blink_exp.experiments import results
from blink_exp.experiments.resume import resume_from


def run(cfg: DictConfig) -> dict[int, dict[str, float]]:
    """Trains for ``cfg``, going on from a checkpoint where there is one. Returns {layer: held-out losses and gain}."""
    import pytorch_lightning as pl
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from blink_exp.methods.blink import selected_layers
    from blink_exp.tokensr.batches import share_out
    from blink_exp.tokensr.data import BaseView, PairedCrops
    from blink_exp.tokensr.distributed import together
    from blink_exp.tokensr.training import TokenSRTraining, parameters
    from blink_exp.tracking import finish

    results.encode_anything()
    started = time.time()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # PairedCrops starts at the restored step by itself
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec")  # Lightning's
    settings = results.plain(cfg)
    out = Path(HydraConfig.get().runtime.output_dir)
    resumed, steps_done = resume_from(settings, out)
    if cfg.tokensr.architecture == "interp":
        raise UserError("tokensr=interp has no parameters to train; choose conv, residual_conv, mlp, depthwise or pixel_shuffle")
    recipe = settings["trainer"]
    check_recipe(recipe)
    trainer = make_trainer(settings, out)
    batch_size, trainer.accumulate_grad_batches = share_out(recipe["global_batch"], trainer.world_size, settings["data"]["batch_size"])
    if trainer.world_size > 1 and settings["model"].get("device_map"):
        raise UserError("model.device_map spreads one backbone over the devices that train; set model.device_map=null with several devices")
    device = trainer.strategy.root_device
    backbone = instantiate(cfg.model, device="cpu" if device.type == "cpu" else str(device), _convert_="all")
    layers = list(selected_layers(backbone.depth, layer=cfg.layer, **settings["layers"]))
    if not layers:
        raise UserError("layers.indices=[] trains nothing; name at least one layer, e.g. layer=12")
    if trainer.is_global_zero:
        results.write(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = PairedCrops(
        BaseView(backbone.processor.image_processor),
        seed=cfg.seed,
        steps_done=steps_done,
        global_batch=recipe["global_batch"],
        **settings["data"],
    )
    optimization = {k: recipe[k] for k in ("lr", "warmup", "weight_decay", "checkpoint_activations", "channels_last")}
    module = TokenSRTraining(backbone, layers, cfg.tokensr.architecture, settings["loss"]["weights"], **optimization)
    if trainer.is_global_zero:
        many = f", {trainer.world_size} devices x {batch_size} pairs x {trainer.accumulate_grad_batches}" if trainer.world_size > 1 else ""
        print(
            f"layers {layers} of {backbone.depth}, {parameters(module.amplifiers):,} parameters{many}"
            + (f", going on from {resumed}" if resumed else "")
        )
    failed = True
    with together(trainer):
        try:
            trainer.fit(module, data, ckpt_path=resumed, weights_only=True if resumed else None)
            if trainer.interrupted:
                raise KeyboardInterrupt
            if not module.result:  # it was killed behind its last step
                trainer.validate(module, data, verbose=False)
            unreadable = data.unreadable_everywhere()
            failed = False
        except UserError as error:  # a worker process wraps its own in a traceback
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("blink_exp.errors.UserError: ")) from error
        finally:
            finish(trainer.loggers, failed)
    if trainer.is_global_zero:
        write(settings, out, module, data, unreadable, time.time() - started)
    return module.result


def check_recipe(recipe: dict[str, Any]) -> None:
    """Raises UserError for an optimizer or a schedule that no training here has: such a word must not be recorded and ignored."""
    for name, only in (("optimizer", "adamw"), ("scheduler", "cosine")):
        if recipe.get(name, only) != only:
            raise UserError(f"trainer.{name}={recipe[name]} is not there; every training uses {only}, so leave trainer.{name}={only}")
    if recipe["channels_last"] and recipe["strategy"].startswith("deepspeed"):
        raise UserError("trainer.channels_last=true has no effect under ZeRO, which lays the weights out itself; use false, or trainer=ddp")


def make_trainer(settings: dict[str, Any], out: Path) -> Any:
    """Lightning's Trainer for the group ``trainer``."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
    from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBarTheme

    from blink_exp.tokensr.distributed import check_devices, strategy
    from blink_exp.tracking import lightning_logger

    recipe = settings["trainer"]
    if recipe["checkpoint_every"] < 1:
        raise UserError(f"trainer.checkpoint_every={recipe['checkpoint_every']} keeps nothing to resume from; use 1 step or more")
    check_devices(recipe["accelerator"], recipe["devices"])
    saved = ModelCheckpoint(
        dirpath=out, save_last=True, save_top_k=0, every_n_train_steps=recipe["checkpoint_every"], enable_version_counter=False
    )
    return pl.Trainer(
        accelerator=recipe["accelerator"],
        strategy=strategy(recipe["strategy"], recipe["accelerator"]),
        devices=recipe["devices"],
        num_nodes=recipe["num_nodes"],
        precision=recipe["precision"],
        max_epochs=recipe["epochs"],
        default_root_dir=out,
        logger=lightning_logger(settings, out, name=f"tokensr-{settings['tokensr']['architecture']}"),
        callbacks=[saved, RichProgressBar(theme=RichProgressBarTheme(metrics_format=".4f"))],
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=recipe["log_every"],
        use_distributed_sampler=False,  # GlobalBatches gives each device its own
    )


def write(settings: dict[str, Any], out: Path, module: Any, data: Any, unreadable: list[str], seconds: float) -> None:
    """The modules and what is known about their training."""
    from blink_exp.tokensr.export import save_modules

    target = Path(settings["output"]) if settings["output"] else out / "tokensr"
    training = {k: settings[k] for k in ("loss", "trainer", "data", "seed")}
    held_out = {layer: {"held_out": row} for layer, row in module.result.items()}
    save_modules(module.amplifiers, module.belonging, training, target, held_out)
    finished = {
        "layers": module.result,
        "images": data.found | {"unreadable": len(unreadable)},
        "skipped_images": [str(p) for p in data.broken] + unreadable,
        "devices": module.trainer.world_size,
        "parts_of_a_step": module.trainer.accumulate_grad_batches,
    }
    results.write_json(out / "metrics.json", finished | results.provenance(settings["seed"], seconds))
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
    results.console().print(table)
