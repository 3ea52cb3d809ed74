"""Jobs of Slurm, where submitit leaves something to do: how a job is stopped, whether one is still there, why none was taken."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from blink_exp.errors import UserError, flat

log = logging.getLogger(__name__)
IN_JOB, SIGNAL = "SUBMITIT_EXECUTOR", "SUBMITIT_PREEMPT_SIGNAL"  # variables of submitit: in its jobs; the signal that asks one to stop
ASKED = 15.0  # seconds between two questions to Slurm's queue
LATE = 30.0  # seconds that a result may need to be seen on a common file system
NEVER = float("inf")
PREFIX = re.compile(r"^\s*sbatch: (error: )?", re.M)
SETTINGS = "partition, account, qos, constraint, gpus_per_node, cpus_per_task, mem_gb, timeout_min"


class Stopped(SystemExit):
    """This process ends on the signal that comes before a time limit or a pre-emption. No job may take it for an error of its own."""


@contextlib.contextmanager
def stops_on_signal() -> Iterator[None]:
    """Has submitit's signal end this process in the block, whatever runs: submitit has the job queued again and then calls ``sys.exit``.
    Does nothing outside a job of submitit."""
    number = getattr(signal, "SIG" + os.environ.get(SIGNAL, "USR2"), None)
    handler = signal.getsignal(number) if number is not None and IN_JOB in os.environ else None
    if number is None or not callable(handler):
        yield
        return
    signal.signal(number, _stop_by(handler))
    try:
        yield
    finally:
        signal.signal(number, handler)


def _stop_by(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # Slurm signals every process of a job; one that was forked would queue the job a second time
            return
        try:
            handler(number, frame)
        except SystemExit as end:
            raise Stopped(end.code) from None
        except Exception as error:  # asked too often, or Slurm does not queue it
            log.error("this job is not queued again: %s", flat(error, 200))
            raise Stopped(1) from None

    return stop


class Queue:
    """Whether jobs are in Slurm's queue, waiting or running. sacct, which submitit asks, needs accounting, which not every cluster has; and
    submitit takes a suspended job for one that has ended, and a pre-empted one, wherever it went, for one that will go on."""

    def __init__(self) -> None:
        self.asked = -NEVER
        self.left: dict[str, float] = {}  # {job: when it was first seen to be gone}

    def gone(self, job: str, others: Sequence[str]) -> float:
        """Seconds since ``job`` left the queue, as far as is known; 0.0 while it is there. ``others``: asked for at the same time."""
        if time.monotonic() - self.asked > ASKED:
            self._ask({job, *others})
        return time.monotonic() - self.left[job] if job in self.left else 0.0

    def _ask(self, jobs: set[str]) -> None:
        arrays = sorted({each.partition("_")[0] for each in jobs})
        done = _run("squeue", "-h", "-r", "-o", "%i", "-j", ",".join(arrays))
        self.asked = time.monotonic()
        if done is None or (done.returncode and "invalid job id" not in done.stderr.lower()):
            return  # the controller does not answer: nothing is known
        there = set(done.stdout.split())
        self.left = {each: self.left.get(each, self.asked) for each in jobs if each not in there}


class Settled:
    """A job of submitit whose results are waited for as long as Slurm has it."""

    def __init__(self, job: Any, queue: Queue, others: Sequence[str]):
        self.job, self.queue, self.others = job, queue, others

    def results(self) -> list[Any]:
        """Raises what the job raised, or UserError if it is gone and left nothing."""
        while not self._left_results():
            if self.queue.gone(self.job.job_id, self.others) > LATE and not self._left_results():
                name = self.job.job_id
                raise UserError(f"Slurm job {name} ended without a result ({state(name)}); its log: {self.job.paths.stderr}")
            time.sleep(1)
        return list(self.job.results())

    def _left_results(self) -> bool:
        with contextlib.suppress(OSError):
            os.listdir(self.job.paths.folder)  # an NFS client looks at the server again
        return all(self.job.task(number).paths.result_pickle.exists() for number in range(self.job.num_tasks))


def state(job: str) -> str:
    """The state of a job that has ended, in Slurm's words."""
    done = _run("sacct", "-X", "-n", "-P", "-o", "State", "-j", job)
    return flat(done.stdout, 80) if done is not None and done.stdout.strip() else "its state is not known"


def not_taken(error: Exception) -> UserError:
    """For the error of a submission: no job was started."""
    missing = f"{error.filename or 'sbatch'} is not here" if isinstance(error, FileNotFoundError) else ""
    lines = PREFIX.sub("", str(error)).splitlines()
    return UserError(
        f"Slurm took none of the jobs ({missing or flat('; '.join(lines), 200)}); change what it refuses with hydra.launcher.NAME=..."
        f" ({SETTINGS}; sinfo and sacctmgr list what there is), in the same command"
    )


def _run(*words: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
