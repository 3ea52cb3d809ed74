"""What a multirun is about to do, and how long the same sweep took the last time: the first line of ``sweep.py -m``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from blink_exp.documents.sweeps import RecordedCommand
from blink_exp.errors import UserError, printable
from blink_exp.reports.entries import duration
from blink_exp.studies.sweep_folder import COMMAND, ROW, planned_jobs, read_command, read_sweep

RECENT = 8  # earlier commands that are read, 0.06 s each
GROUPS = ("method", "benchmark", "model")  # presets that the line names
OF_THE_RUN = ("hydra.", "hydra/", "store=", "force=", "devices=", "logger")  # settings in which the same sweep may differ


def announcement(command: RecordedCommand, folder: Path) -> str:
    """ "sweeping 2 points: method=blink benchmark=mosaic_mme model=scale_llava thresholds=high_exp,low_drop; last time 53.2 s
    (2026-11-28)".

    ``command``: its settings, Hydra's included; ``folder``: hydra.sweep.dir, whose multirun.yaml is not yet that of this command."""
    hydra = command["hydra"]
    words = list(map(str, hydra["overrides"]["task"]))
    points = len(planned_jobs(command)) or hydra["sweeper"].get("n_trials", 0)  # the second: of a search
    varied = {word.partition("=")[0] for word in words}
    presets = [f"{group}={hydra['runtime']['choices'][group]}" for group in GROUPS if group not in varied]
    last = last_time(words, folder)
    return printable(f"sweeping {points} points: {' '.join([*presets, *words])}") + (f"; last time {last}" if last else "")


def last_time(words: list[str], folder: Path) -> str | None:
    """Time and day of the newest sweep of the same points in ``folder`` or beside it, from the command to the last point; None where
    there is none. ``words``: the overrides of the command."""
    commands = sorted(folder.parent.glob(f"*/{COMMAND}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in commands[:RECENT]:
        with contextlib.suppress(UserError, OSError):  # damaged, or removed meanwhile; it is no business of this sweep
            if compared(map(str, read_command(path)["hydra"]["overrides"]["task"])) != compared(words):
                continue  # before its jobs, of which there may be thousands, are read
            sweep = read_sweep(path.parent, "hydra.sweep.dir")
            ends = [(job.folder / ROW).stat().st_mtime for job in sweep.jobs if job.row is not None and job.folder is not None]
            if 0 < len(ends) == len(sweep.jobs) and (seconds := max(ends) - path.stat().st_mtime) > 0:
                return f"{duration(seconds)} ({date.fromtimestamp(max(ends)).isoformat()})"
    return None


def compared(words: Iterable[str]) -> list[str]:
    return sorted(word for word in words if not word.lstrip("+~").startswith(OF_THE_RUN))
