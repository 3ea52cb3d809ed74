"""Points of a sweep that run together: the same answers and files as alone, one pass, each point its own."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from blink_exp.cli import CONF
from blink_exp.evaluation import locks, shared_runs
from blink_exp.evaluation.records import read
from blink_exp.evaluation.store import SHARED_NOTE
from blink_exp.settings.compose import composed
from blink_exp.studies import multirun
from blink_exp.studies.multirun import run_jobs
from blink_exp.studies.point import guarded, measured, measured_point

WORDS = [
    ["method=blink"],
    ["method=blink", "thresholds=always_expand"],
    ["method=blink_interp", "layers=13-19"],
    ["method=none"],
    ["method=fastv"],
]


@pytest.fixture(autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def comparable(records: list[dict]) -> list[dict]:
    """rho is rounded for the file, where rounding may differ in the last digit."""
    return [r | {"layers": [s | {"rho": s["rho"] and pytest.approx(s["rho"], abs=2e-5)} for s in r["layers"]]} for r in records]


def points(store: Path, *more: str, words=WORDS):
    return [composed("sweep", [*overrides, "limit=3", f"store={store}", *more]) for overrides in words]


@pytest.mark.slow
def test_points_together_leave_what_points_alone_leave(tmp_path, monkeypatch):
    configs = points(tmp_path / "together")
    asked = []
    ask = shared_runs.ask
    monkeypatch.setattr(shared_runs, "ask", lambda *a: asked.append(len(a[1])) or ask(*a))
    shared_runs.run_together(configs)
    assert asked == [5]
    shared = [measured_point(cfg) for cfg in configs]
    alone = [measured_point(cfg) for cfg in points(tmp_path / "alone")]
    for a, b in zip(shared, alone, strict=True):
        assert Path(a["folder"]).name == Path(b["folder"]).name  # running together is no part of what a result depends on
        assert comparable(read(a["folder"])) == comparable(read(b["folder"]))
        assert (a["scores"], a["tokens"], a["method"], a["samples"]) == (b["scores"], b["tokens"], b["method"], b["samples"])
        assert sorted(p.name for p in Path(a["folder"]).iterdir()) == sorted(p.name for p in Path(b["folder"]).iterdir())
        assert (a["together"]["points"], b["together"]) == (5, None)
        assert a["seconds"] >= a["together"]["seconds"] / 5  # its share is in


@pytest.mark.slow
def test_what_is_done_is_not_asked_again_and_what_was_killed_goes_on(tmp_path, monkeypatch):
    configs = points(tmp_path, words=WORDS[:3])
    measured_point(configs[0])
    counted = []
    answered = shared_runs.ask

    def killed(backbone, some, benchmark, samples, batch_size, advance, workers):
        answered(backbone, some, benchmark, samples[:1], batch_size, advance)
        raise KeyboardInterrupt

    monkeypatch.setattr(shared_runs, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        shared_runs.run_together(configs)
    assert [
        len((f / "records.part").read_text(encoding="utf-8").splitlines()) for f in (shared_runs.stored_point(c)[0] for c in configs[1:])
    ] == [
        2,
        2,
    ]
    monkeypatch.setattr(
        shared_runs, "ask", lambda *a: counted.append((len(a[1]), [len(p.record_log.records) for p in a[1]])) or answered(*a)
    )
    shared_runs.run_together(configs)
    assert counted == [(2, [1, 1])]  # the first point is in the store, the others have one answer each
    assert all(measured_point(c)["samples"] == 4 for c in configs)
    shared_runs.run_together(configs)
    assert len(counted) == 1


@pytest.mark.slow
def test_force_answers_again(tmp_path, monkeypatch):
    asked = []
    for force in ("false", "true"):
        configs = points(tmp_path, f"force={force}", words=WORDS[2:4])
        monkeypatch.setattr(shared_runs, "_run_group", lambda group: asked.append(len(group)))
        shared_runs.run_together(configs)
        for cfg in configs if force == "false" else []:
            measured_point(cfg)
    assert asked == [2, 2]


@pytest.mark.slow
def test_points_that_differ_in_more_than_the_method_do_not_run_together(tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(shared_runs, "_run_group", lambda group: groups.append(len(group)))
    test, other = points(tmp_path, "part=test", words=WORDS[:3]), points(tmp_path, "benchmark=mosaic_open", words=WORDS[:1])
    shared_runs.run_together([*points(tmp_path, words=WORDS[:2]), *test, *other])
    assert groups == [2, 3]


@pytest.mark.slow
def test_a_point_that_cannot_run_does_not_stop_the_others(tmp_path):
    bad = [*points(tmp_path, words=[["method=blink", "grid.p=5"]]), *points(tmp_path, words=WORDS[2:4])]
    shared_runs.run_together(bad)
    assert [(shared_runs.stored_point(c)[0] / "records.part").is_file() for c in bad] == [False, True, True]
    row = guarded(bad[0], "p=5")
    assert row["status"] == "failed" and "grid.p=5 does not divide" in row["error"]


@pytest.mark.slow
def test_a_point_that_needs_regions_where_there_are_none_does_not_stop_the_others(tmp_path):
    words = [["method=two_views", "method.region=annotated"], ["method=two_views", "method.region=random"], ["method=none"]]
    asked = points(tmp_path, "benchmark=easyvqa", words=words)
    shared_runs.run_together(asked)
    assert [(shared_runs.stored_point(c)[0] / "records.part").is_file() for c in asked] == [False, True, True]
    row = guarded(asked[0], "annotated")
    assert row["status"] == "failed" and "benchmark=easyvqa says nowhere where the answer is to be seen" in row["error"]


def test_a_failure_of_the_shared_run_leaves_the_points_to_themselves(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("out of luck")

    configs = points(tmp_path, words=WORDS[2:4])
    monkeypatch.setattr(shared_runs, "ask", broken)
    shared_runs.run_together(configs)
    assert "points run alone: out of luck" in caplog.text
    assert [measured_point(c)["samples"] for c in configs] == [4, 4]


def test_jobs_of_a_search_are_answered_on_the_validation_part(tmp_path, monkeypatch):
    shared = []
    monkeypatch.setattr(multirun, "run_together", lambda configs: shared.extend(configs))
    plain = compose("sweep", overrides=[f"store={tmp_path}"], return_hydra_config=True)
    searching = compose("sweep", overrides=["search=blink", f"store={tmp_path}"], return_hydra_config=True)
    table = compose("sweep", overrides=["table=blink_table3"], return_hydra_config=True)
    apart = compose("sweep", overrides=["share=false"], return_hydra_config=True)
    run_jobs([plain, searching, table, apart])
    assert [cfg.part for cfg in shared] == ["all", "validation"]


def test_the_launcher_is_sweep_s_own_and_basic_is_one_word_away():
    made = (compose("sweep", overrides=words, return_hydra_config=True) for words in ([], ["hydra/launcher=basic"]))
    chosen = [cfg.hydra.launcher._target_ for cfg in made]
    assert chosen[0].endswith("SharedLauncher") and chosen[1].endswith("BasicLauncher")


def test_metrics_say_who_ran_together(tmp_path):
    configs = points(tmp_path, words=WORDS[2:4])
    shared_runs.run_together(configs)
    folder = Path(measured_point(configs[0])["folder"])
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["together"]["points"] == 2
    assert not (folder / SHARED_NOTE).exists()


def test_a_point_that_another_run_is_at_is_left_to_it_and_waited_for(tmp_path, monkeypatch, capsys):
    configs = points(tmp_path, words=WORDS[1:4])
    groups = []
    monkeypatch.setattr(shared_runs, "_run_group", lambda group: groups.append(set(group)))
    parts = [shared_runs.parts_of(cfg) for cfg in configs]
    assert parts == [shared_runs.stored_point(cfg)[0] for cfg in configs]  # no image files: one folder for both
    with locks.free(parts[:1]):
        shared_runs.run_together(configs)
    assert groups == [set(parts[1:])]
    held = threading.Event()
    other = threading.Thread(target=finished_by_another, args=(parts[0], held))
    other.start()
    held.wait()
    with locks.waited(parts[0]):
        folder, stored, finished = measured(configs[0], parts[0])
    other.join()
    assert (folder, stored) == (parts[0], FINISHED) and finished is stored
    assert "which another run is working on" in capsys.readouterr().out


FINISHED = {"skipped": [], "samples": 1, "method": "m", "scores": {}, "seconds": 1.0, "blink": {}} | dict.fromkeys(
    ("backbone", "benchmark", "protocol", "headline"), "x"
)


def finished_by_another(folder: Path, held: threading.Event) -> None:
    with locks.waited(folder):
        held.set()
        time.sleep(0.3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "records.jsonl").write_text('{"id": "a", "prediction": "x"}\n', encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(FINISHED), encoding="utf-8")
