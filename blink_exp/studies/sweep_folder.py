"""The folder of a multirun as its files describe it: which jobs it has, and what became of each.

``multirun.yaml`` holds the command. Each job has a folder with its overrides (``.hydra``) and, once it has ended, its row (``job.json``);
while it runs it holds the lock of that folder. Nothing depends on where the folder is, so a copy reads the same.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from blink_exp.documents.runs import PointRun
from blink_exp.documents.sweeps import RecordedCommand
from blink_exp.errors import UserError, flat
from blink_exp.evaluation import locks
from blink_exp.files import read_object, write_text
from blink_exp.settings.doors import command_name
from blink_exp.settings.folders import CONF
from blink_exp.settings.values import read_settings

log = logging.getLogger(__name__)
COMMAND = "multirun.yaml"  # in hydra.sweep.dir: the config of the command
ROW = "job.json"  # in a job's folder, once the job has ended
ATTEMPTS, PAUSE = 10, 0.2  # to read multirun.yaml while a sweep starts; seconds between them
STATES = ("done", "failed", "running", "missing")
LEFT_OUT = "the job counts as missing"
NUMBER = (int, float)
JOB: dict[str, type | tuple[type, ...]] = {"overrides": list, "point": str, "status": str}  # keys of a row
DONE: dict[str, type | tuple[type, ...]] = {"scores": dict, "samples": int, "seconds": NUMBER, "folder": str}  # of a point that is done
GROUPS = ".groups"  # in hydra.sweep.dir: a folder for each group of a launcher, which its process has locked
_early_end: dict[int, str] = {}  # {number of a job of this process's multirun: why its process ended before it did}
_retry: list[str] = []  # states of the jobs that a multirun of this process runs; empty: all jobs


def retry(states: Sequence[str]) -> None:
    """From here on a multirun of this process runs only jobs in one of ``states``."""
    _retry[:] = states


def note_early_end(numbers: Iterable[int], why: str) -> None:
    """Has those of jobs ``numbers`` of this process's multirun that left no result say ``why``."""
    _early_end.update(dict.fromkeys(numbers, why))


def retried() -> list[str]:
    return _retry


@dataclass(frozen=True)
class SweepJob:
    """A job of a multirun. ``folder``: None if it was never started; ``row``: None unless it has ended."""

    number: int
    overrides: tuple[str, ...]
    folder: Path | None = None
    row: PointRun | None = None

    @property
    def state(self) -> str:
        if self.row is not None:
            return self.row["status"]
        return "running" if self.folder is not None and locks.in_use(self.folder) else "missing"


@dataclass(frozen=True)
class SweepFolder:
    """``command``: the settings in multirun.yaml; empty where only the job folders were copied."""

    path: Path
    command: RecordedCommand
    jobs: tuple[SweepJob, ...]

    @property
    def script(self) -> str:
        return str(_at(self.command, "hydra", "job", "config_name") or "sweep")

    @property
    def searches(self) -> bool:
        """Whether a sweeper proposes the points from the scores of earlier ones."""
        return "optuna" in str(_at(self.command, "hydra", "sweeper", "_target_"))

    @property
    def unproposed(self) -> int:
        """Jobs of a search that no sweeper has proposed yet."""
        trials = _at(self.command, "hydra", "sweeper", "n_trials")
        return max(0, trials - len(self.jobs)) if self.searches and isinstance(trials, int) else 0

    @property
    def group_runs(self) -> bool:
        """Whether a process of a launcher is at a group of its jobs, if only at questions that they answer together. Such a process may
        outlive the command, as in Slurm."""
        return any(locks.in_use(folder) for folder in (self.path / GROUPS).glob("*"))

    def rows(self) -> list[PointRun]:
        """A row per job; one without a row gets its state and what to do. Labels are the overrides that not all jobs share."""
        again = self.script == "sweep" and not self.searches
        cure = f"{command_name('sweep')} retry=failed hydra.sweep.dir={self.path}" if again else "the same command"
        rows: list[PointRun] = []
        for job in self.jobs:
            if job.row is not None:
                rows.append({**job.row})
                continue
            ended = f" ({_early_end[job.number]})" if job.number in _early_end else ""
            why = "still running" if (state := job.state) == "running" else f"left no result{ended}; to run it: {cure}"
            rows.append({"point": " ".join(job.overrides), "status": state, "overrides": list(job.overrides), "error": why})
        return rows


