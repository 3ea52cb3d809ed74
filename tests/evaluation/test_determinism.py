"""The same samples give the same bytes of records: twice, with any number of workers, with any batch size, and alone or together with other
points. Launchers: tests/studies/test_launchers.py; every method in a batch and alone: tests/methods/test_methods.py."""

from __future__ import annotations

import json

import pytest
import torch
from support.methods import method_of
from support.processors import x86

from blink_exp.benchmarks.base import spread
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.decoder.layers import chunks
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.evaluation.records import write_lines
from blink_exp.methods.sparsevlm import SparseVLMPolicy


def records(scale, name: str, batch_size: int, workers: int = 0) -> str:
    scale.forget()
    samples = spread(MosaicMME().samples(), 8)
    rows, skipped = evaluate(scale, method_of(name, scale), MosaicMME(), batch_size, samples=samples, workers=workers)
    assert len(rows) == len(samples) and not skipped
    return write_lines(rows)


@x86
@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "blink_interp", "fastv"])
def test_batches_workers_and_a_second_run_leave_the_same_bytes(name, scale):
    whole = records(scale, name, 8)
    assert records(scale, name, 8) == whole
    assert records(scale, name, 8, workers=1) == whole
    for batch_size in (1, 3):
        assert records(scale, name, batch_size) == whole


def test_what_is_compared_holds_decisions(scale):
    steps = [step for line in records(scale, "blink_interp", 8).splitlines() for step in json.loads(line)["layers"]]
    assert {step["decision"] for step in steps} >= {"expand", "keep"} and any(step["rho"] for step in steps)


def scans(scale, names: tuple[str, ...], batch_size: int) -> list[list[tuple]]:
    """Of each question under the first of some methods, which answer together: rho, patch and token scores of each layer, unrounded."""
    scale.forget()
    methods, out = [method_of(name, scale) for name in names], []
    for batch in chunks(spread(MosaicMME().samples(), 6), batch_size):
        images = {sample.image_id: sample.image() for sample in batch}
        asked = [PointQuestion(s.image_id, MosaicMME().prompt(s), s.id, tuple(range(len(methods)))) for s in batch]
        answers = answer(scale, methods, images, asked, 2, batch_size)
        out += [[(d.scan.rho, d.scan.patch_scores, d.scan.token_scores) for d in answers[n, 0].decisions] for n in range(len(batch))]
    return out


@x86
@pytest.mark.parametrize("name", ["blink", "blink_interp"])
def test_a_question_s_scans_are_the_same_bits_alone_in_a_batch_and_beside_other_points(name, scale):
    alone = scans(scale, (name,), 1)
    assert all(alone)
    assert scans(scale, (name,), 4) == alone
    assert scans(scale, (name,), 6) == alone
    assert scans(scale, (name, "none", "fastv", "blink_interp", "blink"), 6) == alone


@x86
def test_a_question_s_raters_are_the_same_bits_beside_those_of_other_questions(scale, monkeypatch):
    """Questions whose texts are equally long, and whose attention is read from different tokens."""

    def raters(_, visual, text):
        mask = torch.zeros(len(text), dtype=torch.bool)
        mask[: 2 + int(text.abs().sum()) % 5] = True
        return mask

    monkeypatch.setattr(SparseVLMPolicy, "raters", raters)
    alone = scans(scale, ("sparsevlm",), 1)
    assert all(layer[2] for question in alone for layer in question)
    assert scans(scale, ("sparsevlm",), 6) == alone
