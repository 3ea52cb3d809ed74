"""The jobs of a multirun in groups, each run by one process: points of a group that share a model and a benchmark answer their questions
together, then each job runs as Hydra's basic launcher runs it, in its own folder.

A launcher of another package (joblib, submitit, Ray) gets one job per group. That job's config is the command's; its task runs the group.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from blink_exp.cli import SCRIPT, TRACEBACK, one_line
from blink_exp.errors import UserError, flat
from blink_exp.evaluation import locks
from blink_exp.evaluation.ranks import LostRank
from blink_exp.evaluation.shared_runs import run_key
from blink_exp.studies.jobs import own_devices
from blink_exp.studies.launchers import SIZE, Lost, forget_packaged_presets
from blink_exp.studies.multirun import run_jobs, shared_settings
from blink_exp.studies.slurm_jobs import Stopped, stops_on_signal
from blink_exp.studies.sweep_folder import GROUPS, note_early_end, read_sweep, remove_rows, retried
from blink_exp.studies.tuning import searches

log = logging.getLogger(__name__)
INHERITED = (SCRIPT, TRACEBACK, "HYDRA_FULL_ERROR", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")  # variables that the processes of a launcher need
GROUP = "group"  # key in the config of a group
Words = dict[int, list[str]]  # {number of a job: its overrides}


@dataclass
class Multirun:
    """What Hydra gives a launcher."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction

    def composed(self, words: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(words))

    @property
    def shares(self) -> bool:
        """Whether points run together: those of sweep.py, unless share=false."""
        return bool(self.config.get("share"))


def launch_here(run: Multirun, overrides: Sequence[Sequence[str]], first: int, size: int | None) -> list[JobReturn]:
    """Runs jobs in this process, one after another."""
    jobs = jobs_to_run(run.config, overrides, first)
    if run.shares and len(jobs) > 1 and size != 1:
        for group in [list(jobs)] if size is None else grouped(run, jobs, size, 1):
            run_jobs([run.composed(jobs[number]) for number in group])
    return in_order(run.config, run_in_turn(run, jobs), overrides, first)


