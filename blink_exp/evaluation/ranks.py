"""Several processes that answer the questions of one run, each on a device of its own.

Rank 0 is the process that the user started: it reads the settings, holds the locks, answers its share, and alone writes results and prints.
The others answer, and append to their own files (``records.RecordLog``). They are started by torch.multiprocessing (``devices=4``) or by
torchrun and speak with rank 0 through torch's TCPStore, as torchrun's own processes do. No collective is used, so none can hang where one
is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypedDict

import torch
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]
from torch.multiprocessing import start_processes  # type: ignore[attr-defined]

from blink_exp.cli import OF_JOB, resume_hint, under_torchrun
from blink_exp.disk import WriteError
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, out_of_memory
from blink_exp.stopping import stopping

WORKER = "blink_exp.evaluation.worker"  # imports what answers, which imports this module
OF_TORCHRUN = (*OF_JOB, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
EVERY = 0.05  # seconds between two looks at the store
GRACE = 5.0  # seconds for processes to end before they are killed
PATIENCE = timedelta(hours=1)  # for the first connection: one machine of a job may start long after another
END = "end"


class LostRank(UserError):
    """A process of the run has ended: the run cannot go on."""


class JobPoint(TypedDict):
    """``settings``: of the point, as plain values; ``log``: ``RecordLog.address``."""

    settings: PlainSettings
    log: dict[str, str]


class Job(TypedDict):
    """What all processes work on. ``units``: the numbers of those that each rank answers; ``workers``: that open images, of each."""

    points: list[JobPoint]
    units: list[list[int]]
    batch_size: int
    first_gpu: int
    workers: int


class JobResult(TypedDict):
    """What a process says at the end of a job. ``skipped``: {sample id: why}; ``batch_size``: that fitted in memory."""

    skipped: dict[str, str]
    batch_size: int


class Failure(TypedDict, total=False):
    """An exception of another process: ``errno`` (its number, text and file) and ``write`` of an OSError, else the other three."""

    errno: list[Any]
    write: bool
    kind: str
    line: str
    rank: int


class Team:
    """The processes of a run as rank 0 sees them. ``local``: how many of ``world`` are on this machine."""

    def __init__(self, store: Any, world: int, local: int, processes: list[Any]):
        self.store, self.world, self.local, self.processes = store, world, local, processes
        self.jobs = 0
        self.threads = torch.get_num_threads()

    @contextlib.contextmanager
    def job(self, job: Job) -> Iterator[Running]:
        """Has the other processes work on ``job`` in the block; see ``worker``."""
        running = Running(self, self.jobs)
        self.store.set(f"{self.jobs}/job", json.dumps(job))
        self.jobs += 1
        if self.processes:
            torch.set_num_threads(max(1, self.threads // self.world))
        try:
            yield running
        except BaseException:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"{running.number}/stop", "")
            self.stop()
            raise
        finally:
            torch.set_num_threads(self.threads)

    def stop(self) -> None:
        """Ends processes that this one started, whatever they are doing; those of torchrun stop between two batches."""
        for process in self.processes:
            process.terminate()
        self._join()

    def close(self) -> None:
        """Tells the processes that no job will come."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{self.jobs}/job", json.dumps(END))
        self._join()

    def _join(self) -> None:
        until = time.monotonic() + GRACE
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        if self.processes:
            _teams.pop(self.world, None)
        self.processes = []


