"""Batches that do not depend on who answers them, and batches that do not fit in memory."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.samples import samples_on

from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.cli import guard
from blink_exp.errors import out_of_memory
from blink_exp.evaluation import answering, evaluator
from blink_exp.evaluation.answering import Point, ask
from blink_exp.evaluation.batches import BatchSize, cut
from blink_exp.methods.none import none
from blink_exp.settings.compose import composed


@given(st.lists(st.integers(1, 7), max_size=30), st.integers(1, 9))
def test_units_hold_all_samples_in_order_and_part_no_image(images, batch_size):
    samples = samples_on(images)
    units = cut(samples, batch_size)
    assert [s for unit in units for batch in unit for s in batch] == samples
    assert all(0 < len(batch) <= batch_size for unit in units for batch in unit)
    images_of = [{s.image_id for batch in unit for s in batch} for unit in units]
    assert sum(map(len, images_of)) == len(images)
    assert all(len(ids) == 1 for unit, ids in zip(units, images_of, strict=True) if len(unit) > 1)
    single = [len(unit[0]) for unit in units if len(unit) == 1]
    assert all(a + b > batch_size for a, b in itertools.pairwise(single)) or len(single) < len(units)


def test_batches_by_hand():
    sizes = [[[s.id for s in batch] for batch in unit] for unit in cut(samples_on([2, 1, 5, 3]), 3)]
    assert sizes == [[["0/0", "0/1", "1/0"]], [["2/0", "2/1", "2/2"], ["2/3", "2/4"]], [["3/0", "3/1", "3/2"]]]


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


class SmallMemory:
    """``answering.answer`` on a device that holds ``most`` questions at a time."""

    def __init__(self, monkeypatch, most: int, error: Exception = OUT_OF_MEMORY[0]):
        self.most, self.asked, real = most, [], answering.answer

        def answer(backbone, methods, images, questions, *rest):
            self.asked.append(len(questions))
            if len(questions) > self.most:
                raise error
            return real(backbone, methods, images, questions, *rest)

        monkeypatch.setattr(answering, "answer", answer)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_once_for_the_rest_of_the_run(scale, monkeypatch, capsys, tmp_path):
    shared = scale.shared_bytes
    monkeypatch.setattr(evaluator, "prepare_model", lambda cfg: (scale, none()))
    settings = composed("evaluate", ["method=none", "limit=24", "batch_size=12", "cost=0"])
    whole = evaluator.measure(settings, tmp_path / "whole")
    assert whole["batch_size"] == 12 and "memory" not in capsys.readouterr().out
    small = SmallMemory(monkeypatch, 4)
    try:
        halved = evaluator.measure(settings, tmp_path / "halved")
    finally:
        scale.shared_bytes = shared
    assert small.asked[:4] == [12, 6, 3, 3] and max(small.asked[3:]) == 3
    assert halved["batch_size"] == 3
    assert capsys.readouterr().out.count("a batch did not fit in memory: batch_size=3 from here on, instead of 12") == 1
    assert halved["scores"] == whole["scores"]
    answers = [
        [(r["id"], r["prediction"]) for r in map(json.loads, (tmp_path / name / "records.jsonl").read_text("utf-8").splitlines())]
        for name in ("whole", "halved")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_one_question_that_does_not_fit_is_an_error(error, scale, monkeypatch, capsys):
    SmallMemory(monkeypatch, 0, error)
    samples = MosaicMME(images=1).samples()[:4]
    with pytest.raises(SystemExit) as end:
        guard(lambda size: ask(scale, [Point(none())], MosaicMME(), samples, size, lambda n: None), size := BatchSize(4))
    assert (size.size, end.value.code) == (1, 2)
    output = capsys.readouterr()
    assert output.err.startswith("error: memory ran out (")
    assert "batch_size=1 from here on, instead of 4" in output.out  # that halving was tried


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        *((error, True) for error in OUT_OF_MEMORY),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive"), False),  # shapes that oneDNN cannot take
        (RuntimeError("can't start new thread"), False),
        (ValueError("can't allocate memory"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_counts_as_memory_that_ran_out(error, memory):
    assert out_of_memory(error) is memory


def test_another_error_halves_nothing(scale, monkeypatch):
    SmallMemory(monkeypatch, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        ask(scale, [Point(none())], MosaicMME(), MosaicMME(images=1).samples()[:4], size := BatchSize(4), lambda n: None)
    assert size.size == 4


def test_what_is_done_keeps_its_batches(scale, monkeypatch, tmp_path):
    """A run that goes on asks in the batches of one that was never stopped."""
    samples = MosaicMME(images=2).samples()[:16]
    asked = []
    real = answering.answer
    monkeypatch.setattr(answering, "answer", lambda *a: asked.append([q.sample for q in a[3]]) or real(*a))
    ask(scale, [Point(none())], MosaicMME(), samples, 4, lambda n: None)
    whole, asked[:] = list(asked), []
    log = answering.RecordLog(tmp_path / "records.part", "s")
    point = Point(none(), log)
    stop = iter([False, True])

    def advance(n):
        if n and next(stop):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(scale, [point], MosaicMME(), samples, 4, advance)
    ask(scale, [Point(none(), answering.RecordLog(tmp_path / "records.part", "s"))], MosaicMME(), samples, 4, lambda n: None)
    assert asked == whole
