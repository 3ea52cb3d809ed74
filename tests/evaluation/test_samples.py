"""What an evaluation runs on: shards, limits, copies of data sets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.samples import samples_on

from blink_exp.benchmarks.base import shard, spread
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import located


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 7))
def test_shards_part_the_samples_and_keep_images_whole(images, n):
    samples = samples_on(images)
    parts = [shard(samples, f"{k}/{n}") for k in range(1, n + 1)]
    assert Counter(s.id for part in parts for s in part) == Counter(s.id for s in samples)
    assert sum(len({s.image_id for s in part}) for part in parts) == len(images)


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_said(part):
    with pytest.raises(UserError, match="shard=1/8"):
        shard(samples_on([1, 1]), part)


def test_a_limit_is_spread_over_whole_images():
    assert [s.id for s in spread(samples_on([2] * 6), 4)] == ["0/0", "0/1", "3/0", "3/1"]
    assert len(spread(samples_on([2] * 6), 100)) == 12


def test_a_copy_below_data_root_is_taken_under_either_name(tmp_path):
    for name in ("MME", "lmms-lab-encoder/POPE"):
        (tmp_path / name).mkdir(parents=True)
    assert located("lmms-lab-encoder/MME", tmp_path) == str(tmp_path / "MME")
    assert located("lmms-lab-encoder/POPE", tmp_path) == str(tmp_path / "lmms-lab-encoder/POPE")
    assert located("lmms-lab-encoder/GQA", tmp_path) == "lmms-lab-encoder/GQA"
    assert located(str(tmp_path / "MME"), tmp_path) == str(tmp_path / "MME")
    with pytest.raises(UserError, match="data_root"):
        located("a/b", tmp_path / "no")
