"""Sweeps by joblib, submitit and Ray, in groups, against the same sweep by the default launcher: every byte but the times."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hydra import compose, initialize_config_dir
from support import scripts
from support.ends import run, until
from support.refusals import refusal

from blink_exp.settings.doors import install
from blink_exp.settings.presets import CONF
from blink_exp.studies import job_groups, launchers
from blink_exp.studies.job_groups import Multirun, grouped
from blink_exp.studies.sweep_folder import read_sweep

WORDS = ("layer=12,13,15,40", "method=blink_interp", "limit=2")
FAILED = "error: 1 of 4 points failed, first layer=40: layer=40 is outside the backbone's 32 layers; use 0 to 31"
PACKAGES = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}
# times, and what says how a point was run and by which code: with how many others, and answers that it found
OF_THE_RUN = re.compile(r'"(seconds|together|kept|commit)": ([\d.]+|null|"[^"]*"|\{[^}]*\})')


def sweep(folder: Path, *launcher: str) -> dict[str, bytes | str]:
    """The files of a sweep and of its points in the store, times left out; its own folders by the same name."""
    words = ["sweep.py", "-m", *WORDS, *launcher, f"store={folder / 'points'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    done = scripts.run(words, timeout=900)  # processes of a launcher import torch anew
    assert done.returncode == 2 and done.stderr.splitlines()[-1:] == [FAILED], done.stdout + done.stderr
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".md", ".csv", ".json", ".jsonl", ".yaml")]
    wanted = [p for p in files if not {".submitit", "hydra.yaml", "multirun.yaml"} & set(p.relative_to(folder).parts)]
    texts = {str(p.relative_to(folder)): OF_THE_RUN.sub("", p.read_text(encoding="utf-8")).replace(str(folder), "") for p in wanted}
    texts["sweep/summary.csv"] = re.sub(r",[\d.]+,(True|False),", ",", texts["sweep/summary.csv"])  # seconds
    return texts


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("default"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "groups"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"], 2),
        ("joblib", ["hydra.launcher.n_jobs=2", "hydra.launcher.group_size=4"], 2),
        ("submitit_local", ["hydra.launcher.group_size=2"], 3),
        ("ray", ["hydra.launcher.group_size=2", "hydra.launcher.ray.init.num_cpus=2"], 3),
    ],
)
def test_a_launcher_leaves_what_the_default_leaves(name, words, groups, default, tmp_path):
    pytest.importorskip(f"hydra_plugins.{PACKAGES[name]}")
    files = sweep(tmp_path, f"hydra/launcher={name}", *words)
    assert files.keys() == default.keys()
    assert {file: text for file, text in files.items() if text != default[file]} == {}
    assert sum(file.endswith("records.jsonl") for file in files) == 3 and "sweep/summary.md" in files
    assert not list((tmp_path / "points").glob("*/*.part"))


def alive(processes) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_sweep_that_is_stopped_or_loses_a_process_goes_on_by_retries(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, points = tmp_path / "sweep", tmp_path / "points"
    words = ["-m", "method=none,fastv", "limit=200", "batch_size=1", "cost=0", f"store={points}", f"hydra.sweep.dir={folder}"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.group_size=1"]
    first = ["sweep.py", *words, *launcher]
    for command, number, code in ((first, signal.SIGTERM, 143), (["sweep.py", f"retry={folder}"], signal.SIGKILL, 2)):
        process = scripts.start(command, str(tmp_path))
        until(
            process,
            lambda: (folder / "multirun.yaml").is_file() and any(job.state == "running" for job in read_sweep(folder, "status").jobs),
        )
        workers = [child for child in psutil.Process(process.pid).children() if "LokyProcess" in " ".join(child.cmdline())]
        (psutil.Process(process.pid) if number == signal.SIGTERM else workers[0]).send_signal(number)
        process.join(300)
        errors = (tmp_path / "err").read_text(encoding="utf-8").splitlines()
        assert process.exitcode == code and "Traceback" not in "".join(errors), errors
        lines = [line for line in errors if line.startswith(("stopped", "error"))]  # beside what joblib warns of
        assert len(lines) == 1 and alive(workers) == [], errors
        cure = f"python sweep.py retry=failed hydra.sweep.dir={folder}"
        assert lines[0].startswith("stopped by SIGTERM; to go on") if code == 143 else lines[0].endswith(cure)
        assert any(job.state == "missing" for job in read_sweep(folder, "status").jobs)
    run("sweep.py", "retry=failed", f"hydra.sweep.dir={folder}", "hydra/launcher=shared")
    assert [job.state for job in read_sweep(folder, "status").jobs] == ["done", "done"]
    assert not list(points.glob("*/*.part"))


@pytest.fixture
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def multirun(*words: str) -> Multirun:
    config = compose("sweep", overrides=list(words), return_hydra_config=True)
    loader = SimpleNamespace(load_sweep_config=lambda master, words: compose("sweep", overrides=words, return_hydra_config=True))
    return Multirun(SimpleNamespace(config_loader=loader), config, None)


@pytest.mark.parametrize(
    ("size", "at_once", "sizes"),
    [(None, 8, [10] * 8), (None, 1, [40, 40]), (1, 8, [1] * 80), (7, 8, [6, 7, 7, 6, 7, 7] * 2), (100, 8, [40, 40])],
)
def test_80_points_of_two_benchmarks_in_groups(size, at_once, sizes, monkeypatch):
    monkeypatch.setattr(job_groups, "shared_settings", lambda words: words)
    monkeypatch.setattr(job_groups, "run_key", lambda words: words[0])
    run = SimpleNamespace(shares=True, composed=lambda words: words)
    jobs = {number: [f"benchmark={number % 2}", f"layer={number}"] for number in range(80)}
    groups = grouped(run, jobs, size, at_once)
    assert sorted(map(len, groups)) == sorted(sizes) and sorted(n for group in groups for n in group) == list(range(80))
    assert all(len({number % 2 for number in group}) == 1 for group in groups if len(group) > 1)


@pytest.mark.slow
def test_groups_are_of_points_that_can_run_together_and_others_run_alone(hydra):
    jobs = {0: ["method=none"], 1: ["method=none", "benchmark=mosaic_open"], 2: ["method=fastv"], 3: ["method=none", "limit=3"]}
    assert grouped(multirun(), jobs, 4, 8) == [[0, 2], [1], [3]]
    assert grouped(multirun("share=false"), jobs, None, 2) == [[0], [1], [2], [3]]


@pytest.mark.slow
@pytest.mark.parametrize("name", launchers.PRESETS)
def test_every_preset_composes_and_says_which_package_is_missing(name, hydra, monkeypatch):
    launcher = compose("sweep", overrides=[f"hydra/launcher={name}"], return_hydra_config=True).hydra.launcher
    engine = launchers.ENGINES[launcher._target_.rpartition(".")[2]]
    assert "group_size" in launcher

    def missing(package):
        raise launchers.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(launchers.importlib.metadata, "version", missing)
    message = refusal(lambda: launchers.check_launcher(launcher))
    assert engine.package in message and install(engine.extra) in message and f"[{engine.extra}]" in message


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0", "-1", "two", "1.5", "true"])
def test_a_group_has_a_size_or_null(size, tmp_path):
    words = ("method=none,fastv", f"hydra.launcher.group_size={size}", f"hydra.sweep.dir={tmp_path / 'a'}")
    _, errors = run("sweep.py", "-m", *words, code=2)
    assert errors == [f"error: hydra.launcher.group_size must be a whole number of at least 1, or null, got {size}"]
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_launcher_that_fails_is_the_reason_of_its_jobs(tmp_path):
    words = ("hydra/launcher=joblib", "hydra.launcher.timeout=x", f"hydra.sweep.dir={tmp_path / 'a'}", f"store={tmp_path / 'store'}")
    _, errors = run("sweep.py", "-m", "method=none,fastv", "limit=2", *words, code=2)
    assert "2 of 2 points failed, first method=none: left no result (the launcher ended early: '>' not supported" in errors[-1]
    assert (tmp_path / "a" / "summary.csv").is_file()


def test_a_lost_job_is_the_worst_value_of_a_search(hydra):
    for direction, worst in (("maximize", -float("inf")), ("minimize", float("inf"))):
        config = compose("sweep", overrides=["search=blink", f"hydra.sweeper.direction={direction}"], return_hydra_config=True)
        assert [lost.return_value for lost in job_groups.in_order(config, {}, [["a=1"]], 0)] == [worst]