def write_command(config: DictConfig) -> None:
    """Writes multirun.yaml, which not every sweeper of Hydra does."""
    write_text(Path(config.hydra.sweep.dir) / COMMAND, OmegaConf.to_yaml(config))


def read_sweep(folder: str | Path, setting: str, of_this_run: bool = False) -> SweepFolder:
    """The sweep in ``folder``, which ``setting`` names. ``of_this_run``: rows older than multirun.yaml are ignored.

    Raises UserError if the folder is not there or holds no sweep."""
    path = Path(folder)
    if not path.is_dir():
        problem = "is a file" if path.exists() else "is not there"
        raise UserError(f"{setting}={folder} {problem}; give the folder of a sweep, its hydra.sweep.dir")
    command: RecordedCommand = read_command(path / COMMAND) if (path / COMMAND).is_file() else {}
    jobs = list(_job_folders(path, (path / COMMAND).stat().st_mtime if of_this_run else 0.0))
    if not jobs and not isinstance(_at(command, "hydra", "sweep"), dict):
        raise UserError(
            f"{setting}={folder} holds no sweep: neither {COMMAND} nor folders of jobs; give the hydra.sweep.dir of a sweep{_below(path)}"
        )
    planned = planned_jobs(command)
    return SweepFolder(path, command, tuple(sorted(_matched(jobs, planned) if planned else jobs, key=lambda job: job.number)))


def read_command(path: Path) -> RecordedCommand:
    """The settings in multirun.yaml. Hydra writes it in place, so that it can be half there when a sweep starts: it is read again then."""
    for _ in range(ATTEMPTS):
        try:
            return cast(RecordedCommand, read_settings(path, "copy it again"))
        except UserError:
            if time.time() - path.stat().st_mtime > ATTEMPTS * PAUSE:
                raise
            time.sleep(PAUSE)
    return cast(RecordedCommand, read_settings(path, "copy it again"))


