"""What Slurm does to jobs of a sweep: it asks them to stop, loses them, or takes none. Programs of Slurm are scripts here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from support.refusals import refusal

from blink_exp import stopping
from blink_exp.errors import UserError
from blink_exp.evaluation import locks
from blink_exp.studies import job_groups, slurm_jobs, sweep_folder
from blink_exp.studies.job_groups import GroupTask, launch_groups
from blink_exp.studies.launchers import check_launcher
from hydra_plugins.blink_exp_shared.launcher import SlurmGroups, lost

NUMBER = signal.SIGUSR2


@pytest.fixture
def in_job(monkeypatch):
    """The signals of a job of submitit, which are put back."""
    before = {number: signal.getsignal(number) for number in (NUMBER, signal.SIGINT)}
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes a program of Slurm that prints ``out`` and ``errors`` and ends with ``code``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")

    def program(name: str, out: str = "", errors: str = "", code: int = 0) -> None:
        (folder / name).write_text(f"#!/bin/sh\necho '{out}'\necho '{errors}' >&2\nexit {code}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return program


def group_task(tmp_path: Path, monkeypatch, act) -> tuple[GroupTask, object]:
    """The task of a group of one job, which does ``act`` when its turn comes, in a process of a launcher."""
    config = OmegaConf.create({"group": "jobs=3", "hydra": {"launcher": {}, "sweep": {"dir": str(tmp_path)}}})
    monkeypatch.setattr(job_groups, "run_in_turn", lambda run, jobs: act())
    monkeypatch.setattr(GroupTask, "ended", lambda self: set())
    run = SimpleNamespace(config=config, shares=False)
    return GroupTask(run, [{3: ["layer=12"]}], launched_by=0), config


@pytest.mark.parametrize("late", [False, True])
def test_a_job_that_is_asked_to_stop_leaves_no_result(late, in_job, tmp_path, monkeypatch):
    """An empty result told the command that the job was done, while Slurm had it queued again."""

    def handler(*_):
        if late:
            raise RuntimeError("timed-out too many times")  # an error that a point would have taken for its own
        sys.exit(-1)

    signal.signal(NUMBER, handler)
    task, config = group_task(tmp_path, monkeypatch, lambda: signal.raise_signal(NUMBER))
    with pytest.raises(slurm_jobs.Stopped) as end:
        task(config)
    assert end.value.code == (1 if late else -1)
    assert signal.getsignal(NUMBER) is handler and not locks.in_use(tmp_path / ".groups" / "3")


def test_a_forked_process_does_not_queue_the_job_again(in_job, monkeypatch):
    called: list[int] = []
    signal.signal(NUMBER, lambda *_: called.append(1))
    with slurm_jobs.stops_on_signal():
        signal.raise_signal(NUMBER)
        monkeypatch.setattr(slurm_jobs.os, "getpid", lambda: -1)
        signal.raise_signal(NUMBER)
    assert called == [1]


def test_outside_of_a_job_signals_stay_as_they_are(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    before = signal.getsignal(NUMBER)
    with slurm_jobs.stops_on_signal():
        assert signal.getsignal(NUMBER) is before


def test_a_group_holds_a_lock_while_it_runs(in_job, tmp_path, monkeypatch):
    seen = []
    task, config = group_task(tmp_path, monkeypatch, lambda: seen.append(locks.in_use(tmp_path / ".groups" / "3")) or {})
    assert task(config) == {} and seen == [True]
    assert not locks.in_use(tmp_path / ".groups" / "3")


def job(folder: Path, name: str = "4_0"):
    """A job of submitit whose result is a file; anything that asks for more fails."""
    paths = SimpleNamespace(folder=folder, result_pickle=folder / "result.pkl", stderr=folder / "log.err")
    self = SimpleNamespace(job_id=name, num_tasks=1, paths=paths, results=lambda: [paths.result_pickle.read_text(encoding="utf-8")])
    self.task = lambda number: self
    return self


def quick(monkeypatch, sleep) -> None:
    """Slurm is asked each time, and what is not there is lost at once."""
    monkeypatch.setattr(slurm_jobs, "LATE", 0.0)
    monkeypatch.setattr(slurm_jobs, "ASKED", 0.0)
    monkeypatch.setattr(slurm_jobs, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))


@pytest.mark.parametrize(("sacct", "state"), [("CANCELLED by 0", "CANCELLED by 0"), (None, "its state is not known")])
def test_a_job_that_left_the_queue_is_lost_without_accounting_too(sacct, state, programs, tmp_path, monkeypatch):
    """submitit waits for ever for a job without accounting, and for one that was pre-empted."""
    quick(monkeypatch, lambda seconds: None)
    programs("squeue", out="4_1")
    programs("sacct", out=sacct or "", errors="" if sacct else "Slurm accounting storage is disabled", code=0 if sacct else 1)
    text = refusal(slurm_jobs.Settled(job(tmp_path), slurm_jobs.Queue(), ["4_0", "4_1"]).results)
    assert text == f"Slurm job 4_0 ended without a result ({state}); its log: {tmp_path / 'log.err'}"


def test_a_job_that_waits_or_is_suspended_is_waited_for(programs, tmp_path, monkeypatch):
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "result.pkl").write_text("done", encoding="utf-8")

    quick(monkeypatch, sleep)
    programs("squeue", out="4_0")
    assert slurm_jobs.Settled(job(tmp_path), slurm_jobs.Queue(), ["4_0"]).results() == ["done"] and len(waits) == 3


@pytest.mark.parametrize(
    ("errors", "left"),
    [("slurm_load_jobs error: Invalid job id specified", True), ("slurm_load_jobs error: Unable to contact slurm controller", False)],
)
def test_a_controller_that_does_not_answer_says_nothing_of_jobs(errors, left, programs, monkeypatch):
    monkeypatch.setattr(slurm_jobs, "time", SimpleNamespace(monotonic=iter(range(100, 1000, 20)).__next__))
    programs("squeue", errors=errors, code=1)
    queue = slurm_jobs.Queue()
    queue.gone("4", [])
    assert (queue.gone("4", []) > 0) == left


def test_a_submission_that_slurm_refuses_is_one_line(capsys):
    pytest.importorskip("submitit")
    from submitit.core.utils import FailedJobError

    errors = (
        "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified"
    )

    def submit(*_):
        print(errors, file=sys.stderr)
        raise FailedJobError(errors)

    launcher = SlurmGroups(array_parallelism=2)
    text = refusal(lambda: launcher.submitted(submit))
    assert "(invalid partition specified: nope; Batch job submission failed: Invalid partition name specified)" in text
    assert "hydra.launcher.NAME=" in text and capsys.readouterr().err == ""


class Inner:
    """A launcher of another package."""

    def __init__(self, act):
        self.act = act

    def launch(self, overrides, first):
        return self.act()


def launched(monkeypatch, tmp_path, act) -> list[JobReturn]:
    """Two jobs, each a group of its own."""
    monkeypatch.setattr(sweep_folder, "_early_end", {})
    monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda *_: Inner(act), raising=False)
    hydra = {"launcher": {"group_size": 1, "array_parallelism": 2}, "sweep": {"dir": str(tmp_path)}, "sweeper": {"_target_": "basic"}}
    run = SimpleNamespace(config=OmegaConf.create({"hydra": hydra}), shares=True, task=None)
    launcher = SlurmGroups(array_parallelism=2)
    monkeypatch.setattr(launcher, "inner_config", lambda config: config)
    return launch_groups(launcher, run, [["layer=12"], ["layer=13"]], 0)


def test_a_sweep_whose_jobs_slurm_refuses_ends_with_that_line(monkeypatch, tmp_path):
    """Not with a summary in which every point has failed."""
    pytest.importorskip("submitit")

    def refuse():
        raise UserError("Slurm took none of the jobs")

    assert refusal(lambda: launched(monkeypatch, tmp_path, refuse)) == "Slurm took none of the jobs"


def test_each_lost_job_has_the_reason_of_its_own_group(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    done = JobReturn(status=JobStatus.COMPLETED, _return_value={0: JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)})
    returns = launched(monkeypatch, tmp_path, lambda: [done, lost(UserError("Slurm job 4_1 ended"))])
    assert returns[0].return_value == 1.0 and sweep_folder._early_end == {1: "Slurm job 4_1 ended"}


def test_a_command_that_is_stopped_says_once_that_its_jobs_go_on(capsys):
    stopping.nothing_said()
    launcher = SlurmGroups(array_parallelism=2)
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": "sweeps/a"}}})
    launcher.stop([])
    launcher.stop([SimpleNamespace(job_id="4_0"), SimpleNamespace(job_id="4_1")])
    stopping.stopped("run the same sweep again")  # which would start them a second time
    stopping.nothing_said()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped by Ctrl-C; jobs 4_0, 4_1 go on in Slurm") and "summarize=sweeps/a" in line


@pytest.mark.parametrize("missing", ["sbatch", "srun", "squeue"])
def test_a_machine_without_slurm_is_refused_before_anything_runs(missing, programs, monkeypatch, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in {"sbatch", "srun", "squeue"} - {missing}:
        programs(name)
    message = refusal(lambda: check_launcher({"_target_": "SlurmGroups"}))
    assert message == f"hydra/launcher=submitit_slurm needs Slurm, and {missing} is not here; use submitit_local or joblib"


@pytest.mark.parametrize("name", ["array_parallelism", "max_num_timeout"])
def test_a_number_that_submitit_needs_is_not_null(name, programs):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for program in ("sbatch", "srun", "squeue"):
        programs(program)
    message = refusal(lambda: check_launcher({"_target_": "SlurmGroups", name: None}))
    assert message.startswith(f"hydra.launcher.{name} must be a whole number of at least") and "or null" not in message
