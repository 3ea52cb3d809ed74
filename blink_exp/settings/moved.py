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
    **dict.fromkeys(("data.allow_outside", "benchmark.allow_outside", "image_loading.allow_outside"), "image_loading.outside"),
}
BY_HAND = {"allow_targets": "allow_targets counts on the command line only, so that no config can allow itself anything; give it there"}


def moved(name: str) -> str | None:
    """One line for a renamed setting, or for one that is only a word of the command line, else None."""
    if name in BY_HAND:
        return BY_HAND[name]
    return f"{name} is now {MOVED[name]}; write {MOVED[name]}=..." if name in MOVED else None
