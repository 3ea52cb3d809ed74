"""Neither the order of its records nor how the parts of a run cut them changes what a benchmark scores: all benchmarks of the hub."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hub import build
from support.hub_choices import MAKERS

from blink_exp.benchmarks.base import shard
from blink_exp.evaluation.records import graded

NAMES = sorted(set(MAKERS) - {"captions"})  # whose scores come out of a comparison of two runs
YES_NO = {name: ["Yes", "No", "no.", "y", "perhaps"] for name in ("mme", "pope")}
PROTOCOL = {name: {"protocol": "lmms_eval"} for name in YES_NO}  # which knows answers that are neither yes nor no


def replies(name, sample) -> list[str]:
    """Predictions for a sample: right ones, wrong ones, and some that no rule can read."""
    return YES_NO.get(name) or [*(sample.fields.get("answers") or [sample.answer]), "A", "nothing"]


@pytest.fixture(scope="module", params=NAMES)
def asked(request, tmp_path_factory):
    """Name, benchmark, samples."""
    name = request.param
    benchmark = build(name, MAKERS[name](tmp_path_factory.mktemp(name)), **PROTOCOL.get(name, {}))
    return name, benchmark, benchmark.samples()


@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_neither_order_nor_shards_change_a_score(asked, seed, parts):
    """To the last bit, though accuracies are fractions and means of means. MM-Vet brings a judge's marks, and lacks one."""
    name, benchmark, samples = asked
    rng = random.Random(seed)
    records = {s.id: graded(benchmark, s, rng.choice(replies(name, s))) for s in samples}
    if name == "mmvet":
        marks = rng.sample([0.5, None, 1.0], len(samples))
        records = {k: r | {"judge": {"value": mark}} for (k, r), mark in zip(records.items(), marks, strict=True)}
    records = json.loads(json.dumps(records))  # scores must be computable from what a file holds
    whole = [records[s.id] for s in samples]
    mixed = [records[s.id] for k in range(parts) for s in shard(samples, f"{k + 1}/{parts}")]
    rng.shuffle(mixed)
    assert benchmark.score(whole)
    assert benchmark.score(mixed) == benchmark.score(whole)
