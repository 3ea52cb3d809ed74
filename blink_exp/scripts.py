"""The commands as functions: what train.py, evaluate.py and sweep.py, the console scripts and ``python -m blink_exp`` call."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import hydra

from blink_exp.cli import entry, guard
from blink_exp.settings.folders import CONF


def start(name: str) -> None:
    """Runs ``blink_exp.commands.<name>.run`` with the settings of conf/<name>.yaml and those of the command line."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)
    def main(cfg: Any) -> object:
        from blink_exp.studies.jobs import job

        run = importlib.import_module(f"blink_exp.commands.{name}").run
        return guard(run, cfg) if name == "sweep" else job(run, cfg)  # a sweep notes its jobs itself, with their scores

    entry(main, name, sweep_folder if name == "sweep" else None)


def sweep_folder(words: list[str]) -> list[str] | None:
    """``status=``, ``summarize=`` and ``retry=``, which read the folder of a sweep and need no settings."""
    from blink_exp.commands.sweep_folder import run

    return run(words)


train, evaluate, sweep = partial(start, "train"), partial(start, "evaluate"), partial(start, "sweep")
view, rescore, compare, parity = partial(start, "view"), partial(start, "rescore"), partial(start, "compare"), partial(start, "parity")
