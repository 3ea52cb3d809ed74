"""The Lightning module that trains TokenSR (Blink, Sec. 3.2.1 and App. A): one module for each layer, all from the same two forward
passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blink_exp.backbone.model import Backbone
from blink_exp.core.saliency import PatchGrid
from blink_exp.decoder.segments import enlarge
from blink_exp.decoder.visual_states import image_states
from blink_exp.errors import UserError
from blink_exp.finite import first_nonfinite
from blink_exp.tokensr.checkpoint import ModulesMetadata
from blink_exp.tokensr.modules import build_all
from blink_exp.tracking.names import held_out_metrics
from blink_exp.training.batches import rescale
from blink_exp.training.capture import Ranks, prepare_features
from blink_exp.training.feature_cache import Features
from blink_exp.training.losses import Standardise, WeightedLoss, weighted
from blink_exp.training.optimization import Optimization
from blink_exp.training.pairs import PairBatch
from blink_exp.training.quality import INTERPOLATION, TOKENSR, HeldOut, Norm, check_finite, layer_norm, measures
from blink_exp.training.standardise import Moments, Standardiser


class TokenSRTraining(pl.LightningModule):
    """Trains TokenSR modules of several layers side by side on a frozen backbone.

    Student: the full view's tokens of a quadrant at the input of layer l, bilinear to H x W, through TokenSR_l. Teacher: the hidden
    states of the quadrant as a view of its own, at the same point. Only TokenSR has gradients; no text is run.

    Args:
        layers: 0-based layers to train modules for.
        architecture: one of ``tokensr.modules.ARCHITECTURES``.
        loss: a weighted sum of ``training.losses``; None: KL.
        standardise: for losses of standardised features: ``features``, by mean and deviation of each dimension over the teacher's
            features of the first ``statistics_pairs`` training pairs, or ``norm``, behind the layer's input norm.
        optimization: optimizer and schedule; None: those of Blink's recipe.
        checkpoint_activations: activation checkpointing of each module.
        channels_last: memory format of the convolutions' weights, which is that of their inputs.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: list[int],
        architecture: str = "conv",
        loss: WeightedLoss | None = None,
        optimization: Optimization | None = None,
        checkpoint_activations: bool = False,
        channels_last: bool = False,
        standardise: str = "features",
        statistics_pairs: int = 512,
    ):
        super().__init__()
        self._frozen = [backbone]  # in a list to hide it from Lightning: not saved, moved or counted
        self.layers, self.optimization = list(layers), optimization or Optimization()
        self.checkpoint_activations = checkpoint_activations
        self.amplifiers = build_all(architecture, backbone.width, layers)
        if channels_last:
            self.amplifiers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = loss or weighted({"kl": 1.0})
        self.standardise, self.statistics_pairs = standardise, statistics_pairs
        self.mean: torch.Tensor | None  # (layers, width) of each layer's ``Standardiser``
        self.scale: torch.Tensor | None
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)
        self.grid = PatchGrid(2, *backbone.grid)  # quadrants
        self.quadrants: torch.Tensor
        self.register_buffer("quadrants", torch.stack([self.grid.indices(q) for q in range(4)]), persistent=False)
        self._step_losses: list[torch.Tensor] = []  # (layers,) of each part of an optimizer step
        self._held_out: dict[int, HeldOut] = {}
        self.result: dict[int, dict[str, float]] = {}
        self.metadata: ModulesMetadata = {
            "backbone": backbone.identity,
            "layers": self.layers,
            "width": backbone.width,
            "grid": list(backbone.grid),
            "architecture": architecture,
        }

    @property
    def backbone(self) -> Backbone:
        return self._frozen[0]

    def setup(self, stage: Any = None) -> None:
        model = self._frozen[0].model
        if model.device != self.device and getattr(model, "hf_device_map", None) is None:
            model.to(self.device)  # each process has the backbone on its own device

        data = getattr(self.trainer, "datamodule", None)
        if data is not None and data.cache_features and not data.stored:
            precision = self.trainer.precision_plugin
            ranks = Ranks(self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy)
            name = f"{type(precision).__name__} {precision.precision}"
            with precision.train_step_context():  # the precision of a step without a cache
                data.stored = prepare_features(self._frozen[0], self.layers, self.capture, data, name, ranks)
        if data is not None and self.loss.standardises and self.standardise == "features" and self.mean is None:
            with self.trainer.precision_plugin.train_step_context():
                self.take_statistics(data.in_order("train", min(self.statistics_pairs, len(data.train))), self._sum_over_devices)

    @torch.no_grad()
    def take_statistics(
        self, batches: Iterable[PairBatch | Features], over_devices: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums
    ) -> None:
        """Sets mean and scale of each layer's dimensions from the teacher's features of ``batches``."""
        moments = Moments(len(self.layers), self.backbone.width, self.device)
        for batch in batches:
            here = type(batch)(*(x.to(self.device) for x in batch))
            for row, (_, teacher) in enumerate(self.pairs(here).values()):
                moments.add(row, teacher)
        moments.sums = over_devices(moments.sums)
        self.mean, self.scale = moments.mean_and_scale()

    def standardiser(self, layer: int) -> Standardise | None:
        """What a loss of standardised features standardises by."""
        if not self.loss.standardises:
            return None
        if self.standardise == "norm":
            return self.norm(layer)
        assert self.mean is not None and self.scale is not None, "take_statistics comes first"
        row = self.layers.index(layer)
        return Standardiser(self.mean[row], self.scale[row])

    def frozen(self, batch: PairBatch) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """{layer: (patch (pairs, h * w, width) of the full view, teacher (pairs, H * W, width))}: all that a step needs of the backbone.
        Each image runs once for all its quadrants in the batch."""
        full, crop, quadrant, owner = batch
        states = image_states(self._frozen[0], torch.cat([full, crop]), self.layers)
        index = self.quadrants.to(quadrant.device)[quadrant]
        cut = {layer: states[layer].split([len(full), len(crop)]) for layer in self.layers}
        return {layer: (view[owner[:, None], index], teacher) for layer, (view, teacher) in cut.items()}

    def capture(self, batch: PairBatch) -> Features:
        """``frozen`` for a batch in main memory, with the layers as one dimension."""
        features = self.frozen(PairBatch(*(x.to(self.device) for x in batch)))
        patches, teachers = zip(*(features[layer] for layer in self.layers), strict=True)
        return Features(torch.stack(patches, dim=1), torch.stack(teachers, dim=1))

    def pairs(self, batch: PairBatch | Features) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """{layer: (interpolated student (batch, width, H, W), teacher (batch, H * W, width))} of a batch of training pairs."""
        if isinstance(batch, Features):
            pairs = {layer: (batch.patch[:, k].contiguous(), batch.teacher[:, k]) for k, layer in enumerate(self.layers)}
        else:
            pairs = self.frozen(batch)
        size = (self.grid.height, self.grid.width)
        return {layer: (enlarge(patch.mT.unflatten(-1, self.grid.patch), size), teacher) for layer, (patch, teacher) in pairs.items()}

    def refine(self, layer: int, patch: torch.Tensor) -> torch.Tensor:
        """(batch, H * W, width) what the module of a layer makes of (batch, width, H, W). Under ZeRO its weights are bf16."""
        module = self.amplifiers[str(layer)]
        refined: torch.Tensor = module(patch.to(next(module.parameters()).dtype))
        return refined.flatten(2).mT

    def norm(self, layer: int) -> Norm:
        """The input norm of a layer of the frozen model."""
        return layer_norm(self._frozen[0].llm, layer)

    def loss_of(self, layer: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return self.loss(student, teacher, self.standardiser(layer))

    def layer_loss(self, layer: int, patch: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return self.loss_of(layer, self.refine(layer, patch), teacher)

    def losses(self, batch: PairBatch | Features) -> torch.Tensor:
        """(layers,) losses of a batch."""
        again = functools.partial(checkpoint, self.layer_loss, use_reentrant=False) if self.checkpoint_activations else self.layer_loss
        return torch.stack([again(layer, *pair) for layer, pair in self.pairs(batch).items()])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        losses = self.losses(batch)
        self._step_losses.append(losses.detach())
        return losses.sum()  # the layers share no weight, so the sum trains each as if alone

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Raises UserError where the step overflows."""
        try:
            super().optimizer_step(*args, **kwargs)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            raise UserError(self._diverged("the step is larger than the weights can hold")) from None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the mean over the whole step: all accumulated batches, all devices. Raises UserError where it is nan or inf."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        mean = torch.stack(self._step_losses).mean(0)
        self._step_losses = []
        mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        self._check_losses(mean)
        for layer, value in zip(self.layers, mean, strict=True):
            self.log(f"loss/train/layer_{layer}", value, on_step=True)
        self.log("loss/train", mean.mean(), on_step=True, prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        self._held_out = {layer: HeldOut() for layer in self.layers}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for layer, (patch, teacher) in self.pairs(batch).items():
            held_out = self._held_out[layer]
            held_out.add_teacher(teacher)
            for way, student in ((INTERPOLATION, patch.flatten(2).mT), (TOKENSR, self.refine(layer, patch))):
                held_out.add(way, self.loss_of(layer, student, teacher).item(), *measures(student, teacher, self.norm(layer)), len(teacher))

    def on_validation_epoch_end(self) -> None:
        for layer in self.layers:
            held_out = self._held_out[layer]
            row = held_out.row(self._over_devices(held_out.sums))
            check_finite(layer, row, self._diverged)
            self.result[layer] = row
            for name, value in held_out_metrics(layer, row).items():
                self.log(name, value, sync_dist=self.trainer.world_size > 1)  # the same number on all

    def _over_devices(self, sums: list[float]) -> list[float]:
        return self._sum_over_devices(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist()

    def _sum_over_devices(self, sums: torch.Tensor) -> torch.Tensor:
        if self.trainer.world_size == 1:
            return sums
        total: torch.Tensor = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return total

    def _check_losses(self, losses: torch.Tensor) -> None:
        """Raises UserError where ``losses``, (layers,) of a step, are nan or inf."""
        if not bool(losses.isfinite().all()):
            layer, value = next((n, v) for n, v in zip(self.layers, losses.tolist(), strict=True) if not math.isfinite(v))
            raise UserError(self._diverged(f"the loss of layer {layer} is {value}"))

    def _diverged(self, reason: str) -> str:
        return (
            f"training stopped at step {self.trainer.global_step}: {reason}; use a smaller optim.lr (now {self.optimization.lr:g}), or"
            f" another model.dtype or trainer.precision; checkpoints before it are kept in {self.trainer.default_root_dir}"
        )

    def _check_state(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError, before a good checkpoint is replaced, where losses, weights or Adam's moments are nan or inf."""
        if self._step_losses:
            self._check_losses(torch.stack(self._step_losses).mean(0))
        for layer in self.layers:
            bad = first_nonfinite(self.amplifiers[str(layer)].named_parameters())
            if bad is not None:
                raise UserError(self._diverged(f"the weights {bad} of layer {layer} are nan or inf"))
        names = [name.removeprefix("amplifiers.") for name, p in self.named_parameters() if p.requires_grad]
        for optimizer in checkpoint.get("optimizer_states", []):
            moments = [
                (str(k), v) for k, state in optimizer.get("state", {}).items() for v in state.values() if isinstance(v, torch.Tensor)
            ]
            bad = first_nonfinite(moments)
            if bad is not None:
                layer = names[int(bad)].split(".")[0]
                raise UserError(self._diverged(f"the optimizer's moments of layer {layer} are nan or inf"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_state(checkpoint)
        checkpoint["blink_exp"] = {**self.metadata, "parts": self.trainer.accumulate_grad_batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["blink_exp"]
        if saved["backbone"] != self.metadata["backbone"]:
            raise UserError(f"the checkpoint was trained on {saved['backbone']}, not {self.metadata['backbone']}; give that model")
        expected: dict[str, Any] = {**self.metadata}
        for name in ("layers", "architecture", "width", "grid"):
            if saved[name] != expected[name]:
                raise UserError(f"the checkpoint was trained for {name} {saved[name]}, not {expected[name]}; start a new run")
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        rescale(progress, saved["parts"], self.trainer.accumulate_grad_batches)

    def configure_optimizers(self) -> Any:
        weights = [p for p in self.parameters() if p.requires_grad]
        optimizer, schedule = self.optimization.build(weights, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