def planned_jobs(command: RecordedCommand) -> list[tuple[str, ...]]:
    """The overrides of each job of a command, by number; empty where a search proposes them or the command is unknown."""
    sweeper = _at(command, "hydra", "sweeper") or {}
    words = _at(command, "hydra", "overrides", "task")
    if not isinstance(words, list) or "basic" not in str(sweeper.get("_target_")):
        return []
    parameters = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    try:
        parsed = OverridesParser.create(config_loader=_loader(words)).parse_overrides([*parameters, *map(str, words)])
        return [tuple(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except HydraException as error:
        raise UserError(f"the command in {COMMAND} cannot be read ({flat(error, 120)}); copy the file again") from None


def remove_rows(folder: str | Path, overrides: Sequence[Sequence[str]]) -> None:
    """Removes the rows of jobs that are about to run again: a row is then one of this run."""
    again = {tuple(words) for words in overrides}
    for job in _job_folders(Path(folder), 0.0):
        if job.row is not None and job.overrides in again and job.folder is not None:
            (job.folder / ROW).unlink(missing_ok=True)


def name_points(rows: list[PointRun]) -> list[str]:
    """Labels each row by the overrides that not all rows share, and returns the shared ones."""
    common = set(rows[0]["overrides"]).intersection(*(row["overrides"] for row in rows)) if len(rows) > 1 else set()
    for row in rows:
        row["point"] = " ".join(word for word in row["overrides"] if word not in common)
    return sorted(common)


def _matched(started: list[SweepJob], planned: list[tuple[str, ...]]) -> list[SweepJob]:
    """A job for each planned one, with its folder and row where there are any. Other folders are of another sweep."""
    folders: dict[tuple[str, ...], list[SweepJob]] = defaultdict(list)
    for job in sorted(started, key=lambda job: (job.row is None, job.number)):
        folders[job.overrides].append(job)
    jobs: list[SweepJob] = []
    left: list[tuple[int, tuple[str, ...]]] = []
    for number, overrides in enumerate(planned):
        same = folders[overrides]
        if not same:
            left.append((number, overrides))
            continue
        jobs.append(next((job for job in same if job.number == number), same[0]))
        same.remove(jobs[-1])
    taken = {job.number for job in jobs}
    free = (number for number in range(len(planned)) if number not in taken | {number for number, _ in left})
    for number, overrides in left:  # its own number, except where a sweep is shuffled
        jobs.append(SweepJob(next(free) if number in taken else number, overrides))
    return jobs


def _job_folders(path: Path, rows_since: float) -> Iterator[SweepJob]:
    """The folders of jobs below ``path``, at any depth: ``hydra.sweep.subdir`` is the user's."""
    for name, folders, files in os.walk(path):
        folder = Path(name)
        if folder == path:
            pass
        elif COMMAND in files:  # another sweep
            folders.clear()
        elif ROW in files or ".hydra" in folders:
            folders.clear()
            job = _job(folder, rows_since)
            if job is not None:
                yield job
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _job(folder: Path, rows_since: float) -> SweepJob | None:
    row = _row(folder, rows_since)
    number = row.get("number") if row is not None else None
    if row is not None and isinstance(number, int):
        return SweepJob(number, tuple(map(str, row["overrides"])), folder, row)
    try:
        hydra = read_settings(folder / ".hydra" / "hydra.yaml", LEFT_OUT)
    except UserError:  # of a job that was killed while it started, or no job of a sweep
        return None
    overrides, number = _at(hydra, "hydra", "overrides", "task"), _at(hydra, "hydra", "job", "num")
    if not isinstance(overrides, list) or not isinstance(number, int):
        return None
    return SweepJob(number, tuple(map(str, overrides)), folder)


def _row(folder: Path, rows_since: float) -> PointRun | None:
    path = folder / ROW
    if not path.is_file() or path.stat().st_mtime < rows_since:
        return None
    try:
        row: Any = read_object(path, JOB, LEFT_OUT)
        read_object(path, DONE if row["status"] == "done" and "scores" in row else {}, LEFT_OUT)
    except UserError as error:  # truncated while copied from another machine
        log.warning(str(error))
        return None
    return row  # type: ignore[no-any-return]


def point_folder(job: Path, folder: str) -> Path:
    """``folder`` of a job's row. A relative one starts where the sweep was started: as far above the job's folder as it was then, so that a
    project that was moved or copied has its own points. From anywhere else it starts in the working folder."""
    try:
        runtime = _at(read_settings(job / ".hydra" / "hydra.yaml", LEFT_OUT), "hydra", "runtime")
        below = Path(_at(runtime, "output_dir")).relative_to(_at(runtime, "cwd")).parts
    except (UserError, TypeError, ValueError):  # copied without it, or a job's folder that was not below the working folder
        return Path(folder)
    here = job.resolve()
    return Path(*here.parts[: -len(below)], folder) if below and here.parts[-len(below) :] == below else Path(folder)


def _below(path: Path) -> str:
    """The newest sweeps in a folder that is none, for a message."""
    names = sorted(str(file.parent) for file in path.glob(f"*/{COMMAND}"))
    return f"; in it are {len(names)}, last {names[-1]}" if names else ""


def _loader(words: Sequence[Any]) -> Any:
    """The config loader that ``glob(...)`` in a sweep needs."""
    if not any("glob(" in str(word) for word in words):
        return None
    if not GlobalHydra.instance().is_initialized():
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return GlobalHydra.instance().config_loader()
    return GlobalHydra.instance().config_loader()


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node
