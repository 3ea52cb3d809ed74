"""The parts of a run that was divided by hand: put together to the byte, and refused by name where they are not all of one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.easy import easy_vqa
from support.refusals import refusal

from blink_exp.evaluation import evaluator
from blink_exp.methods.none import none
from blink_exp.settings.compose import composed
from blink_exp.studies.parts import _difference
from blink_exp.studies.rescoring import score_again

WORDS = ("method=none", "benchmark=easyvqa", "limit=16", "batch_size=8", "cost=0", "skip_limit=0.9")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, scale) -> Path:
    """A run in ``whole`` and its three parts in ``part1`` to ``part3``; one image is missing."""
    root = tmp_path_factory.mktemp("parts")
    data = easy_vqa(root / "data" / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "prepare_model", lambda cfg: (scale, none()))
        for name, more in {"whole": (), **{f"part{k}": (f"shard={k}/3",) for k in (1, 2, 3)}}.items():
            evaluator.measure(composed("evaluate", [*WORDS, f"benchmark.path={data}", *more]), root / name)
    return root


def together(root: Path, out: Path, *more: str, pattern: str = "part*"):
    words = [*WORDS, f"benchmark.path={root / 'data' / 'set'}", f"predictions={root}/{pattern}", *more]
    return score_again(composed("rescore", words), out)


def copied(parts: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(parts, root)
    return root


@pytest.mark.slow
def test_parts_together_are_the_whole_to_the_byte(parts, tmp_path):
    finished = together(parts, tmp_path / "out")
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == (parts / "whole" / "records.jsonl").read_bytes()
    whole = json.loads((parts / "whole" / "metrics.json").read_text("utf-8"))
    assert all(finished[key] == whole[key] for key in ("scores", "samples", "skipped", "method", "backbone"))
    assert whole["skipped"]


def changed(folder: Path, **settings: object) -> None:
    values = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump(values | settings), encoding="utf-8")


def lines_of(folder: Path) -> list[str]:
    return (folder / "records.jsonl").read_text("utf-8").splitlines(keepends=True)


def refused(root: Path, tmp_path: Path, **how: str) -> str:
    message = refusal(lambda: together(root, tmp_path / "out", **how))
    assert not (tmp_path / "out").exists()
    return message


@pytest.mark.slow
def test_a_missing_part_is_named(parts, tmp_path):
    root = copied(parts, tmp_path)
    shutil.rmtree(root / "part2")
    assert refused(root, tmp_path) == "shard=2/3 missing: 2 of 3 parts of the run are given; give the others too"
    message = refused(root, tmp_path, pattern="part1")
    assert (
        message == "shard=2/3, 3/3 missing: 1 of 3 parts of the run are given; give the others too, or score this part alone with shard=1/3"
    )
    assert together(root, tmp_path / "alone", "shard=1/3", pattern="part1")["samples"] == len(lines_of(root / "part1"))


def test_a_part_that_is_given_twice_is_named(parts, tmp_path):
    root = copied(parts, tmp_path)
    shutil.copytree(root / "part2", root / "part4")
    message = refused(root, tmp_path)
    assert message == (f"shard=2/3 is given twice, {root}/part2/records.jsonl and {root}/part4/records.jsonl; leave one away")
    (root / "part4" / "config.yaml").unlink()
    assert refused(root, tmp_path).startswith(f"{root}/part4/records.jsonl has no config.yaml beside it")
    shutil.rmtree(root / "part4")
    shutil.copytree(root / "whole", root / "part4")
    assert refused(root, tmp_path).startswith(f"{root}/part4/records.jsonl is no part of a run, but the whole of one (shard=null)")


def test_records_in_two_files_are_named_where_nothing_says_what_part_they_are(parts, tmp_path):
    root = copied(parts, tmp_path)
    for k in (1, 2, 3):
        (root / f"part{k}" / "config.yaml").unlink()
    (root / "part2" / "records.jsonl").write_text("".join([*lines_of(root / "part2"), lines_of(root / "part1")[0]]), encoding="utf-8")
    first = json.loads(lines_of(root / "part1")[0])["id"]
    assert refused(root, tmp_path) == (
        f"{first} is answered twice, in {root}/part1/records.jsonl and in {root}/part2/records.jsonl (samples in both: 1);"
        " give the files of one run, each once"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 12}, "part3/records.jsonl is of another run than {root}/part1/records.jsonl: limit=12, there 16"),
        ({"part": "test"}, "part3/records.jsonl is of another run than {root}/part1/records.jsonl: part=test, there all"),
        ({"shard": "3/4"}, "part3/records.jsonl is shard=3/4, {root}/part1/records.jsonl shard=1/3"),
        ({"shard": "4/3"}, "part3/config.yaml has shard='4/3', which is no part k/n"),
        (
            {"method": {"_target_": "blink_exp.methods.none.none", "name": "other"}},
            "part3/records.jsonl is of another run than {root}/part1/records.jsonl: method.name=other, there not set",
        ),
    ],
)
def test_a_part_of_another_run_is_named(parts, tmp_path, settings, message):
    root = copied(parts, tmp_path)
    changed(root / "part3", **settings)
    assert refused(root, tmp_path).startswith(f"{root}/" + message.format(root=root))


def test_the_first_setting_that_differs_is_named_an_empty_group_too():
    assert _difference({"method": {"name": "x", "p": 2}}, {"method": {"name": "x", "p": 3}}) == "method.p=2, there 3"
    assert _difference({"a": {"name": "x", "b": {}}}, {"a": {"name": "x"}}).endswith("there {'a': {'name': 'x'}}")


def test_a_part_that_is_cut_off_or_holds_samples_of_another_is_named(parts, tmp_path):
    root = copied(parts, tmp_path)
    last = json.loads(lines_of(root / "part3")[-1])["id"]
    (root / "part3" / "records.jsonl").write_text("".join(lines_of(root / "part3")[:-1]), encoding="utf-8")
    assert refused(root, tmp_path).startswith(f"1 samples of shard=3/3 have no record in {root}/part3/records.jsonl, first {last}")
    moved = lines_of(root / "part1")
    (root / "part1" / "records.jsonl").write_text("".join(moved[:-1]), encoding="utf-8")
    (root / "part3" / "records.jsonl").write_text("".join([*lines_of(parts / "part3"), moved[-1]]), encoding="utf-8")
    assert "samples of shard=1/3 have no record" in refused(root, tmp_path)
    (root / "part1" / "records.jsonl").write_text("".join(moved[:-1]), encoding="utf-8")
    metrics = json.loads((root / "part1" / "metrics.json").read_text("utf-8"))
    metrics["skipped"].append({"id": json.loads(moved[-1])["id"], "why": "x"})
    (root / "part1" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert refused(root, tmp_path).startswith(f"1 records of {root}/part3/records.jsonl are not of its shard=3/3")
