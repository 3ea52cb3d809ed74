"""The jobs of a Hydra multirun: collects their results and ends with one line and exit code 2 if any failed.

A job writes its row to ``hydra.sweep.dir/.jobs``, which is emptied when a multirun starts and removed when it ends. The rows are thus
those of this multirun, also in a reused folder, for any ``hydra.sweep.subdir`` and any launcher.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from blink_exp.cli import SCRIPT, TRACEBACK, guard, one_line
from blink_exp.disk import FOLDERS, WriteError
from blink_exp.documents import PointRun
from blink_exp.errors import UserError
from blink_exp.evaluation import locks, store
from blink_exp.files import read_object, write_json
from blink_exp.keys import masked
from blink_exp.settings.check import check
from blink_exp.settings.job_loader import compose_each_job
from blink_exp.stopping import runs_in

log = logging.getLogger(__name__)
NOTES = ".jobs"  # in hydra.sweep.dir, while a multirun runs
WRITTEN = (
    "store",
    "report",
    "output",
    "data.cache_path",
    "judge.cache",
)  # settings of folders that runs write to besides their output folder
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # rank of this process; the processes of a training share its folder


class Jobs(Callback):
    """Hydra callback: locks the output folder and ends a multirun."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        note_folders(config, "hydra.run.dir")
        guard(claim_run, config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        guard(check_shared, config)
        note_folders(config, "hydra.sweep.dir")
        guard(claim_sweep, config)
        if os.environ.get(TRACEBACK) != "1":
            compose_each_job(os.environ[SCRIPT])

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        try:
            guard(self.end, config)
        finally:
            remove_job_rows(config)

    def end(self, config: DictConfig) -> None:
        rows = read_job_rows(config)
        name_points(rows)
        end(rows)


def check_shared(config: DictConfig) -> None:
    """Raises UserError for settings invalid in every job: ``config`` holds the overrides with a single value."""
    check(config, whole=False)


def note_folders(config: DictConfig, output_setting: str) -> None:
    """Registers which setting names each folder, for error messages about files. ``output_setting``: that of the output folder."""
    for setting in (*WRITTEN, output_setting):
        folder = OmegaConf.select(config, setting)
        if isinstance(folder, str) and folder:
            FOLDERS[Path(folder).absolute()] = setting


def claim_run(config: DictConfig) -> None:
    folder = locks.named(config.hydra.run.dir, "hydra.run.dir")
    if all(os.environ.get(name, "0") == "0" for name in RANKS):
        locks.claim(folder, "hydra.run.dir")
    runs_in(folder)


def claim_sweep(config: DictConfig) -> None:
    if all(os.environ.get(name, "0") == "0" for name in RANKS):
        folder = locks.claim(config.hydra.sweep.dir, "hydra.sweep.dir")
        shutil.rmtree(folder / NOTES, ignore_errors=True)


def job(run: Callable[[Any], Any], cfg: DictConfig) -> Any:
    """``run(cfg)`` as the task of ``hydra.main``. In a multirun a failed job is recorded and the others run; a write error ends them
    all."""
    return guard(_noting(run), cfg)


def _noting(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run

    def noting(cfg: DictConfig) -> Any:
        words = list(HydraConfig.get().overrides.task)
        label = " ".join(words)
        row: PointRun = {"point": label, "status": "done", "overrides": words}
        value = None
        try:
            value = run(cfg)
        except Exception as error:
            if os.environ.get(TRACEBACK) == "1" or isinstance(error, WriteError):
                raise
            expected = isinstance(error, UserError | OSError)
            log.error("%s failed%s", label, f": {one_line(error)}" if expected else f":\n{masked(traceback.format_exc())}")
            row |= {"status": "failed", "error": one_line(error)}
        write_job_row(row)
        return value

    return noting


def write_job_row(row: PointRun) -> None:
    """Writes the row of the current Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    write_json(Path(hydra.sweep.dir) / NOTES / f"{hydra.job.num}.json", row)


def read_job_rows(config: DictConfig) -> list[PointRun]:
    """The rows of a multirun's jobs, by job number. Raises UserError if there is none."""
    rows: list[PointRun] = []
    for file in sorted((Path(config.hydra.sweep.dir) / NOTES).glob("*.json"), key=lambda file: int(file.stem)):
        try:
            row: Any = read_object(file, store.JOB, "it is left out of the summary")
            read_object(file, store.DONE if row["status"] == "done" and "scores" in row else {}, "it is left out of the summary")
            rows.append(row)
        except UserError as error:  # truncated while copied from another machine
            store.name_once(str(error))
    if not rows:
        raise UserError(f"no job of {config.hydra.sweep.dir} left a result; see the log files of the jobs there")
    return rows


def remove_job_rows(config: DictConfig) -> None:
    """Removes the job rows of a finished multirun."""
    shutil.rmtree(Path(config.hydra.sweep.dir) / NOTES, ignore_errors=True)


def end(rows: list[PointRun], what: str = "jobs") -> None:
    """Exits with code 2 and one line if a job failed."""
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        print(f"error: {len(failed)} of {len(rows)} {what} failed, first {failed[0]['point']}: {failed[0]['error']}", file=sys.stderr)
        sys.exit(2)


def name_points(rows: list[PointRun]) -> list[str]:
    """Labels each row by the overrides that not all rows share, and returns the shared ones."""
    common = set(rows[0]["overrides"]).intersection(*(row["overrides"] for row in rows)) if len(rows) > 1 else set()
    for row in rows:
        row["point"] = " ".join(word for word in row["overrides"] if word not in common)
    return sorted(common)
