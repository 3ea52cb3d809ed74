"""Trains TokenSR modules, saves them, and reports their gain over interpolation on held-out images."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from blink_exp.backbone.model import Backbone
from blink_exp.documents.runs import TrainingMetrics
from blink_exp.errors import UserError
from blink_exp.evaluation import locks, results
from blink_exp.files import write_json, write_text
from blink_exp.methods.blink import policy_of, selected_layers
from blink_exp.reports.console import wide_console
from blink_exp.settings.doors import command_line
from blink_exp.settings.roots import TrainSettings
from blink_exp.tokensr import checkpoint
from blink_exp.tracking import finish, keep_rows
from blink_exp.training.answer_module import WAYS as ANSWER_WAYS
from blink_exp.training.answer_module import AnswerTraining
from blink_exp.training.batches import share_out
from blink_exp.training.canvases import BaseView
from blink_exp.training.distributed import Zero, terminate_children_on_failure
from blink_exp.training.export import DECISIONS, RECORDED, save_modules
from blink_exp.training.job import Job
from blink_exp.training.losses import WeightedLoss, weighted
from blink_exp.training.module import TokenSRTraining, parameters
from blink_exp.training.paired_crops import PairedCrops
from blink_exp.training.quality import WAYS, warning
from blink_exp.training.recipe import backbone_type, check_data, check_output, check_recipe
from blink_exp.training.resume import OLD, Start, resume_from
from blink_exp.training.signals import stoppable
from blink_exp.training.trainer import make_trainer, quieten

CAPTION = "cosine: behind the layer's input norm; rel. error: sum of (student - teacher)^2 over sum of teacher^2"


def run(job: Job) -> dict[int, dict[str, float]]:
    """Trains, resuming from a checkpoint if there is one. Returns {layer: held-out losses and gain}.

    Raises UserError for invalid settings, and where a loss or a weight becomes nan or inf. SIGTERM and Ctrl-C: see ``signals``.
    """
    quieten()
    check_recipe(job.settings)
    check_output(job.settings.output)
    trainers: list[pl.Trainer] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            stoppable(job.out, lambda: trainers[0].global_step if trainers else 0, lambda: trainers[0].is_global_zero if trainers else True)
        )
        start = resume_from(job.settings, job.out)
        trainer = make_trainer(job, sound=not (start.path and start.path.resolve() == (job.out / OLD).resolve()))
        trainers.append(trainer)
        if trainer.is_global_zero:
            locks.claim(job.out, job.folder)
            if job.settings.output:
                locks.claim(job.settings.output, "output")
        return train(job, trainer, start)


def load_backbone(job: Job, trainer: pl.Trainer) -> Backbone:
    """The frozen model on this process's device. Raises UserError for settings incompatible with the trainer's."""
    model, precision = job.settings.model, job.settings.trainer.precision
    if trainer.world_size > 1 and model.get("device_map"):
        raise UserError("model.device_map spreads one backbone over the devices that train; set model.device_map=null with several devices")
    dtype = backbone_type(precision, model.get("dtype"))
    if dtype and trainer.is_global_zero:
        print(f"the frozen backbone runs in {dtype}: trainer.precision={precision} cannot mix with model.dtype=float16")
    device = trainer.strategy.root_device
    return job.backbone(device="cpu" if device.type == "cpu" else str(device), **({"dtype": dtype} if dtype else {}))


def train(job: Job, trainer: pl.Trainer, start: Start) -> dict[int, dict[str, float]]:
    started, settings, speaks = time.time(), job.settings, trainer.is_global_zero
    loss, answer_weight = losses_of(settings)
    data = job.data(transform=BaseView(None), steps_done=start.step)  # checks its settings before the model is loaded
    check_data(settings, data)
    batch_size, trainer.accumulate_grad_batches = share_out(data.global_batch, trainer.world_size, data.batch_size)
    backbone = load_backbone(job, trainer)
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    data.transform = BaseView(backbone.processor.image_processor)
    module = make_module(job, backbone, loss, answer_weight)
    layers = module.layers
    if answer_weight:
        data.ask(backbone.processor.image_processor, pairs=loss is not None)
    if speaks:
        keep_rows(trainer.loggers, start.step)
        write_text(job.out / "config.yaml", job.text)
        if start.note:
            print(start.note)
        many = f", {trainer.world_size} devices x {batch_size} pairs x {trainer.accumulate_grad_batches}" if trainer.world_size > 1 else ""
        print(
            f"layers {layers} of {backbone.depth}, {parameters(module.amplifiers):,} parameters{many}"
            + (f", going on from {start.path}" if start.path else "")
        )
    if settings.measure:
        folder = load_modules(module, settings.tokensr.path)
        if speaks:
            print(f"measuring the modules of {folder}; nothing is trained")
    elif settings.tokensr.path:
        begin_with(module, settings.tokensr.architecture, Path(settings.tokensr.path))
    if isinstance(trainer.strategy, Zero):
        trainer.strategy.goes_on_from(start.path)
    failed = True
    with terminate_children_on_failure(trainer):
        try:
            if not settings.measure:
                trainer.fit(module, data, ckpt_path=start.path and str(start.path), weights_only=True if start.path else None)
            if not module.result:  # measure=true, or killed after its last step
                trainer.validate(module, data, verbose=False)
            unreadable = data.unreadable_everywhere()
            failed = False
        except UserError as error:  # a worker process wraps its own in a traceback
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("blink_exp.errors.UserError: ")) from error
        finally:
            finish(trainer.loggers, failed)
    if speaks:
        target = None if settings.measure else save(job, module)
        write(job, module, data, unreadable, time.time() - started, target)
    return module.result


def losses_of(settings: TrainSettings) -> tuple[WeightedLoss | None, float]:
    """(loss of features, weight of the answers' cross-entropy). Raises UserError where all weights are 0."""
    weights: dict[str, float] = asdict(settings.loss.weights)
    answer = weights.pop("answer")
    features = None if answer and not any(weights.values()) else weighted(weights, settings.loss.temperature)
    return features, answer


def make_module(job: Job, backbone: Backbone, loss: WeightedLoss | None, answer_weight: float) -> TokenSRTraining:
    """The Lightning module of a training, on features or on answers."""
    settings = job.settings
    options: dict[str, Any] = {
        "architecture": settings.tokensr.architecture,
        "optimization": job.optimization,
        "checkpoint_activations": settings.checkpoint_activations,
        "channels_last": settings.channels_last,
        "standardise": settings.loss.standardise,
        "statistics_pairs": settings.loss.statistics_pairs,
    }
    if not answer_weight:
        return TokenSRTraining(backbone, list(selected_layers(backbone.depth, **asdict(settings.layers))), loss=loss, **options)
    policy = policy_of(
        backbone,
        saliency=settings.saliency.scorer,
        **asdict(settings.grid),
        **asdict(settings.thresholds),
        layers=asdict(settings.layers),
        resolution=asdict(settings.resolution),
        seed=settings.seed,
    )
    return AnswerTraining(backbone, policy, weight=answer_weight, loss=loss, **options)


def load_modules(module: TokenSRTraining, path: str | None) -> Path:
    """Replaces the modules by those in the folder ``path``, of any architecture; None: those that ship with the backbone."""
    backbone = module.backbone
    folder = Path(path) if path else backbone.tokensr
    if folder is None:
        raise UserError(f"measure=true with tokensr.path=null, but {backbone.name} ships without TokenSR modules; give tokensr.path=FOLDER")
    for layer in module.layers:
        module.amplifiers[str(layer)] = checkpoint.load(folder, layer, backbone.identity, backbone.width)
    return folder


def begin_with(module: TokenSRTraining, architecture: str, folder: Path) -> None:
    """Gives the modules the weights of those in a folder, to be trained on. Raises UserError where their architecture is another."""
    for layer in module.layers:
        weights = checkpoint.load(folder, layer, module.backbone.identity, module.backbone.width).state_dict()
        try:
            module.amplifiers[str(layer)].load_state_dict(weights)
        except RuntimeError:
            raise UserError(
                f"tokensr.path={folder} holds modules that are no tokensr={architecture}, and a training goes on with its own kind;"
                " name theirs, or leave tokensr.path away"
            ) from None


def save(job: Job, module: TokenSRTraining) -> Path:
    """Writes the modules. Returns their folder."""
    target = Path(job.settings.output) if job.settings.output else job.out / "tokensr"
    names = (*RECORDED, *DECISIONS) if job.settings.loss.weights.answer else RECORDED  # type: ignore[attr-defined]
    settings = asdict(job.settings)
    training = {name: settings[name] for name in names}
    if job.settings.tokensr.path:
        training["begun_with"] = checkpoint.metadata(Path(job.settings.tokensr.path), module.layers[0]).training
    save_modules(module.amplifiers, module.metadata, training, target, module.result)
    return target


def evaluation(job: Job, layers: list[int], target: Path) -> str:
    """The command that evaluates the modules in ``target``."""
    where = f"layer={layers[0]}" if len(layers) == 1 else f"layers.indices={str(layers).replace(' ', '')}"
    words = [word for word in job.words if not word.startswith("tokensr.path=")]
    return command_line("evaluate", ["method=blink", *words, where, f"tokensr.path={target}"])


def write(job: Job, module: TokenSRTraining, data: PairedCrops, unreadable: list[str], seconds: float, target: Path | None) -> None:
    """Writes the metrics of a training and prints them. ``target``: folder of its modules; None: nothing was trained."""
    finished: TrainingMetrics = {
        "layers": module.result,
        "parameters": parameters(module.amplifiers),
        "images": data.summary | {"unreadable": len(unreadable)},
        "skipped_images": [*data.broken, *unreadable],
        "backbone": module.backbone.settings,
        "devices": module.trainer.world_size,
        "parts_of_a_step": module.trainer.accumulate_grad_batches,
        **results.provenance(job.settings.seed, seconds),
    }
    write_json(job.out / "metrics.json", finished)
    show(module.result, int(next(iter(module.result.values()))["samples"]), seconds)
    if data.broken:
        print(f"{len(data.broken)} images were left out, first {next(iter(data.broken.values()))}")
    if unreadable:
        print(f"{len(unreadable)} images could not be read and were replaced by the next ones, first {unreadable[0]}")
    if target is not None:
        print(f"modules written to {target}")
        print(f"evaluate them: {evaluation(job, module.layers, target)}")
    if (line := warning(module.result)) is not None:
        print(line)  # the last line, so that it is seen


def show(result: dict[int, dict[str, float]], held_out: int, seconds: float) -> None:
    table = Table(title=f"held out: {held_out} pairs of images not trained on ({seconds:.0f} s)", caption=CAPTION)
    for column in ("layer", "loss: interp", "TokenSR", "gain", "cosine: interp", "TokenSR", "rel. error: interp", "TokenSR"):
        table.add_column(column, justify="right")
    for layer, row in sorted(result.items()):
        cells = [f"{row[f'{measure}_{way}']:.3f}" for measure in ("cosine", "relative_error") for way in WAYS]
        table.add_row(str(layer), f"{row['interpolation']:.4f}", f"{row['tokensr']:.4f}", f"{100 * row['gain']:.1f} %", *cells)
    wide_console().print(table)
    answers = next(iter(result.values()))
    if "accuracy_tokensr" in answers:
        show_answers(answers)


def show_answers(row: dict[str, float]) -> None:
    title = f"held out: answers to {row['questions']} questions, {100 * row['expanded']:.0f} % with an expansion"
    table = Table(title=title, caption="right: every token of the answer would be generated")
    for column in ("", "none", "interpolation", "TokenSR"):
        table.add_column(column, justify="right")
    table.add_row("cross-entropy", *(f"{row[way]:.4f}" for way in ANSWER_WAYS))
    table.add_row("right", *(f"{100 * row[f'accuracy_{way}']:.1f} %" for way in ANSWER_WAYS))
    wide_console().print(table)
