"""The folder of a sweep, read later: what is done, failed, running and missing, its summary, and what a retry runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.ends import run, until
from support.refusals import refusal
from support.scripts import start

from blink_exp.commands import sweep_folder as command
from blink_exp.evaluation import locks
from blink_exp.files import write_json, write_text
from blink_exp.studies import sweep_folder
from blink_exp.studies.sweep_folder import read_sweep, remove_rows, retry

SWEEPER = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size": None, "params": None}
WORDS = ["layer=12,13,14,40", "limit=2"]


@pytest.fixture(autouse=True)
def no_retry():
    yield
    retry(())


def command_file(folder: Path, words=WORDS, script: str = "sweep", sweeper=SWEEPER, hydra_words=()) -> None:
    hydra = {
        "job": {"config_name": script},
        "sweep": {"dir": "elsewhere", "subdir": "${hydra.job.num}"},
        "sweeper": sweeper,
        "overrides": {"task": list(words), "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", *hydra_words]},
        "runtime": {"config_sources": [{"path": "mine", "schema": "file", "provider": "command-line"}]},
    }
    write_text(folder / "multirun.yaml", OmegaConf.to_yaml({"hydra": hydra}))


def started(folder: Path, number: int, *overrides: str) -> Path:
    job = folder / str(number)
    hydra = {"job": {"num": number}, "overrides": {"task": list(overrides)}}
    write_text(job / ".hydra" / "hydra.yaml", OmegaConf.to_yaml({"hydra": hydra}))
    return job


def ended(folder: Path, number: int, *overrides: str, status: str = "done", **more) -> Path:
    job = started(folder, number, *overrides)
    row = {"number": number, "point": " ".join(overrides), "status": status, "overrides": list(overrides)}
    scores = {"scores": {"total": 1.0 + number}, "samples": 2, "seconds": 1.0, "folder": "p"} if status == "done" else {"error": "why"}
    write_json(job / "job.json", row | scores | more)
    return job


@pytest.fixture
def folder(tmp_path):
    """Job 0 is done, 3 failed, 1 was stopped, 2 never started."""
    sweep = tmp_path / "sweep"
    command_file(sweep)
    ended(sweep, 0, "layer=12", "limit=2")
    started(sweep, 1, "layer=13", "limit=2")
    ended(sweep, 3, "layer=40", "limit=2", status="failed")
    return sweep


def states(sweep: Path) -> dict[int, str]:
    return {job.number: job.state for job in read_sweep(sweep, "status").jobs}


def test_the_state_of_each_job_is_told_from_its_folder(folder):
    assert states(folder) == {0: "done", 1: "missing", 2: "missing", 3: "failed"}
    with locks.waited_folder(folder / "1"):
        assert states(folder)[1] == "running"
    assert states(folder)[1] == "missing"  # its process ended, its lock with it


def test_a_copy_reads_the_same_also_where_it_cannot_be_written(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    copy.chmod(0o555)
    assert states(copy) == states(folder)
    copy.chmod(0o755)


@pytest.mark.parametrize("data", ["", "{", '{"point": "p"}', "[]", '{"overrides": [], "point": "p", "status": "done", "scores": 3}'])
def test_a_row_that_was_cut_off_is_named_and_counts_as_missing(folder, data, caplog):
    (folder / "0" / "job.json").write_text(data, encoding="utf-8")
    assert states(folder)[0] == "missing" and str(folder / "0" / "job.json") in caplog.text


def test_a_folder_of_another_sweep_and_one_below_do_not_count(folder):
    ended(folder, 7, "layer=12", "limit=3")
    command_file(folder / "inner")
    ended(folder / "inner", 2, "layer=14", "limit=2")
    assert states(folder) == {0: "done", 1: "missing", 2: "missing", 3: "failed"}


def test_folders_are_found_below_any_subdir_and_by_overrides_where_a_sweep_is_shuffled(tmp_path):
    command_file(tmp_path, ["layer=shuffle(12,13,14)", "limit=2"])
    ended(tmp_path / "job", 1, "layer=14", "limit=2")
    jobs = read_sweep(tmp_path, "status").jobs
    assert sorted(job.number for job in jobs) == [0, 1, 2]
    assert {job.overrides[0]: job.state for job in jobs} == {"layer=12": "missing", "layer=13": "missing", "layer=14": "done"}
    assert next(job for job in jobs if job.state == "done").number == 1


def test_jobs_with_equal_words_are_told_apart_by_number(tmp_path):
    command_file(tmp_path, ["limit=2,2,2"])
    for number in (2, 0):
        ended(tmp_path, number, "limit=2")
    assert states(tmp_path) == {0: "done", 1: "missing", 2: "done"}


def test_job_folders_without_the_command_are_a_sweep_of_what_is_there(folder):
    (folder / "multirun.yaml").unlink()
    assert states(folder) == {0: "done", 1: "missing", 3: "failed"}


def test_a_search_knows_how_many_points_it_has_not_proposed(tmp_path, capsys):
    command_file(tmp_path, ["search=blink"], sweeper={"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.X", "n_trials": 5})
    ended(tmp_path, 0, "layer=3")
    started(tmp_path, 1, "layer=4")
    assert read_sweep(tmp_path, "status").unproposed == 3
    command.run([f"status={tmp_path}"])
    printed = capsys.readouterr().out
    assert "missing │      4" in printed and "run the same command again" in printed


def test_status_counts_and_names_the_first_of_each_state(folder, capsys):
    assert command.run([f"status='{folder}'"]) is None
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    first = ["layer=12", "layer=40: why", "", "layer=13"]
    assert lines == [[state, str(n), point] for state, n, point in zip(sweep_folder.STATES, (1, 1, 0, 2), first, strict=True)]


def test_status_of_a_sweep_that_runs_says_so_and_names_no_retry(folder, capsys):
    command.run([f"status={folder}"])
    assert f"retry=failed hydra.sweep.dir='{folder}'" in capsys.readouterr().out
    with locks.waited_folder(folder):
        command.run([f"status={folder}"])
    printed = capsys.readouterr().out
    assert "the sweep is running" in printed and "retry=" not in printed


def test_a_sweep_whose_jobs_outlive_its_command_runs_and_has_no_retry(folder, capsys):
    """Jobs of Slurm that answer their questions together hold no folder of a point; they were taken for missing and started again."""
    with locks.waited_folder(folder / sweep_folder.GROUPS / "0"):
        command.run([f"status={folder}"])
        printed = capsys.readouterr().out
        assert "the sweep is running" in printed and "retry=" not in printed
        message = refusal(lambda: command.run(["retry=failed", f"hydra.sweep.dir={folder}"]))
    assert message.startswith(f"hydra.sweep.dir={folder} is in use: jobs of it go on") and "scancel" in message
    assert command.run(["retry=failed", f"hydra.sweep.dir={folder}"])


def test_a_summary_has_a_row_for_every_job(folder, capsys):
    assert command.run([f"summarize={folder}"]) is None
    rows = [line.split("|")[1:3] for line in (folder / "summary.md").read_text(encoding="utf-8").splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["layer=12", "done"],
        ["layer=13", "missing"],
        ["layer=14", "missing"],
        ["layer=40", "failed"],
    ]
    assert f"3 of 4 points are not done, first layer=13\nwhich: python sweep.py status={folder}" in capsys.readouterr().out


def test_a_retry_has_the_words_of_the_command_and_its_own_launcher(folder):
    hydra_words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.subdir='job/${hydra.job.num}'"]
    command_file(folder, hydra_words=hydra_words)
    target = f"hydra.sweep.dir='{folder}'"
    expected = ["-m", "--config-dir", "mine", *hydra_words, *WORDS, target]
    assert command.run(["retry=failed", f"hydra.sweep.dir={folder}"]) == expected
    assert command.run([f"retry={folder}", "-m"]) == expected
    assert command.run(["retry=failed", target, "hydra/launcher=basic"]) == [
        *("-m", "--config-dir", "mine", hydra_words[2], "hydra/launcher=shared", "hydra.launcher.group_size=1"),
        *(*WORDS, target),
    ]
    assert sweep_folder.retried() == ["failed", "missing"]


def test_a_retry_of_what_is_done_runs_nothing(folder, capsys):
    for number, layer in ((1, 13), (2, 14), (3, 40)):
        ended(folder, number, f"layer={layer}", "limit=2")
    assert command.run(["retry=failed", f"hydra.sweep.dir={folder}"]) is None
    assert f"nothing to run again in {folder}: 4 done" in capsys.readouterr().out and not sweep_folder.retried()


def test_rows_of_jobs_that_run_again_are_removed_and_no_others(folder):
    remove_rows(folder, [["layer=40", "limit=2"], ["layer=12", "limit=3"]])
    assert states(folder) == {0: "done", 1: "missing", 2: "missing", 3: "missing"}


def test_what_is_no_sweep_is_refused_in_one_line(folder, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for verb in ("status", "summarize", "retry"):
        for name, why in (("nowhere", "is not there"), ("file", "is a file"), ("empty", "holds no sweep")):
            message = refusal(lambda name=name, verb=verb: command.run([f"{verb}={tmp_path / name}"]))
            assert message.startswith(f"{verb}={tmp_path / name} {why}") and "hydra.sweep.dir" in message
    assert refusal(lambda: command.run([f"status={tmp_path}"])).endswith(f"; in it are 1, last {folder}")
    assert "names no folder" in refusal(lambda: command.run(["status="]))
    assert "are two commands" in refusal(lambda: command.run([f"status={folder}", f"summarize={folder}"]))
    assert refusal(lambda: command.run([f"status={folder}", "limit=3"])).startswith("limit=3 says nothing to status=")
    (folder / "multirun.yaml").write_text("hydra: [", encoding="utf-8")
    assert "is damaged or cut off" in refusal(lambda: command.run([f"status={folder}"]))


def test_a_retry_that_cannot_be_is_refused_in_one_line(folder):
    assert "needs the folder of the sweep" in refusal(lambda: command.run(["retry=failed"]))
    assert "write retry=failed hydra.sweep.dir=other" in refusal(lambda: command.run(["retry=faild", "hydra.sweep.dir=other"]))
    assert refusal(lambda: command.run([f"retry={folder}", "limit=3"])).startswith("limit=3 cannot be changed by a retry")
    command_file(folder, script="evaluate")
    assert "is a multirun of python evaluate.py" in refusal(lambda: command.run([f"retry={folder}"]))
    command_file(folder, sweeper={"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "n_trials": 5})
    assert "is a search" in refusal(lambda: command.run([f"retry={folder}"]))
    (folder / "multirun.yaml").unlink()
    assert "command is not known" in refusal(lambda: command.run([f"retry={folder}"]))


@pytest.mark.parametrize("script", ["evaluate", "train"])
def test_other_commands_name_the_one_that_reads_folders(script):
    _, errors = run(f"{script}.py", "status=a", code=2)
    assert len(errors) == 1 and ("python sweep.py status=a" in errors[0] or "status is not a setting" in errors[0])


def test_a_command_that_is_being_written_is_read_when_it_is_whole(folder, monkeypatch):
    whole = (folder / "multirun.yaml").read_bytes()
    (folder / "multirun.yaml").write_bytes(b"")
    monkeypatch.setattr(sweep_folder.time, "sleep", lambda seconds: (folder / "multirun.yaml").write_bytes(whole))
    assert states(folder) == {0: "done", 1: "missing", 2: "missing", 3: "failed"}


@pytest.mark.slow
def test_a_killed_sweep_is_told_summarized_and_finished_with_the_same_bytes(tmp_path):
    words = ("method=none,fastv", "retention_ratio=0.2,7", "limit=6", "batch_size=1", "share=false")
    whole, sweep = tmp_path / "whole", tmp_path / "killed"
    run("sweep.py", "-m", *words, f"store={tmp_path / 'a'}", f"hydra.sweep.dir={whole}", code=2)
    (tmp_path / "terminal").mkdir()
    process = start(["sweep.py", "-m", *words, f"store={tmp_path / 'b'}", f"hydra.sweep.dir={sweep}"], str(tmp_path / "terminal"))
    until(process, lambda: (sweep / "2").is_dir() and states(sweep)[2] == "running")
    assert states(sweep) == {0: "done", 1: "failed", 2: "running", 3: "missing"}
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    copy = shutil.copytree(sweep, tmp_path / "copy")
    printed, _ = run("sweep.py", f"summarize={copy}")
    assert "3 of 4 points are not done" in printed
    assert states(sweep) == {0: "done", 1: "failed", 2: "missing", 3: "missing"}

    document = (sweep / "0" / "job.json").read_bytes()
    printed, errors = run("sweep.py", "retry=failed", f"hydra.sweep.dir={sweep}", code=2)
    assert [f"#{number} :" in printed for number in range(4)] == [False, True, True, True]
    assert len(errors) == 1 and errors[0].startswith("error: 2 of 4 points failed, first method=none retention_ratio=7")
    assert (sweep / "0" / "job.json").read_bytes() == document
    for name in ("summary.md", "multirun.yaml"):
        assert (sweep / name).is_file()
    assert (sweep / "summary.md").read_bytes() == (whole / "summary.md").read_bytes()
    rows = [json.loads((whole / str(number) / "job.json").read_text(encoding="utf-8")) for number in (0, 2)]
    for row in rows:
        other = tmp_path / "b" / Path(row["folder"]).name
        assert (other / "records.jsonl").read_bytes() == (Path(row["folder"]) / "records.jsonl").read_bytes()
    assert not list((tmp_path / "b").glob("*/*.part"))
