"""``python sweep.py status=FOLDER``, ``summarize=FOLDER`` and ``retry=failed hydra.sweep.dir=FOLDER``: about a sweep that was started
before. They are read before Hydra, which would make a folder for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError
from blink_exp.evaluation import locks
from blink_exp.reports.console import show_table
from blink_exp.settings.doors import OF_FOLDER, command_name
from blink_exp.settings.words import MULTIRUN, word
from blink_exp.studies.summary import write_summary
from blink_exp.studies.sweep_folder import COMMAND, STATES, SweepFolder, name_points, read_sweep, retry

SWEEP_DIR = "hydra.sweep.dir"
AGAIN = ("failed", "missing")  # states of the jobs that a retry runs
OF_LAUNCHER = ("hydra/launcher", "hydra.launcher")
PER_PROCESS = ("hydra.mode", "hydra.run.dir", SWEEP_DIR)  # of the words in multirun.yaml


def run(argv: Sequence[str]) -> list[str] | None:
    """Carries out ``status`` or ``summarize`` and returns None; for ``retry`` the arguments that run its jobs."""
    words = [word for word in argv if word not in MULTIRUN]
    values = {key: _unquoted(value) for key, equals, value in (word.partition("=") for word in words) if equals}
    verbs = [key for key in OF_FOLDER if key in values]
    if len(verbs) > 1:
        raise UserError(f"{' and '.join(f'{verb}={values[verb]}' for verb in verbs)} are two commands; give one of them")
    verb = verbs[0]
    if verb == "retry":
        return retried(values, words)
    others = [word for word in words if word.partition("=")[0] != verb]
    if others:
        raise UserError(f"{others[0]} says nothing to {verb}={values[verb]}, which reads what is there; leave it away")
    (status if verb == "status" else summarize)(_given(values[verb], verb))
    return None


def status(folder: str) -> None:
    """Prints how many jobs are done, failed, running and missing, and the first of each."""
    sweep = read_sweep(folder, "status")
    rows = sweep.rows()
    name_points(rows)
    lines = []
    for state in STATES:
        alike = [row for row in rows if row["status"] == state]
        unproposed = sweep.unproposed if state == "missing" else 0
        lines.append((state, str(len(alike) + unproposed), _first(alike)))
    show_table(("status", "points", "first"), lines, folder, right=("points",))
    if locks.in_use(sweep.path) or sweep.group_runs:
        print("the sweep is running: points that are missing have not had their turn, or answer their questions together")
    elif any(row["status"] in AGAIN for row in rows):
        print(f"to run what failed or is missing: {_cure(sweep)}")


def summarize(folder: str) -> None:
    """Writes summary.csv and summary.md of a sweep, from the rows of its jobs that are there."""
    sweep = read_sweep(folder, "summarize")
    rows = sweep.rows()
    common = name_points(rows)
    write_summary(rows, Path(folder))
    if common:
        print("at every point: " + " ".join(common))
    left = [row for row in rows if row["status"] != "done"]
    if left:
        print(f"{len(left)} of {len(rows)} points are not done, first {_first(left)}\nwhich: {command_name('sweep')} status={folder}")


def retried(values: dict[str, str], words: Sequence[str]) -> list[str] | None:
    """The arguments that run the jobs of a sweep again which failed or are missing; None where there are none."""
    setting, folder = (SWEEP_DIR, values.get(SWEEP_DIR, "")) if values["retry"] == "failed" else ("retry", values["retry"])
    if values["retry"] != "failed" and SWEEP_DIR in values:
        raise UserError(f"retry={values['retry']} is not known; write retry=failed {SWEEP_DIR}={values[SWEEP_DIR]}")
    if not folder:
        raise UserError(f"retry={values['retry']} needs the folder of the sweep: {command_name('sweep')} retry=failed {SWEEP_DIR}=FOLDER")
    launcher_words = [word for word in words if word.partition("=")[0] not in ("retry", SWEEP_DIR)]
    for word_ in launcher_words:
        if not word_.startswith(OF_LAUNCHER):
            raise UserError(
                f"{word_} cannot be changed by a retry, which runs the points as they were; leave it away, or start another sweep with"
                " the same store=..., which has what is done"
            )
    sweep = read_sweep(folder, setting)
    _check_command(sweep, f"{setting}={folder}")
    if sweep.group_runs and not locks.in_use(sweep.path):
        raise UserError(
            f"{setting}={folder} is in use: jobs of it go on without the command that started them; wait until they have ended"
            f" ({command_name('sweep')} status={folder}), or end them (in Slurm: scancel)"
        )
    states = [job.state for job in sweep.jobs]
    if not any(state in AGAIN for state in states):
        counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
        print(f"nothing to run again in {folder}: {counts}")
        return None
    retry(AGAIN)
    return ["-m", *command_words(sweep, launcher_words), word(SWEEP_DIR, folder)]


def command_words(sweep: SweepFolder, launcher_words: Sequence[str]) -> list[str]:
    """The words of a sweep's command, with the launcher of ``launcher_words``, if there is one."""
    hydra = sweep.command["hydra"]
    folders = [source["path"] for source in hydra["runtime"]["config_sources"] if source["provider"] == "command-line"]
    words = [str(word) for word in hydra["overrides"]["hydra"] if word.partition("=")[0].lstrip("+") not in PER_PROCESS]
    if any(word.startswith("hydra/launcher=") for word in launcher_words):
        words = [word for word in words if not word.startswith(OF_LAUNCHER)]
    words += launcher_words
    if "hydra/launcher=basic" in words:  # Hydra's own runs every job; this one the same way, but those that it is to
        words = [word for word in words if word != "hydra/launcher=basic"] + ["hydra/launcher=shared", "hydra.launcher.group_size=1"]
    return [*(part for folder in folders for part in ("--config-dir", folder)), *words, *map(str, hydra["overrides"]["task"])]


def _check_command(sweep: SweepFolder, given: str) -> None:
    if not sweep.command:
        raise UserError(f"{given} has no {COMMAND}, so the sweep's command is not known; run the command itself, with the same store")
    if sweep.script != "sweep":
        raise UserError(f"{given} is a multirun of {command_name(sweep.script)}; run that command again")
    if sweep.searches:
        raise UserError(
            f"{given} is a search, whose points follow from those before; run the same command again, the store has what is done"
        )


def _cure(sweep: SweepFolder) -> str:
    if sweep.script != "sweep" or sweep.searches or not sweep.command:
        return "run the same command again"
    return f"{command_name('sweep')} retry=failed {word(SWEEP_DIR, sweep.path)}"


def _first(rows: Sequence[PointRun]) -> str:
    if not rows:
        return ""
    error = f": {rows[0]['error']}" if rows[0]["status"] == "failed" else ""
    return f"{rows[0]['point']}{error}"


def _given(value: str, verb: str) -> str:
    if not value:
        raise UserError(f"{verb}= names no folder; give the hydra.sweep.dir of a sweep")
    return value


def _unquoted(value: str) -> str:
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return os.path.expanduser(value)
