"""A process that answers for rank 0 (``ranks``): waits for jobs, answers its units of each, and says what it skipped."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blink_exp.cli import TRACEBACK, one_line
from blink_exp.evaluation import placement, ranks
from blink_exp.evaluation.answering import Point, answer_units
from blink_exp.evaluation.batches import BatchSize, cut
from blink_exp.evaluation.evaluator import chosen, prepare
from blink_exp.evaluation.records import RecordLog
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import from_plain
from blink_exp.stopping import end_on_signals


class Stopped(Exception):
    """Rank 0 has given the job up."""


def serve_torchrun() -> None:
    """The life of a process that torchrun started, other than rank 0."""
    serve(ranks.connected(), int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0")))


def serve(store: Any, rank: int, local: int) -> None:
    """Works on jobs until rank 0 says that none will come, or is gone. A signal ends the process at once, without a word: rank 0 speaks."""
    end_on_signals()
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    logging.disable(logging.WARNING)  # rank 0 says the same
    warnings.simplefilter("ignore")
    count = 0
    try:
        while (job := _next(store, count)) != ranks.END:
            _work(store, rank, local, count, job)
            count += 1
    except RuntimeError:  # torch's error of a store that is gone, and rank 0 with it
        return


def _next(store: Any, count: int) -> Any:
    key = f"{count}/job"
    while not store.check([key]):
        time.sleep(ranks.EVERY)
    return json.loads(store.get(key))


def _work(store: Any, rank: int, local: int, count: int, job: ranks.Job) -> None:
    try:
        skipped, batch_size = _answered(store, rank, local, count, job) if job["units"][rank] else ({}, job["batch_size"])
    except Stopped:
        return
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1":
            traceback.print_exc()
        store.set(f"{count}/failed", json.dumps(ranks.described(error, rank, one_line(error))))
        return
    store.set(f"{count}/{rank}/result", json.dumps({"skipped": skipped, "batch_size": batch_size}))


def _answered(store: Any, rank: int, local: int, count: int, job: ranks.Job) -> tuple[dict[str, str], int]:
    """({sample id: why it was skipped}, batch size that fitted in memory) of this rank's units. The answers go to the files of the rank."""
    points = []
    for each in job["points"]:
        settings = from_plain(PointSettings, each["settings"])
        device = placement.device_of(settings.model.get("device") or "cpu", job["first_gpu"], local)
        settings = replace(settings, model=settings.model | {"device": device})
        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # kernels of libraries run on the current device
        backbone, method, benchmark = prepare(settings)
        log = each["log"]
        points.append(Point(method, RecordLog(Path(log["path"]), log["settings"], rank)))
    samples = chosen(benchmark, settings)
    for point in points:
        if point.record_log is not None:
            point.done = point.record_log.done(benchmark, samples)
    size = BatchSize(job["batch_size"])

    def advance(answers: int) -> None:
        store.add(f"{count}/answers", answers)
        if store.check([f"{count}/stop"]):
            raise Stopped

    units = cut(samples, size.size)
    mine = [units[n] for n in job["units"][rank]]
    return answer_units(backbone, points, benchmark, mine, size, advance, job["workers"]), size.size
