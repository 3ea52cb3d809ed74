"""What an evaluation runs on and leaves behind: shards, copies of data sets, records that are scored again without a model."""

from __future__ import annotations

import json
from collections import Counter

import hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scripts import run

from blink_exp.benchmarks.base import Sample, mean, shard, spread
from blink_exp.errors import UserError
from blink_exp.experiments.evaluate import located
from blink_exp.experiments.records import predicted, scored_again


def some(images: list[int]) -> list[Sample]:
    """As many questions on each image as ``images`` says."""
    return [Sample(f"{i}/{k}", str(i), lambda: None, "?", "yes", "c") for i, n in enumerate(images) for k in range(n)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 7))
def test_shards_part_the_samples_and_keep_images_whole(images, n):
    samples = some(images)
    parts = [shard(samples, f"{k}/{n}") for k in range(1, n + 1)]
    assert Counter(s.id for part in parts for s in part) == Counter(s.id for s in samples)
    assert sum(len({s.image_id for s in part}) for part in parts) == len(images)


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0"])
def test_a_shard_that_is_none_is_said(part):
    with pytest.raises(UserError, match="shard=1/8"):
        shard(some([1, 1]), part)


def test_a_limit_is_spread_over_whole_images():
    assert [s.id for s in spread(some([2] * 6), 4)] == ["0/0", "0/1", "3/0", "3/1"]
    assert len(spread(some([2] * 6), 100)) == 12


def test_the_error_of_marks_between_0_and_1_is_that_of_their_mean():
    """0, 0.5, 1: variance 1/6, over three samples 1/18; right and wrong give the binomial error."""
    assert mean([0.0, 0.5, 1.0]).stderr == pytest.approx(100 / 18**0.5)
    assert mean([True, True, False, False]).stderr == pytest.approx(25.0)


def test_a_copy_below_data_root_is_taken_under_either_name(tmp_path):
    for name in ("MME", "lmms-lab-encoder/POPE"):
        (tmp_path / name).mkdir(parents=True)
    assert located("lmms-lab-encoder/MME", tmp_path) == str(tmp_path / "MME")
    assert located("lmms-lab-encoder/POPE", tmp_path) == str(tmp_path / "lmms-lab-encoder/POPE")
    assert located("lmms-lab-encoder/GQA", tmp_path) == "lmms-lab-encoder/GQA"
    assert located(str(tmp_path / "MME"), tmp_path) == str(tmp_path / "MME")
    with pytest.raises(UserError, match="data_root"):
        located("a/b", tmp_path / "no")


@pytest.fixture(scope="module")
def mme(tmp_path_factory):
    return hub.build("mme", hub.MAKERS["mme"](tmp_path_factory.mktemp("mme")))


def lines(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_two_shards_of_predictions_score_as_the_whole(mme, tmp_path):
    """By hand: every question answered yes, so each image has one right and no pair; the rule of today marks, not the old mark."""
    said = [{"id": s.id, "prediction": "Yes.", "correct": False} for s in mme.samples()]
    lines(tmp_path / "a" / "records.jsonl", said[::2])
    lines(tmp_path / "b" / "records.jsonl", said[1::2])
    records = scored_again(mme, mme.samples(), predicted(str(tmp_path / "*")))
    assert len(records) == len(said)
    assert all(r["correct"] == (r["answer"] == "yes") for r in records)
    assert mme.score(records) == mme.score(scored_again(mme, mme.samples(), predicted(lines(tmp_path / "all.jsonl", said))))
    assert mme.score(records)["accuracy"].value == 50


def test_predictions_of_another_split_damaged_or_double_are_refused(mme, tmp_path):
    first = mme.samples()[0].id
    with pytest.raises(UserError, match=r"1 of 2 predictions are not of mme/test, first pope/test/7"):
        rows = [{"id": first, "prediction": "yes"}, {"id": "pope/test/7", "prediction": "yes"}]
        scored_again(mme, mme.samples(), predicted(lines(tmp_path / "x.jsonl", rows)))
    (tmp_path / "cut.jsonl").write_text('{"id": "a", "prediction": "yes"}\n{"id": "b", "pred')
    with pytest.raises(UserError, match="line 2 of"):
        predicted(str(tmp_path / "cut.jsonl"))
    with pytest.raises(UserError, match="answered twice"):
        predicted(lines(tmp_path / "twice.jsonl", [{"id": "a", "prediction": "yes"}, {"id": "a", "prediction": "no"}]))
    with pytest.raises(UserError, match="is not there"):
        predicted(str(tmp_path / "none.jsonl"))


def test_a_run_can_be_scored_again_by_the_command_line_without_a_model(mme, tmp_path):
    """model.path names nothing: a run that loaded it would fail."""
    path = lines(tmp_path / "records.jsonl", [{"id": s.id, "prediction": s.answer} for s in mme.samples()])
    words = ["benchmark=mme", f"data_root={tmp_path}", f"predictions={path}", "model=folder", "model.path=nowhere"]
    done = run(["evaluate.py", *words, f"benchmark.path={mme.path}", f"hydra.run.dir={tmp_path / 'out'}"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["scores"]["accuracy"]["value"], metrics["protocol"], metrics["split"]) == (100.0, "llava", "test")
    assert OmegaConf.load(tmp_path / "out" / "config.yaml").predictions == path
