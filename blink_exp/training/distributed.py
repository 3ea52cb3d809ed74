"""Lightning's strategies configured for TokenSR, and termination of all processes when one fails."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pkgutil
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.seed import reset_seed
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy

from blink_exp.errors import UserError, nearest
from blink_exp.training.resume import DEEPSPEED_CLASSES, TAG, parts_of
from blink_exp.training.rotation import Rotation, write_whole

STRATEGIES = ("auto", "ddp", "deepspeed_zero1", "deepspeed_zero2")
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's variable that overrides what torch.load is asked for
UNIVERSAL = "universal"  # temporary folder while loading a checkpoint of another number of processes


class Zero(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, stages 1 and 2: every device holds all weights in bf16, and its share of the float32 copy and of Adam's state.

    Beyond Lightning's: runs on CPUs, over gloo; resumes from a checkpoint of another number of processes, by DeepSpeed's universal format;
    keeps the previous checkpoint until a new one is complete (see ``Rotation``).
    """

    def __init__(self, stage: int, rotation: Rotation | None = None):
        super().__init__(stage=stage, logging_batch_size_per_gpu=1)  # only for DeepSpeed's speed log
        self.rotation = rotation or Rotation()

    @property
    def root_device(self) -> torch.device:
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device  # DeepSpeed requires an index

    def setup_environment(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        import deepspeed.ops

        # Without this entry DeepSpeed compiles a C++ extension for shared memory at start: a minute, and fatal without a compiler.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
        DDPStrategy.setup_environment(self)  # as DeepSpeedStrategy's, which refuses CPUs

    def setup_distributed(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def backward(self, closure_loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Lightning has divided the loss by the number of accumulated batches already; DeepSpeed would do it again.
        loss: torch.Tensor = super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)
        return loss

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        part = self.rotation.beside(path, "part")
        if self.is_global_zero:
            self.rotation.clear(path)
        self.barrier()
        write_whole(lambda: super(Zero, self).save_checkpoint(checkpoint, part, storage_options), part, path)
        self.barrier()
        if self.is_global_zero:
            self.rotation.put(path)
        self.barrier()

    def goes_on_from(self, path: Path | None) -> None:
        """Prepares for resuming from the checkpoint ``path``; None: a new training. Call it before the training begins, as DeepSpeed's
        config must say at start whether a universal checkpoint will be loaded."""
        if path is not None and len(parts_of(path)) != self.world_size:
            self.config["checkpoint"] = {"load_universal": True}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        with weights_only_load():
            return self._load_checkpoint(checkpoint_path, weights_only)

    def _load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None) -> dict[str, Any]:
        if "checkpoint" not in self.config:
            client_state: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
            return client_state
        universal = Path(self.broadcast(self.lightning_module.trainer.default_root_dir), UNIVERSAL)
        try:
            if self.is_global_zero:
                shutil.rmtree(universal, ignore_errors=True)  # of a run that was killed here
                convert(Path(checkpoint_path), universal)
            self.barrier()
            _, client_state = self.deepspeed_engine.load_checkpoint(universal, tag=TAG, load_lr_scheduler_states=False)
            self.barrier()
        finally:
            if self.is_global_zero:
                shutil.rmtree(universal, ignore_errors=True)
        return client_state


@contextlib.contextmanager
def weights_only_load() -> Iterator[None]:
    """In the block torch.load takes tensors and plain values only, whatever it is asked for: DeepSpeed asks for any pickle, which can run
    code. Processes started in the block do the same."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([pkgutil.resolve_name(name) for name in DEEPSPEED_CLASSES]):
            yield
    finally:
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def convert(path: Path, universal: Path) -> None:
    """Converts a checkpoint to DeepSpeed's universal format, which any number of processes can load. It holds float32 weights and moments,
    12 bytes for each parameter."""
    from deepspeed.checkpoint import ds_to_universal

    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        ds_to_universal.main(argparse.Namespace(input_folder=str(path / TAG), output_folder=str(universal / TAG), **options))


def strategy(name: str, accelerator: str, rotation: Rotation | None = None) -> Any:
    """The strategy for Lightning's Trainer. ``rotation``: of ZeRO's checkpoints, which the strategy writes itself.

    Raises UserError for an unknown name, or where DeepSpeed is not installed.
    """
    if name not in STRATEGIES:
        raise UserError(f"trainer.strategy={name} is not known; {nearest(name, STRATEGIES)}")
    if name == "auto":
        return name
    if name == "ddp":
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)  # the only buffer is a constant; no second copy
    if find_spec("deepspeed") is None:
        raise UserError(f"trainer.strategy={name} needs DeepSpeed, which is not installed; pip install deepspeed, or use trainer=ddp")
    if accelerator == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at DeepSpeed's first import; otherwise it selects a GPU if there is one
    return Zero(int(name[-1]), rotation)


def check_devices(accelerator: str, devices: Any) -> None:
    """Raises UserError where the machine has fewer GPUs than requested."""
    if accelerator not in ("gpu", "cuda"):
        return
    available = torch.cuda.device_count() or int(accelerator == "gpu" and torch.backends.mps.is_available())
    if not available:
        raise UserError(f"trainer.accelerator={accelerator}, but there is no GPU here that torch can use; add trainer.accelerator=cpu")
    if isinstance(devices, int) and devices > available:
        raise UserError(f"trainer.devices={devices} is more than the {available} GPUs of this machine; use 1 to {available}")
    if isinstance(devices, list) and not all(0 <= number < available for number in devices):
        raise UserError(f"trainer.devices={devices} names a GPU that is not there; use numbers from 0 to {available - 1}")


@contextlib.contextmanager
def terminate_children_on_failure(trainer: Any, grace: float = 10.0) -> Iterator[None]:
    """Ends the processes that Lightning launched from this one when this one fails in the block, so that none waits forever.

    ``grace``: seconds for them to exit by themselves. If this process was stopped by a signal, they get SIGTERM first.
    """
    try:
        yield
    except BaseException as error:
        started = getattr(trainer.strategy.launcher, "procs", [])
        children, started[:] = list(started), []  # Lightning's monitor of this list would kill this process before it reports the error
        if isinstance(error, SystemExit | KeyboardInterrupt):
            for child in children:
                child.terminate()
        until = time.monotonic() + grace
        for child in children:
            try:
                child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
        raise
