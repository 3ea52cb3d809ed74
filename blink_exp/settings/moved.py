"""Renamed settings: the old name is answered with the new one."""

from __future__ import annotations

OPTIM = {f"trainer.{name}": f"optim.{name}" for name in ("lr", "warmup", "weight_decay")}
MOVED = OPTIM | {
    "trainer.optimizer": "optim.optimizer",
    "trainer.scheduler": "optim.schedule",
    "trainer.epochs": "trainer.max_epochs",
    "trainer.log_every": "trainer.log_every_n_steps",
    "trainer.checkpoint_every": "trainer.callbacks.checkpoint.every_n_train_steps",
    "trainer.global_batch": "data.global_batch",
    "trainer.checkpoint_activations": "checkpoint_activations",
    "trainer.channels_last": "channels_last",
    "data.source": "data",
    "logger.kind": "logger",
    "blink": "fill",
    "blink.fill": "fill.policy",
}


def moved(name: str) -> str | None:
    """One line for a renamed setting, else None."""
    return f"{name} is now {MOVED[name]}; write {MOVED[name]}=..." if name in MOVED else None
