"""The Lightning module that trains TokenSR (Blink, Sec. 3.2.1 and App. A): one module a layer, all from the same two passes."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from blink_exp.backbone.decode import enlarge
from blink_exp.backbone.load import Backbone
from blink_exp.errors import UserError
from blink_exp.saliency import PatchGrid
from blink_exp.tokensr.batches import rescale
from blink_exp.tokensr.losses import Loss, weighted
from blink_exp.tokensr.modules import build_all


class TokenSRTraining(pl.LightningModule):
    """Trains TokenSR modules of several layers side by side on a frozen backbone.

    Student: the full view's tokens of a quadrant at the input of layer l, bilinear to H x W, through TokenSR_l. Teacher: the hidden
    states of the quadrant as a view of its own, at the same point. Only TokenSR has gradients; text is never run.

    Args:
        layers: 0-based layers to train modules for.
        architecture: one of ``tokensr.modules.ARCHITECTURES``.
        loss: weights of ``tokensr.losses``.
        lr, warmup, weight_decay: AdamW at ``lr``, warm-up over a ``warmup`` share of the steps, cosine to 0 (App. A, Table 4).
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: list[int],
        architecture: str = "conv",
        loss: dict[str, float] | None = None,
        lr: float = 1e-4,
        warmup: float = 0.03,
        weight_decay: float = 0.0,
    ):
        super().__init__()
        self._frozen = [backbone]  # in a list, so that Lightning neither saves nor moves nor counts it
        self.layers, self.lr, self.warmup, self.weight_decay = list(layers), lr, warmup, weight_decay
        self.amplifiers = build_all(architecture, backbone.width, layers)
        self.loss: Loss = weighted(loss or {"kl": 1.0})
        self.grid = PatchGrid(2, *backbone.grid)  # quadrants
        self.quadrants: torch.Tensor
        self.register_buffer("quadrants", torch.stack([self.grid.indices(q) for q in range(4)]), persistent=False)
        self._step_losses: list[torch.Tensor] = []  # (layers,) of each part of an optimizer step
        self._held_out: dict[str, list[tuple[float, float, int]]] = {}
        self.result: dict[int, dict[str, float]] = {}
        self.belonging = {
            "backbone": backbone.identity,
            "layers": self.layers,
            "width": backbone.width,
            "grid": list(backbone.grid),
            "architecture": architecture,
        }

    def setup(self, stage: Any = None) -> None:
        model = self._frozen[0].model
        if model.device != self.device and getattr(model, "hf_device_map", None) is None:
            model.to(self.device)  # each process has the backbone on its own device

    def pairs(self, batch) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """{layer: (interpolated student (batch, width, H, W), teacher (batch, H * W, width))} of a batch of training pairs."""
        full, crop, quadrant = batch
        states = self._frozen[0].visual_states(torch.cat([full, crop]), self.layers)
        index = self.quadrants[quadrant]
        out = {}
        for layer, both in states.items():
            view, teacher = both.chunk(2)
            picked = view.gather(1, index[..., None].expand(-1, -1, view.shape[-1]))
            patch = picked.mT.unflatten(-1, self.grid.patch)
            out[layer] = enlarge(patch, (self.grid.height, self.grid.width)), teacher
        return out

    def refine(self, layer: int, patch: torch.Tensor) -> torch.Tensor:
        """(batch, H * W, width) what the module of a layer makes of (batch, width, H, W). Under ZeRO its weights are bf16."""
        module = self.amplifiers[str(layer)]
        return module(patch.to(next(module.parameters()).dtype)).flatten(2).mT

    def training_step(self, batch, batch_idx):
        pairs = self.pairs(batch)
        losses = [self.loss(self.refine(layer, pairs[layer][0]), pairs[layer][1]) for layer in self.layers]
        self._step_losses.append(torch.stack(losses).detach())
        return torch.stack(losses).sum()  # the layers share no weight, so the sum trains each as if alone

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Logs the mean over the whole step: all its parts, all devices."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        mean = torch.stack(self._step_losses).mean(0)
        self._step_losses = []
        mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        for layer, value in zip(self.layers, mean, strict=True):
            self.log(f"loss/train/layer_{layer}", value, on_step=True)
        self.log("loss/train", mean.mean(), on_step=True, prog_bar=True)

    def on_validation_epoch_start(self):
        self._held_out = {str(layer): [] for layer in self.layers}

    def validation_step(self, batch, batch_idx):
        for layer, (patch, teacher) in self.pairs(batch).items():
            plain = self.loss(patch.flatten(2).mT, teacher).item()
            refined = self.loss(self.refine(layer, patch), teacher).item()
            self._held_out[str(layer)].append((plain, refined, len(teacher)))

    def on_validation_epoch_end(self):
        for layer in self.layers:
            rows = self._held_out[str(layer)]
            sums = [sum(row[k] * row[2] for row in rows) for k in (0, 1)] + [sum(row[2] for row in rows)]
            plain, refined, samples = self._over_devices(sums)
            plain, refined = plain / samples, refined / samples
            self.result[layer] = {"interpolation": plain, "tokensr": refined, "gain": 1 - refined / plain, "samples": int(samples)}
            for name, value in (("loss/held_out", refined), ("gain", 1 - refined / plain)):
                self.log(f"{name}/layer_{layer}", value, sync_dist=self.trainer.world_size > 1)  # the same number on all

    def _over_devices(self, sums: list[float]) -> list[float]:
        if self.trainer.world_size == 1:
            return sums
        return self.trainer.strategy.reduce(torch.tensor(sums, dtype=torch.float64, device=self.device), reduce_op="sum").tolist()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["blink_exp"] = self.belonging | {"parts": self.trainer.accumulate_grad_batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["blink_exp"]
        if saved["backbone"] != self.belonging["backbone"]:
            raise UserError(f"the checkpoint was trained on {saved['backbone']}, not {self.belonging['backbone']}; give that model")
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        rescale(progress, saved["parts"], self.trainer.accumulate_grad_batches)

    def configure_optimizers(self) -> Any:
        weights = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        warm = max(1, round(self.warmup * steps))

        def scale(step: int) -> float:
            return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
