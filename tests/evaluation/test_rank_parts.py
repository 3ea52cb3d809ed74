"""Which device a process gets, and what one process says to another; nothing is started here."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from support.refusals import one_line_of, refusal
from torch.distributed import HashStore

from blink_exp.disk import WriteError
from blink_exp.errors import UserError
from blink_exp.evaluation import placement, ranks, worker
from blink_exp.evaluation.placement import device_of, process_count
from blink_exp.evaluation.ranks import LostRank, Running, Team, failure, lost
from blink_exp.evaluation.records import RecordLog
from blink_exp.settings.compose import composed


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(n)``: torch sees n GPUs; returns the calls of set_device."""

    def see(count: int, current: int = 0) -> list[int]:
        chosen = [current]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    monkeypatch.setattr(placement, "_pinned", [])
    for name in ranks.OF_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return see


@pytest.mark.parametrize(
    ("devices", "device", "there", "count"),
    [
        (1, "cuda", 8, 1),
        (4, "cuda", 8, 4),
        ("auto", "cuda", 8, 8),
        ("auto", "cuda:3", 8, 5),
        ("auto", "cuda", 0, 1),
        ("auto", "cpu", 8, 1),
        (3, "cpu", 0, 3),
        (2, "nonsense", 8, 1),  # refused where the model is loaded
    ],
)
def test_how_many_processes(gpus, devices, device, there, count):
    gpus(there)
    assert process_count(devices, {"device": device}) == count


def test_more_devices_than_there_are_and_a_model_on_several_are_refused(gpus):
    gpus(4)
    assert refusal(lambda: process_count(5, {"device": "cuda"})) == (
        "devices=5 from model.device=cuda is more than the 4 GPUs that torch sees; use 4"
    )
    assert refusal(lambda: process_count(3, {"device": "cuda:2"})).endswith("use 2")
    assert refusal(lambda: process_count(2, {"device": "cuda", "device_map": "auto"})).startswith(
        "devices=2 runs a whole model on each device"
    )
    gpus(0)
    assert "is more than the 0 GPUs that torch sees" in refusal(lambda: process_count(2, {"device": "cuda"}))


def test_torchrun_says_how_many_there_are(gpus, monkeypatch):
    gpus(2)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert process_count(1, {"device": "cuda"}) == process_count("auto", {"device": "cuda"}) == process_count(4, {"device": "cpu"}) == 4
    assert refusal(lambda: process_count(3, {"device": "cpu"})).startswith("devices=3 under torchrun with 4 processes")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "more than the 2 GPUs" in refusal(lambda: process_count(1, {"device": "cuda"}))


def test_each_process_has_its_own_gpu(gpus):
    assert [device_of("cuda", 0, k) for k in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_of("cuda:2", 2, 1) == "cuda:3" and device_of("cpu", 0, 5) == "cpu"


def test_jobs_side_by_side_have_gpus_in_turn_and_a_process_keeps_its_first(gpus, monkeypatch):
    placed = []
    for job in range(5):
        chosen = gpus(4)
        monkeypatch.setattr(placement, "_pinned", [])
        placement.pin(job, 2, "cuda")
        placement.pin(job + 1, 2, "cuda")
        placed.append(chosen[1:])
    assert placed == [[0], [2], [0], [2], [0]]
    chosen = gpus(4)
    monkeypatch.setattr(placement, "_pinned", [])
    for device, count in (("cpu", 1), ("cuda:1", 1), ("cuda", 8)):
        placement.pin(1, count, device)
    assert chosen == [0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("limit=0: ..."), "limit=0: ..."),
        (ValueError("odd"), "rank 2 of 3 failed: ValueError: odd; HYDRA_FULL_ERROR=1 shows where"),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_what_fails_in_another_process_fails_in_rank_0(error, message):
    description = json.loads(
        json.dumps(ranks.described(error, 2, f"{type(error).__name__}: {error}" if type(error) is ValueError else str(error)))
    )
    again = failure(description, 3)
    assert str(again) == message
    assert isinstance(again, torch.OutOfMemoryError if isinstance(error, RuntimeError) else UserError)


def test_a_full_disk_of_another_process_is_that_of_rank_0():
    description = json.loads(
        json.dumps(ranks.described(WriteError(errno.ENOSPC, "No space left on device", "/a/records.rank1.part"), 1, ""))
    )
    again = failure(description, 2)
    assert isinstance(again, WriteError) and (again.errno, again.filename) == (errno.ENOSPC, "/a/records.rank1.part")


def test_a_lost_process_is_named(monkeypatch):
    monkeypatch.setenv("BLINK_EXP_SCRIPT", "sweep")
    assert str(lost(3, 4, -signal.SIGKILL)) == (
        "the process of rank 3 of 4 was killed (SIGKILL), perhaps as memory ran out;"
        " to go on, run the same sweep again: finished points and all answers so far are in the store"
    )
    assert "rank 1 of 2 ended with exit code 7;" in str(lost(1, 2, 7))
    monkeypatch.setattr(ranks.time, "sleep", lambda _: None)
    monkeypatch.setattr(ranks, "stopping", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        lost(1, 2, -signal.SIGINT)


def job_of(tmp_path, *words: str) -> dict:
    settings = composed("evaluate", ["method=none", "limit=6", "cost=0", *words])
    plain = json.loads(json.dumps(asdict(settings)))
    log = {"path": str(tmp_path / "records.part"), "settings": "s"}
    return {"points": [{"settings": plain, "log": log}], "units": [[0], [1, 2]], "batch_size": 2, "workers": 0, "first_gpu": 0}


def test_a_rank_answers_its_units_and_no_others(tmp_path):
    store = HashStore()
    worker._work(store, 1, 1, 0, job_of(tmp_path))
    assert not store.check(["0/failed"])
    assert json.loads(store.get("0/1/result")) == {"skipped": {}, "batch_size": 2}
    assert store.add("0/answers", 0) == 4 and len(RecordLog(tmp_path / "records.part", "s").records) == 4


def test_a_rank_says_what_is_wrong_and_stops_where_rank_0_has(tmp_path):
    store = HashStore()
    worker._work(store, 1, 1, 0, job_of(tmp_path, "model.device=cuda:77"))
    worker._work(store, 1, 1, 1, job_of(tmp_path, "shard=99/99"))
    team = Team(store, 2, 2, [])
    running = Running(team, 1)
    assert refusal(running.look).startswith("shard=99/99 of the 6 samples of mosaic_mme is empty")
    store.set("2/stop", "")
    worker._work(store, 1, 1, 2, job_of(tmp_path))
    assert not store.check(["2/1/result"]) and store.add("2/answers", 0) == 2  # one batch


def test_a_store_that_is_gone_is_one_line():
    class Gone:
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(LostRank, match="the connection to the other processes is gone"):
        Running(Team(Gone(), 2, 2, []), 0).look()


@pytest.mark.slow
@pytest.mark.parametrize("word", ["devices=0", "devices=two", "devices=1.5", "devices=null", "devices=[1]"])
def test_devices_that_are_none_are_refused(word):
    assert one_line_of(["evaluate.py", "method=none", word]).startswith("error: devices")


def test_the_signal_that_slurm_sends_to_all_processes_is_for_the_first_alone():
    """It would kill the others by default, and the run would end as one that has lost a process."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    try:
        with ranks._without_ctrl_c():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            signal.raise_signal(signal.SIGUSR2)
        child.send_signal(signal.SIGUSR2)
        child.communicate(b"\n", timeout=60)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert came == [signal.SIGUSR2] and child.returncode == 0