def launch_groups(launcher: Any, run: Multirun, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Runs jobs in groups by the launcher of another package. ``launcher``: a ``GroupLauncher``."""
    from hydra.core.plugins import Plugins

    jobs = jobs_to_run(run.config, overrides, first)
    groups = grouped(run, jobs, run.config.hydra.launcher.get(SIZE), launcher.at_once())
    returns: dict[int, JobReturn] = {}
    if groups:
        task = GroupTask(run, [{number: jobs[number] for number in group} for group in groups])
        inner = Plugins.instance().instantiate_launcher(
            HydraContext(config_loader=GroupLoader(), callbacks=Callbacks()),  # type: ignore[arg-type]
            task,
            launcher.inner_config(run.config),
        )
        log.info("jobs: %d, in groups: %d", len(jobs), len(groups))
        try:
            with launcher.waiting():
                ended = inner.launch([[_word(group)] for group in groups], 0)
            for group, result in zip(groups, ended, strict=True):
                if isinstance(result.return_value, Lost):
                    note_early_end(group, result.return_value.why)
                returns |= result.return_value
        except UserError:  # the engine took no job
            raise
        except Exception as error:  # of the engine: a process was killed, or the cluster is gone; jobs write their rows themselves
            if os.environ.get(TRACEBACK) == "1":
                raise
            note_early_end(jobs, f"the launcher ended early: {flat(one_line(error), 200)}")
            log.error("the launcher ended early: %s", one_line(error))
    return in_order(run.config, returns, overrides, first)


def jobs_to_run(config: DictConfig, overrides: Sequence[Sequence[str]], first: int) -> Words:
    """The jobs of a batch; in a retry those that failed or are missing. Their old rows are removed."""
    jobs = {first + n: list(words) for n, words in enumerate(overrides)}
    if retried():
        batch = {tuple(words) for words in jobs.values()}
        sweep = read_sweep(config.hydra.sweep.dir, "hydra.sweep.dir")
        jobs = {job.number: list(job.overrides) for job in sweep.jobs if job.overrides in batch and job.state in retried()}
    remove_rows(config.hydra.sweep.dir, list(jobs.values()))
    return jobs


def grouped(run: Multirun, jobs: Words, size: int | None, at_once: int) -> list[list[int]]:
    """Numbers of jobs by group. Points of a group share a model and a benchmark; there are at most ``size`` in it, or, if that is None, as
    many as make ``at_once`` groups. Jobs that share nothing run alone."""
    if size is None:
        size = math.ceil(len(jobs) / max(1, at_once)) if run.shares else 1
    if size == 1:
        return [[number] for number in jobs]
    alike: dict[str, list[int]] = defaultdict(list)
    for number, words in jobs.items():
        settings = shared_settings(run.composed(words)) if run.shares else None
        alike["" if settings is None else run_key(settings)].append(number)
    groups = []
    for numbers in alike.values():
        parts = math.ceil(len(numbers) / size)
        groups += [numbers[k * len(numbers) // parts : (k + 1) * len(numbers) // parts] for k in range(parts)]
    return groups


def run_in_turn(run: Multirun, jobs: Words) -> dict[int, JobReturn]:
    """Runs jobs as Hydra's basic launcher does."""
    basic = BasicLauncher()
    basic.setup(hydra_context=run.context, task_function=run.task, config=run.config)
    returns: dict[int, JobReturn] = {}
    for numbers in _consecutive(jobs):
        returns |= zip(numbers, basic.launch([jobs[number] for number in numbers], numbers[0]), strict=True)
    return returns


def _consecutive(numbers: Mapping[int, Any]) -> Iterator[list[int]]:
    run: list[int] = []
    for number in sorted(numbers):
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def in_order(config: DictConfig, returns: Mapping[int, JobReturn], overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """A return for each job of a batch, which a search reads; of a job without one it is the worst value."""
    worst = math.inf if searches(config.hydra) and str(config.hydra.sweeper.direction).endswith("minimize") else -math.inf
    lost = JobReturn(status=JobStatus.COMPLETED, _return_value=worst)
    return [returns.get(first + n, lost) for n in range(len(overrides))]


def _word(numbers: Iterable[int]) -> str:
    """What a launcher is given, and prints, as the overrides of a group."""
    return f"jobs={','.join(map(str, numbers))}"


class GroupLoader:
    """Hydra's config loader for the jobs of a launcher that are groups: each has the command's config, and no folder of its own."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        config = copy.deepcopy(master_config)
        with open_dict(config):
            config[GROUP] = sweep_overrides[0]
            config.hydra.sweep.subdir = "."
            config.hydra.output_subdir = None
        return config


@dataclass
class GroupTask:
    """The task of a group, in a process of the launcher. Returns {number of a job: its return}."""

    run: Multirun
    groups: list[Words]
    environment: dict[str, str] = field(default_factory=lambda: {name: os.environ[name] for name in INHERITED if name in os.environ})
    folder: str = field(default_factory=os.getcwd)
    launched_by: int = field(default_factory=os.getpid)

    def __call__(self, config: DictConfig) -> dict[int, JobReturn]:
        position, jobs = next((n, group) for n, group in enumerate(self.groups) if _word(group) == config[GROUP])
        os.environ.update(self.environment)
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        elsewhere = os.getpid() != self.launched_by
        if elsewhere:
            with contextlib.suppress(ValueError):  # where the engine has the main thread to itself
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends its processes
        forget_packaged_presets()
        returns: dict[int, JobReturn] = {}
        held = contextlib.ExitStack()
        try:
            if elsewhere:
                held.enter_context(stops_on_signal())
                held.enter_context(locks.waited_folder(Path(self.run.config.hydra.sweep.dir) / GROUPS / str(min(jobs))))
            own_devices(self.run.config, position)
            jobs = {number: words for number, words in jobs.items() if number not in self.ended()}
            if self.run.shares and len(jobs) > 1:
                run_jobs([self.run.composed(words) for words in jobs.values()])
            returns = run_in_turn(self.run, jobs)
        except Stopped:  # not a result: the job goes on when Slurm starts it again
            raise
        except SystemExit:  # of a job that cannot write its files; its line is printed
            if not elsewhere:
                raise
            log.error("the process of jobs %s ended early", ", ".join(map(str, jobs)))
        except LostRank:  # its other processes are gone, for the jobs that are left too
            raise
        except Exception:
            if os.environ.get(TRACEBACK) == "1":
                raise
            log.error("the process of jobs %s failed:\n%s", ", ".join(map(str, jobs)), traceback.format_exc())
        finally:
            held.close()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        return returns

    def ended(self) -> set[int]:
        """Jobs of a group that was stopped and is started again (by Slurm, or a cluster that lost a node) which have ended before."""
        if searches(self.run.config.hydra):
            return set()  # their values are needed; the store has them
        return {job.number for job in read_sweep(self.run.config.hydra.sweep.dir, "hydra.sweep.dir").jobs if job.row is not None}
