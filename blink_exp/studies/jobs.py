"""The jobs of a Hydra multirun: collects their results and ends with one line and exit code 2 if any failed.

A job locks its folder while it runs, and writes its row there when it ends, so that any launcher may run it, in any process, and the
results can be collected later (``sweep_folder``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from blink_exp.cli import SCRIPT, TRACEBACK, guard, one_line
from blink_exp.disk import FOLDERS, WriteError
from blink_exp.documents.runs import PointRun
from blink_exp.errors import UserError, is_expected
from blink_exp.evaluation import locks
from blink_exp.evaluation.placement import pin
from blink_exp.evaluation.ranks import LostRank
from blink_exp.files import write_json
from blink_exp.keys import masked
from blink_exp.settings.job_loader import compose_each_job
from blink_exp.settings.roots import EvaluateSettings
from blink_exp.stopping import runs_in
from blink_exp.studies.launchers import check_launcher
from blink_exp.studies.sweep_folder import ROW, SweepFolder, name_points, read_sweep, write_command

log = logging.getLogger(__name__)
WRITTEN = (
    "store",
    "report",
    "output",
    "data.cache_path",
    "judge.cache",
)  # settings of folders that runs write to besides their output folder
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # rank of this process; the processes of a training share its folder


class Jobs(Callback):
    """Hydra callback: locks the output folder of a run, a multirun and each of its jobs, and ends a multirun."""

    def __init__(self) -> None:
        self.running = contextlib.ExitStack()  # the lock of the job that runs in this process

    def __reduce__(self) -> tuple[type[Jobs], tuple[()]]:
        return type(self), ()  # sent to the processes of a launcher; a lock stays where it is

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        note_folders(config, "hydra.run.dir")
        guard(claim_run, config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        guard(check_launcher, config.hydra.launcher)
        note_folders(config, "hydra.sweep.dir")
        guard(claim_sweep, config)
        if os.environ.get(TRACEBACK) != "1":
            compose_each_job(os.environ[SCRIPT])

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            guard(self.claim_job, config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        self.running.close()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        guard(self.end, config)

    def claim_job(self, config: DictConfig) -> None:
        if not first_rank():
            return
        note_folders(config, "hydra.sweep.dir")
        folder = Path(config.hydra.runtime.output_dir)
        self.running.close()  # where the last job of this process ended without its callback
        if folder != Path(config.hydra.sweep.dir).absolute():
            self.running.enter_context(locks.waited_folder(folder))
        (folder / ROW).unlink(missing_ok=True)

    def end(self, config: DictConfig) -> None:
        rows = multirun(config).rows()
        name_points(rows)
        end(rows)


def note_folders(config: DictConfig, output_setting: str) -> None:
    """Registers which setting names each folder, for error messages about files. ``output_setting``: that of the output folder."""
    for setting in (*WRITTEN, output_setting):
        folder = OmegaConf.select(config, setting)
        if isinstance(folder, str) and folder:
            FOLDERS[Path(folder).absolute()] = setting


def first_rank() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def claim_run(config: DictConfig) -> None:
    folder = locks.named(config.hydra.run.dir, "hydra.run.dir")
    if first_rank():
        locks.claim(folder, "hydra.run.dir")
    runs_in(folder)


def claim_sweep(config: DictConfig) -> None:
    if first_rank():
        locks.claim(config.hydra.sweep.dir, "hydra.sweep.dir")
        write_command(config)


def multirun(config: DictConfig, of_this_run: bool = False) -> SweepFolder:
    """The multirun of ``config`` (``read_sweep``). Raises UserError if no job of a search left a row."""
    sweep = read_sweep(config.hydra.sweep.dir, "hydra.sweep.dir", of_this_run)
    if not any(job.row for job in sweep.jobs) and (sweep.searches or not sweep.jobs):
        raise UserError(f"no job of {config.hydra.sweep.dir} left a result; see the log files of the jobs there")
    return sweep


def job(run: Callable[[Any], Any], cfg: DictConfig) -> Any:
    """``run(cfg)`` as the task of ``hydra.main``. In a multirun a failed job is recorded and the others run; a write error ends them
    all."""
    return guard(_noting(run), cfg)


SIDE_BY_SIDE = ("JoblibGroups", "LocalGroups")  # launchers whose processes run beside each other and all see every GPU of the machine


def own_devices(config: DictConfig, number: int) -> int | None:
    """Gives the process of job or group ``number`` GPUs of its own where others run beside it, and returns how many; None elsewhere.
    ``config``: as Hydra composes it. A process keeps those that it got first."""
    if str(config.hydra.launcher.get("_target_", "")).rpartition(".")[2] not in SIDE_BY_SIDE:
        return None
    count = config.get("devices") or 1
    count = 1 if count == "auto" else int(count)
    pin(number, count, OmegaConf.select(config, "model.device") or "cpu")
    return count


def on_own_devices(settings: EvaluateSettings) -> EvaluateSettings:
    """The settings of this job of a multirun, on the devices that ``own_devices`` gives it; auto is then one."""
    hydra = HydraConfig.get()
    if OmegaConf.is_missing(hydra.job, "num"):
        return settings
    config = OmegaConf.create({"hydra": {"launcher": hydra.launcher}, "devices": settings.devices, "model": settings.model})
    count = own_devices(config, hydra.job.num)
    return settings if count is None else replace(settings, devices=count)


def _noting(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
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
            if os.environ.get(TRACEBACK) == "1" or isinstance(error, WriteError | LostRank):
                raise
            log.error("%s failed%s", label, f": {one_line(error)}" if is_expected(error) else f":\n{masked(traceback.format_exc())}")
            row |= {"status": "failed", "error": one_line(error)}
        write_job_row(row)
        return value

    return noting


def write_job_row(row: PointRun) -> None:
    """Writes the row of the current Hydra job."""
    hydra = HydraConfig.get()
    write_json(Path(hydra.runtime.output_dir) / ROW, {"number": hydra.job.num, **row})


def end(rows: list[PointRun], what: str = "jobs") -> None:
    """Exits with code 2 and one line if a job failed or left no result."""
    failed = [row for row in rows if row["status"] != "done"]
    if failed:
        print(f"error: {len(failed)} of {len(rows)} {what} failed, first {failed[0]['point']}: {failed[0]['error']}", file=sys.stderr)
        sys.exit(2)
