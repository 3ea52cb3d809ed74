"""The same samples give the same bytes of records: twice, with any number of workers, and with any batch size but for the last digit of
rho, a float32 sum. Launchers: tests/studies/test_launchers.py; every method in a batch and alone: tests/methods/test_methods.py."""

from __future__ import annotations

import json
import re

import pytest
from support.methods import method_of

from blink_exp.benchmarks.base import spread
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.evaluation.records import write_lines

RHO = re.compile(r'"rho": ([\d.]+)')


def records(scale, name: str, batch_size: int, workers: int = 0) -> str:
    scale.forget()
    samples = spread(MosaicMME().samples(), 8)
    found, skipped = evaluate(scale, method_of(name, scale), MosaicMME(), batch_size, samples=samples, workers=workers)
    assert len(found) == len(samples) and not skipped
    return write_lines(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "blink_interp", "fastv"])
def test_batches_workers_and_a_second_run_leave_the_same_bytes(name, scale):
    whole = records(scale, name, 8)
    assert records(scale, name, 8) == whole
    assert records(scale, name, 8, workers=1) == whole
    for batch_size in (1, 3):
        other = records(scale, name, batch_size)
        assert RHO.sub("", other) == RHO.sub("", whole)
        for ours, theirs in zip(RHO.findall(other), RHO.findall(whole), strict=True):
            assert float(ours) == pytest.approx(float(theirs), abs=1.1e-5)


def test_what_is_compared_holds_decisions(scale):
    steps = [step for line in records(scale, "blink_interp", 8).splitlines() for step in json.loads(line)["layers"]]
    assert {step["decision"] for step in steps} >= {"expand", "keep"} and any(step["rho"] for step in steps)
