"""Evaluations of which samples could not be read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import easy_vqa
import pytest
from support.ends import answers, run
from support.refusals import refusal

from blink_exp.evaluation import shared_runs
from blink_exp.evaluation.evaluator import check_complete, incomplete
from blink_exp.evaluation.records import read
from blink_exp.settings.compose import composed
from blink_exp.studies.point import guarded, measured_point

SOURCE = Path(easy_vqa.__file__).parent / "data" / "test"


@pytest.fixture
def data(tmp_path) -> Path:
    """Four images of easy-VQA with ten questions each."""
    rows = json.loads((SOURCE / "questions.json").read_text(encoding="utf-8"))
    ids = list(dict.fromkeys(row[2] for row in rows))[:4]
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps([row for row in rows if row[2] in ids]), encoding="utf-8")
    for name in ids:
        shutil.copy2(SOURCE / "images" / f"{name}.png", folder / "images")
    return folder


def away(data: Path, count: int) -> list[Path]:
    """Takes ``count`` images out of the data."""
    files = sorted((data / "images").iterdir())[:count]
    (data.parent / "away").mkdir(exist_ok=True)
    return [Path(shutil.move(file, data.parent / "away")) for file in files]


def back(data: Path, files: list[Path]) -> None:
    for file in files:
        shutil.move(file, data / "images")


def point(data: Path, *words: str):
    return composed("sweep", [f"benchmark.path={data}", "benchmark=easyvqa", "method=none", f"store={data.parent / 'points'}", *words])


@pytest.mark.slow
def test_a_point_without_its_images_fails_and_goes_on_when_they_are_back(data, capsys):
    questions = len(json.loads((data / "questions.json").read_text(encoding="utf-8")))
    gone = away(data, 3)
    row = guarded(point(data), "p")
    assert row["status"] == "failed"
    assert "samples" in row["error"] and "were skipped, more than skip_limit=0.01 allows, first easyvqa/test/00000: " in row["error"]
    assert not list(data.parent.glob("points/*/metrics.json"))
    (parts,) = data.parent.glob("points/*/records.part")
    first = answers(parts)
    assert first
    back(data, gone)
    capsys.readouterr()
    row = measured_point(point(data))
    assert (row["samples"], row["skipped_samples"], row["reused"]) == (questions, 0, False)
    assert f"going on: {len(first)} of {questions} samples are done" in capsys.readouterr().out
    assert sorted(r["id"] for r in read(row["folder"])) == sorted({r["id"] for r in read(row["folder"])})
    assert not any("image_file" in r for r in read(row["folder"]))
    assert not list(data.parent.rglob("*.part"))
    assert measured_point(point(data))["reused"]
    away(data, 3)
    assert guarded(point(data), "p")["status"] == "failed"  # other data, another point


@pytest.mark.slow
def test_an_incomplete_point_that_was_allowed_is_not_taken_where_it_is_not(data):
    away(data, 1)
    row = measured_point(point(data, "skip_limit=0.5"))
    assert row["skipped_samples"] > 0 and row["first_skipped"].startswith("easyvqa/test/")
    assert shared_runs.stored_point(point(data, "skip_limit=0.5"))[1] is not None
    assert shared_runs.stored_point(point(data))[1] is None


@pytest.mark.slow
def test_a_changed_image_is_asked_about_again(data, capsys):
    gone = away(data, 1)
    assert guarded(point(data), "p")["status"] == "failed"
    (parts,) = data.parent.glob("points/*/records.part")
    known = len(answers(parts))
    changed = sorted((data / "images").iterdir())[0]
    os.utime(changed, (1, 1))
    back(data, gone)
    capsys.readouterr()
    measured_point(point(data))
    output = capsys.readouterr().out
    assert "going on: " in output and f"going on: {known} of" not in output


@pytest.mark.slow
def test_an_incomplete_evaluation_ends_with_one_line_and_keeps_its_records(data, tmp_path):
    gone = away(data, 3)
    words = ("evaluate.py", "method=none", "cost=0", "benchmark=easyvqa", f"benchmark.path={data}", f"hydra.run.dir={tmp_path / 'run'}")
    _, errors = run(*words, code=2)
    (line,) = errors
    assert line.startswith("error: ") and "were skipped, more than skip_limit=0.01 allows, first easyvqa/test/00000: " in line
    assert line.endswith(f"with hydra.run.dir={tmp_path / 'run'} the same command goes on from the answers that are there")
    assert not (tmp_path / "run" / "metrics.json").exists() and answers(tmp_path / "run" / "records.part")
    back(data, gone)
    printed, _ = run(*words)
    assert "going on: " in printed and (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("skipped", "samples", "limit", "wanted"),
    [
        (1, 99, 0.01, False),
        (2, 98, 0.01, True),
        (10, 990, 0.01, False),
        (11, 989, 0.01, True),
        (1, 1, 0.01, False),
        (1, 9, 0, True),
        (0, 9, 0, False),
        (59, 11, 1, False),
    ],
)
def test_how_many_samples_may_be_skipped(skipped, samples, limit, wanted):
    assert incomplete(skipped, samples, limit) == wanted


def test_the_line_of_an_incomplete_run_counts_and_names_the_first():
    skipped = [{"id": "b/1", "why": "no such file"}, {"id": "b/2", "why": "cut off"}]
    message = refusal(lambda: check_complete([{}] * 8, skipped, 0.1))
    assert message.startswith("2 of 10 samples (20.0 %) were skipped, more than skip_limit=0.1 allows, first b/1: no such file; ")
    assert refusal(lambda: check_complete([], skipped, 1)).startswith("none of the 2 samples could be read, first b/1: no such file")
