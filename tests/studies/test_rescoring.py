"""Records of runs, of shards and of a sweep's jobs are scored again, and compared, without a model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import hub
from support.scripts import run

from blink_exp.benchmarks.base import Count, mean
from blink_exp.errors import UserError
from blink_exp.evaluation import terminal
from blink_exp.evaluation.records import write_lines
from blink_exp.files import write_json
from blink_exp.settings.compose import composed
from blink_exp.studies.rescoring import check_benchmark, differences, files_of, made_with, predicted, score_again, scored_again


def test_the_error_of_marks_between_0_and_1_is_that_of_their_mean():
    """0, 0.5, 1: variance 1/6, over three samples 1/18; right and wrong give the binomial error."""
    assert mean([0.0, 0.5, 1.0]).stderr == pytest.approx(100 / 18**0.5)
    assert mean([True, True, False, False]).stderr == pytest.approx(25.0)


@pytest.fixture(scope="module")
def mme(tmp_path_factory):
    return hub.build("mme", hub.MAKERS["mme"](tmp_path_factory.mktemp("mme")))


def lines(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_two_shards_of_predictions_score_as_the_whole(mme, tmp_path):
    """By hand: every question answered yes, so each image has one right and no pair; the rule of today marks, not the old mark."""
    predictions = [{"id": s.id, "prediction": "Yes.", "correct": False} for s in mme.samples()]
    lines(tmp_path / "a" / "records.jsonl", predictions[::2])
    lines(tmp_path / "b" / "records.jsonl", predictions[1::2])
    records = scored_again(mme, mme.samples(), predicted(str(tmp_path / "*")))
    assert len(records) == len(predictions)
    assert all(r["correct"] == (r["answer"] == "yes") for r in records)
    assert mme.score(records) == mme.score(scored_again(mme, mme.samples(), predicted(lines(tmp_path / "all.jsonl", predictions))))
    assert mme.score(records)["accuracy"].value == 50


def test_predictions_of_another_split_damaged_or_double_are_refused(mme, tmp_path):
    first = mme.samples()[0].id
    with pytest.raises(UserError, match=r"1 of 2 predictions are not of mme/test, first pope/test/7"):
        rows = [{"id": first, "prediction": "yes"}, {"id": "pope/test/7", "prediction": "yes"}]
        scored_again(mme, mme.samples(), predicted(lines(tmp_path / "x.jsonl", rows)))
    (tmp_path / "cut.jsonl").write_text('{"id": "a", "prediction": "yes"}\n{"id": "b", "pred', encoding="utf-8")
    with pytest.raises(UserError, match="line 2 of"):
        predicted(str(tmp_path / "cut.jsonl"))
    with pytest.raises(UserError, match="answered twice"):
        predicted(lines(tmp_path / "twice.jsonl", [{"id": "a", "prediction": "yes"}, {"id": "a", "prediction": "no"}]))
    with pytest.raises(UserError, match="is not there"):
        predicted(str(tmp_path / "none.jsonl"))


def test_the_job_of_a_sweep_stands_for_the_point_that_it_measured(tmp_path):
    """``sweep.py`` keeps records in the store: its job folders say where."""
    lines(tmp_path / "point" / "records.jsonl", [{"id": "a", "prediction": "yes"}])
    for job, row in {"0": {"status": "done", "folder": str(tmp_path / "point")}, "1": {"status": "failed", "error": "no image"}}.items():
        (tmp_path / "sweep" / job).mkdir(parents=True)
        (tmp_path / "sweep" / job / "job.json").write_text(json.dumps(row), encoding="utf-8")
    assert files_of(str(tmp_path / "sweep" / "0")) == [tmp_path / "point" / "records.jsonl"]
    with pytest.raises(UserError, match=r"against=\S+/1 is a job that failed \(no image\); run it again"):
        files_of(str(tmp_path / "sweep" / "1"), "against")
    lines(tmp_path / "sweep" / "0" / "records.jsonl", [])  # a job of evaluate.py has records of its own
    assert files_of(str(tmp_path / "sweep" / "0")) == [tmp_path / "sweep" / "0" / "records.jsonl"]


@pytest.mark.parametrize("project", ["project", "copied"])
def test_the_point_of_a_job_is_where_its_sweep_was_started(project, tmp_path, monkeypatch):
    """Also from another folder; a project that was copied or moved has points of its own."""
    (tmp_path / "project" / "points").mkdir(parents=True)
    lines(tmp_path / "project" / "points" / "p" / "records.jsonl", [{"id": "a", "prediction": "yes"}])
    job = tmp_path / "project" / "sweep" / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"status": "done", "folder": "points/p"}), encoding="utf-8")
    runtime = {"cwd": str(tmp_path / "project"), "output_dir": str(job)}
    (job / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": runtime}}), encoding="utf-8")
    shutil.copytree(tmp_path / "project", tmp_path / "copied")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert files_of(f"../{project}/sweep/0") == [tmp_path / project / "points" / "p" / "records.jsonl"]


def test_a_run_can_be_scored_again_by_the_command_line_without_a_model(mme, tmp_path):
    """model.path names nothing: a run that loaded it would fail."""
    path = lines(tmp_path / "records.jsonl", [{"id": s.id, "prediction": s.answer} for s in mme.samples()])
    words = ["benchmark=mme", f"data_root={tmp_path}", f"predictions={path}", "model=folder", "model.path=nowhere"]
    done = run(["-m", "blink_exp", "rescore", *words, f"benchmark.path={mme.path}", f"hydra.run.dir={tmp_path / 'out'}"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["scores"]["accuracy"]["value"], metrics["protocol"], metrics["split"]) == (100.0, "llava", "test")
    assert OmegaConf.load(tmp_path / "out" / "config.yaml").predictions == path


@pytest.mark.slow
def test_two_runs_are_compared_question_by_question(mme, tmp_path):
    """By hand: 4 questions that only the first run has right, 1 that only the second has: 2 (1 + 5) / 32 = 0.375 by McNemar."""
    samples = mme.samples()
    wrong = {"yes": "no", "no": "yes"}
    runs = {"ours": {samples[0].id}, "theirs": {s.id for s in samples[1:5]}}
    for name, missed in runs.items():
        predictions = [{"id": s.id, "prediction": wrong[s.answer] if s.id in missed else s.answer} for s in samples]
        lines(tmp_path / name / "records.jsonl", predictions)
    words = ["benchmark=mme", f"benchmark.path={mme.path}", f"predictions={tmp_path / 'ours'}", f"against={tmp_path / 'theirs'}"]
    done = run(["-m", "blink_exp", "compare", *words, f"hydra.run.dir={tmp_path / 'out'}"])
    assert done.returncode == 0, done.stderr
    difference = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["differences"]["accuracy"]
    assert difference["delta"] == pytest.approx(100 * 3 / len(samples)) and difference["n"] == len(samples)
    assert difference["test"] == "McNemar and image bootstrap" and 0.375 - 1e-9 <= difference["p"] < 1
    assert f"difference from {tmp_path / 'theirs'}" in done.stdout and "+50.00" in done.stdout
    lines(tmp_path / "fewer" / "records.jsonl", [{"id": s.id, "prediction": s.answer} for s in samples[1:]])
    words[-1] = f"against={tmp_path / 'fewer'}"
    done = run(["-m", "blink_exp", "compare", *words, f"hydra.run.dir={tmp_path / 'out'}"])
    assert done.returncode == 2 and "predictions has 6 questions, against 5, both 5; give two runs on the same questions" in done.stderr


def test_runs_are_not_compared_by_what_only_counts():
    """Four more empty masks, or who chose an option, would stand among the scores as if one run were better by it."""

    class Drawn:
        name = "drawn"

        def score(self, records):
            marks = [record["correct"] for record in records]
            return {"accuracy": mean(marks), "empty_masks": Count(sum(marks), len(marks))}

    ours, theirs = ([{"id": str(n), "image_id": str(n), "correct": n % k == 0} for n in range(12)] for k in (2, 3))
    assert list(differences(Drawn(), ours, theirs, ["accuracy", "empty_masks"], 0)) == ["accuracy"]
    with pytest.raises(UserError, match="drawn has no score to compare"):
        differences(Drawn(), ours, theirs, ["empty_masks"], 0)


def test_predictions_of_another_benchmark_name_it(mme, tmp_path):
    path = lines(tmp_path / "run" / "records.jsonl", [{"id": "pope/1", "prediction": "yes"}])
    write_json(tmp_path / "run" / "metrics.json", {"benchmark": "pope"})
    with pytest.raises(UserError, match=r"has answers to pope, not to mme; use benchmark=pope"):
        check_benchmark(path, "mme")
    with pytest.raises(UserError, match=r"^against=.* has answers to pope"):
        check_benchmark(path, "mme", "against")


def test_predictions_made_under_another_protocol_are_refused(mme):
    """The ids agree; only the words that were asked tell."""
    first, second = mme.samples()[:2]
    predictions = {s.id: {"id": s.id, "prediction": "Yes", "question": mme.prompt(s)} for s in (first, second)}
    assert len(scored_again(mme, mme.samples(), predictions)) == 2
    predictions[second.id]["question"] += " Answer in one word."
    with pytest.raises(UserError, match=rf"^{second.id} was asked in other words than mme .*protocol llava.*; choose the protocol"):
        scored_again(mme, mme.samples(), predictions)


def test_a_file_without_a_record_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no record"):
        predicted(lines(tmp_path / "records.jsonl", []))


def test_no_sign_in_an_answer_ends_its_record(tmp_path):
    """U+2028, U+2029 and U+0085 end a line for str.splitlines, by which the files are read, but not for JSON."""
    predictions = [{"id": "a", "prediction": "one\u2028two\u2029three\x85four é"}]
    assert list(predicted(lines(tmp_path / "records.jsonl", predictions)).values()) == predictions
    text = write_lines(predictions)
    assert len(text.splitlines()) == 1 and json.loads(text) == predictions[0] and "é" in text


EMPTY = [("of_nothing", math.nan), ("of_nothing_read_back", None)]
MADE = {"backbone": "b@1", "method": "blink", "layers": [12], "dtype": "bfloat16", "pad": True, "system_prompt": None, "seed": 3}


def shards(folder: Path, *metrics: dict | None) -> str:
    for k, document in enumerate(metrics):
        lines(folder / str(k) / "records.jsonl", [{"id": f"{k}", "prediction": "yes"}])
        if document is not None:
            write_json(folder / str(k) / "metrics.json", document)
    return f"{folder}/*"


def test_what_shards_were_made_with_is_that_of_all(tmp_path):
    (a, b, c, d) = (tmp_path / name for name in "abcd")
    for folder in (a, b, c, d):
        folder.mkdir()
    # where and how fast a shard ran is no part of it
    on = [MADE | {"device": f"cuda:{k}", "batch_size": k + 1, "samples": 7, "blink": {"visual_tokens_of_the_image": 576}} for k in (0, 1)]
    assert made_with(shards(a, *on)) == MADE | {"visual_tokens_of_the_image": 576}
    assert made_with(shards(b, MADE, None)) == {}
    with pytest.raises(
        UserError, match=r"1.records.jsonl was made with method=hero, .*0.records.jsonl with blink; give the files of one run"
    ):
        made_with(shards(c, MADE, MADE | {"method": "hero"}))
    (tmp_path / "d" / "0").mkdir()
    (tmp_path / "d" / "0" / "records.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "d" / "0" / "metrics.json").write_text('{"backbone": ', encoding="utf-8")
    with pytest.raises(UserError, match="metrics.json is damaged"):
        made_with(str(tmp_path / "d" / "0"))


def test_a_result_scored_again_names_the_model_that_predicted(mme, tmp_path, capsys):
    step = {"layer": 12, "rho": 0.5, "decision": "expand", "effective": True, "visual_tokens": 288}
    predictions = [{"id": s.id, "prediction": s.answer, "layers": [step]} for s in mme.samples()]
    path = lines(tmp_path / "run" / "records.jsonl", predictions)
    write_json(tmp_path / "run" / "metrics.json", MADE | {"blink": {"visual_tokens_of_the_image": 144}, "skipped": [{"id": "x"}]})
    settings = composed("rescore", ["benchmark=mme", f"benchmark.path={mme.path}", f"predictions={path}"])
    finished = score_again(settings, tmp_path / "out")
    assert {k: finished[k] for k in MADE} == MADE  # the seed too, which is not this command's
    assert finished["blink"]["layers"][12]["visual_tokens"] == 288
    assert finished["skipped"] == [] and finished["scores"]["accuracy"]["value"] == 100
    terminal.show(finished)
    assert "b@1" in (printed := capsys.readouterr().out) and "dtype bfloat16, pad true" in printed and "[288]" in printed


def test_the_score_of_nothing_is_null_and_an_empty_cell(tmp_path, capsys):
    nothing = mean([])
    assert math.isnan(nothing.value) and nothing.samples == 0
    write_json(tmp_path / "m.json", {"a": [nothing.value, math.inf, 1.5], "b": {"c": (nothing.value,)}})
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == {"a": [None, None, 1.5], "b": {"c": [None]}}
    scores = {"accuracy": {"value": 50.0, "stderr": 1.0, "samples": 4}} | {k: {"value": v, "stderr": None, "samples": 0} for k, v in EMPTY}
    head = {"method": "m", "benchmark": "x", "protocol": "own", "backbone": "b", "layers": [], "cost": None, "skipped": []}
    terminal.show(head | {"scores": scores, "samples": 4, "without_answer": 0})
    rows = [line for line in capsys.readouterr().out.splitlines() if "of_nothing" in line]
    assert [[cell.strip() for cell in row.strip("│ ").split("│")] for row in rows] == [[k, "", "", "0"] for k, _ in EMPTY]
