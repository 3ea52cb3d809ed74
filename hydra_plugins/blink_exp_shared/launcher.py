"""The launchers of conf/hydra/launcher. Hydra looks for launchers in this package and in no other; what they do is in
``blink_exp.studies.job_groups``, which is imported when jobs are launched.

- ``shared``: the jobs of a multirun in this process, one after another as Hydra's basic launcher runs them, behind one pass through the
  model in which all of them answer their questions together.
- ``joblib``, ``ray``, ``submitit_local``, ``submitit_slurm``: the same in groups, one process each, run by the launcher of that package.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from blink_exp.errors import UserError, flat
from blink_exp.settings.doors import command_name
from blink_exp.stopping import stopped
from blink_exp.studies import ray_cluster, slurm_jobs
from blink_exp.studies.launchers import ENGINES, SIZE, Lost

log = logging.getLogger(__name__)


class SharedLauncher(BasicLauncher):
    def __init__(self, group_size: int | None = None) -> None:
        super().__init__()
        self.group_size = group_size

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from blink_exp.studies.job_groups import Multirun, launch_here

        assert self.hydra_context is not None and self.config is not None and self.task_function is not None
        run = Multirun(self.hydra_context, self.config, self.task_function)
        return launch_here(run, job_overrides, initial_job_idx, self.group_size)


class GroupLauncher(Launcher):
    """``settings``: those of the package's launcher, and ``group_size``: how many jobs one process runs at most, null: as many as make
    ``at_once`` groups of points that run together."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from blink_exp.studies.job_groups import Multirun, launch_groups

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        run = Multirun(self.hydra_context, self.config, self.task_function)
        return launch_groups(self, run, job_overrides, initial_job_idx)

    def inner_config(self, config: DictConfig) -> DictConfig:
        """``config`` with the package's launcher in place of this one."""
        settings = {key: value for key, value in self.settings.items() if key != SIZE}
        inner = copy.deepcopy(config)
        with open_dict(inner):
            inner.hydra.launcher = OmegaConf.create({"_target_": ENGINES[type(self).__name__].launcher, **settings})
        OmegaConf.set_struct(inner.hydra.launcher, False)  # packages add settings of their own
        return inner

    @abstractmethod
    def at_once(self) -> int:
        """How many groups run at the same time."""

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Wraps the launch: every job is waited for, whatever became of the others, and none outlives a launch that is stopped."""
        return contextlib.nullcontext()


class JoblibGroups(GroupLauncher):
    def at_once(self) -> int:
        from joblib import effective_n_jobs

        return int(effective_n_jobs(self.settings.get("n_jobs", -1)))


class RayGroups(GroupLauncher):
    def at_once(self) -> int:
        # before the import, which reads it: as it is, Ray would try an address where something else answers for 15 minutes
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        ray_cluster.check_address(self.config.hydra.launcher.ray.init.get("address"))
        import ray

        if not ray.is_initialized():  # before the package does, whose own settings no cluster that runs takes
            settings: Any = OmegaConf.to_container(self.config.hydra.launcher.ray.init, resolve=True)
            local = () if settings.get("address") is None else ("num_cpus", "include_dashboard")
            try:
                ray.init(**{key: value for key, value in settings.items() if value is not None and key not in local})
            except Exception as error:  # of a cluster that is not there, or does not start in time
                raise UserError(f"hydra.launcher.ray.init: Ray did not start ({flat(error, 200)}); {ray_cluster.cure(settings)}") from None
        task = self.config.hydra.launcher.ray.remote
        needed = {"CPU": task.get("num_cpus", 1), "GPU": task.get("num_gpus", 0)}
        there = ray.cluster_resources()
        return max(1, min(int(there.get(name, 0) // number) for name, number in needed.items() if number))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        import ray

        get, node = ray.get, ray_cluster.HeadNode(str(ray.get_runtime_context().gcs_address))

        def settled(*references: Any, **settings: Any) -> Any:
            while True:
                try:
                    return get(*references, **{"timeout": ray_cluster.PATIENCE, **settings})
                except ray.exceptions.GetTimeoutError:
                    node.check()
                except ray.exceptions.RayError as error:
                    return lost(error)

        ray.get = settled
        try:
            yield
        except BaseException:
            ray.shutdown()
            raise
        finally:
            ray.get = get


class SubmititGroups(GroupLauncher):
    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        import submitit

        launcher = self
        jobs: list[Any] = []

        class Executor(submitit.AutoExecutor):
            def map_array(self, *arguments: Any) -> list[Any]:
                jobs.extend(launcher.submitted(super().map_array, *arguments))
                return [Settled(job) for job in launcher.watched(jobs)]

        plain, submitit.AutoExecutor = submitit.AutoExecutor, Executor
        try:
            yield
        except BaseException:
            self.stop(jobs)
            raise
        finally:
            submitit.AutoExecutor = plain

    def submitted(self, submit: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        return submit(*arguments)

    def watched(self, jobs: Sequence[Any]) -> Sequence[Any]:
        return jobs

    def stop(self, jobs: Sequence[Any]) -> None:
        """Called where a launch is stopped while its jobs run."""


class LocalGroups(SubmititGroups):
    def at_once(self) -> int:
        import torch

        return torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // (self.settings.get("cpus_per_task") or 1))

    def stop(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            job.cancel(check=False)


class SlurmGroups(SubmititGroups):
    def at_once(self) -> int:
        return int(self.settings["array_parallelism"])

    def submitted(self, submit: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        from submitit.core.utils import FailedJobError

        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it then raises
                return submit(*arguments)
        except (FailedJobError, FileNotFoundError) as error:
            raise slurm_jobs.not_taken(error) from None

    def watched(self, jobs: Sequence[Any]) -> Sequence[Any]:
        queue, names = slurm_jobs.Queue(), [job.job_id for job in jobs]
        return [slurm_jobs.Settled(job, queue, names) for job in jobs]

    def stop(self, jobs: Sequence[Any]) -> None:
        if not jobs:  # nothing was submitted
            return
        command, folder = command_name("sweep"), self.config.hydra.sweep.dir
        stopped(
            f"jobs {', '.join(job.job_id for job in jobs)} go on in Slurm (scancel ends them); {command} status={folder} says how far"
            f" they are, {command} summarize={folder} writes the summary when they are done"
        )


class Settled:
    """A job of submitit that has an empty result where it failed."""

    def __init__(self, job: Any):
        self.job = job

    def results(self) -> list[Any]:
        try:
            return list(self.job.results())
        except Exception as error:
            return [lost(error)]


def lost(error: Exception) -> JobReturn:
    """The return of a group whose process ended without one."""
    log.error("a process ended early: %s", flat(error, 300))
    return JobReturn(status=JobStatus.COMPLETED, _return_value=Lost(flat(error, 200)))