class Running:
    """A job in the hands of all processes. ``number``: of the job."""

    def __init__(self, team: Team, number: int):
        self.team, self.number = team, number
        self.seen = 0  # answers of the others so far

    def advancing(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """``advance`` with the answers of all processes. Raises what another process failed by."""

        def both(n: int) -> None:
            advance(n + self.look())

        return both

    def look(self) -> int:
        """The number of answers of the others since the last look."""
        for rank, process in enumerate(self.team.processes, 1):
            if process.exitcode is not None:
                raise lost(rank, self.team.world, process.exitcode)
        try:
            if self.team.store.check([f"{self.number}/failed"]):
                raise failure(json.loads(self.team.store.get(f"{self.number}/failed")), self.team.world)
            before, self.seen = self.seen, self.team.store.add(f"{self.number}/answers", 0)
        except RuntimeError as error:
            raise LostRank(f"the connection to the other processes is gone ({error}); {resume_hint()}") from None
        return self.seen - before

    def results(self, advance: Callable[[int], None]) -> list[JobResult]:
        """Waits for the other processes, and returns what each says at the end of the job."""
        keys = [f"{self.number}/{rank}/result" for rank in range(1, self.team.world)]
        while not self.team.store.check(keys):
            advance(self.look())
            time.sleep(EVERY)
        advance(self.look())
        return [json.loads(self.team.store.get(key)) for key in keys]


def lost(rank: int, world: int, code: int) -> LostRank:
    """The error for a process that ended with ``code``. Raises KeyboardInterrupt where this one is to stop as well."""
    if -code in (signal.SIGINT, signal.SIGTERM):  # sent to all: this process may hear of it a moment later
        time.sleep(1)
        if stopping():
            raise KeyboardInterrupt
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    memory = ", perhaps as memory ran out" if -code == signal.SIGKILL else ""
    return LostRank(f"the process of rank {rank} of {world} {how}{memory}; {resume_hint()}")


def described(error: BaseException, rank: int, line: str) -> Failure:
    """A failure as JSON, for rank 0."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        file = None if error.filename is None else str(error.filename)
        return {"errno": [error.errno, error.strerror, file], "write": isinstance(error, WriteError)}
    kind = "memory" if out_of_memory(error) else "user" if isinstance(error, UserError) else type(error).__name__
    return {"kind": kind, "line": str(error) if kind == "memory" else line, "rank": rank}


def failure(described: Failure, world: int) -> Exception:
    """The exception of ``described``, to be raised by rank 0 as if it were its own."""
    if "errno" in described:
        return (WriteError if described["write"] else OSError)(*described["errno"])
    if described["kind"] == "memory":
        return torch.OutOfMemoryError(described["line"])
    if described["kind"] == "user":
        return UserError(described["line"])
    return UserError(f"rank {described['rank']} of {world} failed: {described['line']}; HYDRA_FULL_ERROR=1 shows where")


_teams: dict[int, Team] = {}  # {number of processes: team}; kept, so that a sweep loads its model once on each device


def team(world: int) -> Team:
    """The processes of this run, which are started where they are not there."""
    if world not in _teams:
        if under_torchrun():
            _teams[world] = _joined()
        else:
            close()  # those of another number
            _teams[world] = _started(world)
            atexit.register(close)
    return _teams[world]


def close() -> None:
    """Ends the processes of this run. Those of torchrun wait for a word even where there was no job."""
    if not _teams and under_torchrun() and os.environ["RANK"] == "0":
        with contextlib.suppress(RuntimeError):
            _teams[int(os.environ["WORLD_SIZE"])] = _joined()
    for each in list(_teams.values()):
        each.close()
    _teams.clear()


def _started(world: int) -> Team:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no warning of a socket that a killed process left
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = max(1, torch.get_num_threads() // world)
    with _without_ctrl_c():
        context: Any = start_processes(_child, (store.port, threads), nprocs=world - 1, join=False, start_method="spawn")
    return Team(store, world, world, context.processes)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C until they set their own handler: Python would print a traceback of its imports. The
    signal that Slurm sends to all processes of a job before it ends is for this one alone; by default it would kill them first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # they inherit it; here it comes when the block ends
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)


def _joined() -> Team:
    return Team(connected(), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1")), [])


def connected() -> Any:
    """The store of a job of torchrun."""
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return PrefixStore(f"blink_exp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _child(index: int, port: int, threads: int) -> None:
    """A process of ``_started``."""
    torch.set_num_threads(threads)
    store = TCPStore("127.0.0.1", port, is_master=False)
    importlib.import_module(WORKER).serve(store, index + 1, index + 1)
