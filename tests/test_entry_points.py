"""train.py, evaluate.py and sweep.py as a user runs them: own processes, tiny settings, real model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import scripts
from support.scripts import ROOT
from support.scripts import printed as run


@pytest.mark.parametrize("words,waits", [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")])
def test_threads_wait_briefly_unless_the_environment_says_how(words, waits):
    """Set before torch is imported, as its OpenMP reads it once; a busy core would else slow every small operation down."""
    script = (
        "import atexit, os, sys; from blink_exp.scripts import view; "
        "atexit.register(lambda: print('waits', os.environ.get('GOMP_SPINCOUNT', ''), 'torch' in sys.modules)); view()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], cwd=ROOT, env=environment | words, capture_output=True, text=True, timeout=60
    )
    assert f"waits {waits} False" in done.stdout, done.stdout + done.stderr


TRAIN = (
    "train.py",
    "layers.indices=[2,3]",
    "data.train_size=32",
    "data.held_out_size=8",
    "trainer.callbacks.checkpoint.every_n_train_steps=2",
)


@pytest.mark.slow
def test_evaluate_writes_config_records_and_metrics(tmp_path):
    out = tmp_path / "run"
    words = ("method=blink", "thresholds=high_exp", "grid=3x3", "layers=11-17", "limit=6", "cost=1")
    printed = run("evaluate.py", *words, f"hydra.run.dir={out}")
    assert "layers [11, 12, 13, 14, 15, 16, 17]" in printed
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert metrics["samples"] == len(records) == 6
    assert metrics["scores"]["total"]["samples"] == 6
    assert metrics["cost"]["prompts"] == 1 and len(metrics["cost"]["tokens_by_layer"]) == 32
    assert {"versions", "commit", "seed", "seconds", "backbone", "dtype", "device", "batch_size"} <= metrics.keys()
    for record in records:
        assert [s["layer"] for s in record["layers"]] == list(range(11, 18))
        for step in record["layers"]:
            assert 1 / 9 <= step["rho"] <= 1
            assert step["decision"] == ("expand" if step["rho"] > 0.7 * 4 / 9 else "drop" if step["rho"] < 0.4 * 4 / 9 else "keep")
            assert step["visual_tokens"] in (144, 288)
    config = (out / "config.yaml").read_text(encoding="utf-8")
    assert "tau_exp: 0.7" in config
    assert "${" not in config


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A training that was killed (SIGKILL, no chance to clean up) once its first checkpoint was there."""
    out = tmp_path_factory.mktemp("train") / "run"
    process = scripts.start([*TRAIN, f"hydra.run.dir={out}"], str(tmp_path_factory.mktemp("said")))
    for _ in range(6000):
        if (out / "last.ckpt").is_file() or not process.is_alive():
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    assert (out / "last.ckpt").is_file()
    assert not (out / "metrics.json").exists()
    return out


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_where_an_unbroken_one_does(killed, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    end = run(*TRAIN, f"hydra.run.dir={whole}")
    printed = run(*TRAIN, f"hydra.run.dir={resumed}", f"resume={killed}")
    assert "going on from" in printed
    a, b = (json.loads((d / "metrics.json").read_text(encoding="utf-8"))["layers"] for d in (whole, resumed))
    for layer in ("2", "3"):
        assert a[layer]["tokensr"] == pytest.approx(b[layer]["tokensr"], rel=1e-4)
        assert a[layer]["interpolation"] == pytest.approx(b[layer]["interpolation"], rel=1e-4)
    assert sorted(p.name for p in (whole / "tokensr").iterdir()) == [f"layer_0{i}.{e}" for i in (2, 3) for e in ("json", "safetensors")]
    # and the command that it ends with evaluates what was trained
    command = next(line for line in end.splitlines() if line.startswith("evaluate them: ")).removeprefix("evaluate them: ")
    assert shlex.split(command)[1:] == ["evaluate.py", "method=blink", "layers.indices=[2,3]", f"tokensr.path={whole / 'tokensr'}"]
    run(*shlex.split(command)[1:], "limit=4", "cost=0", f"hydra.run.dir={tmp_path / 'eval'}")


def test_resume_refuses_other_settings_and_damaged_checkpoints(killed):
    assert "trained with layers.indices=[2,3]" in run("train.py", "layers.indices=[2]", *TRAIN[2:], f"resume={killed}", code=2)
    files = [path for name in ("last.ckpt", "last.ckpt.old") if (path := killed / name).is_file()]  # the older one would be gone on with
    whole = [path.read_bytes() for path in files]
    for path, held in zip(files, whole, strict=True):
        path.write_bytes(held[: len(held) // 2])
    try:
        assert "corrupt or cut off" in run(*TRAIN, f"resume={killed}", code=2)
    finally:
        for path, held in zip(files, whole, strict=True):
            path.write_bytes(held)


@pytest.mark.slow
def test_sweep_ends_in_a_table_skips_what_is_done_and_force_does_not(tmp_path):
    words = ("sweep.py", "-m", "thresholds=high_exp,low_drop", "method=blink_interp", "limit=2", f"store={tmp_path / 'points'}")
    first = run(*words, f"hydra.sweep.dir={tmp_path / 'a'}")
    assert first.count("measured: ") == 2
    summary = (tmp_path / "a" / "summary.md").read_text(encoding="utf-8")
    assert "| thresholds=high_exp | done |" in summary
    assert "| thresholds=low_drop | done |" in summary
    again = run(*words, "batch_size=4", f"hydra.sweep.dir={tmp_path / 'b'}")  # the batch size changes no result
    assert again.count("already done: ") == 2
    assert (tmp_path / "b" / "summary.md").read_text(encoding="utf-8") == summary
    assert run(*words, "force=true", f"hydra.sweep.dir={tmp_path / 'e'}").count("measured: ") == 2


@pytest.mark.slow
def test_a_locale_without_unicode_costs_no_result(tmp_path):
    """Where the locale's encoding is ASCII, files are UTF-8 all the same, and the terminal shows a ? for what it lacks."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "PYTHON"))}
    env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["evaluate.py", "method=none", "limit=2", "cost=0", f"hydra.run.dir={tmp_path / 'rün'}"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "rün" / "metrics.json").read_text(encoding="utf-8"))["samples"] == 2


def test_what_makes_another_point():
    from blink_exp.evaluation.identity import config_hash
    from blink_exp.settings.compose import composed

    settings = composed("evaluate", ["method=blink"])
    known = config_hash(settings, {"tokensr": "x"})
    assert config_hash(replace(settings, batch_size=8, store="b", force=True), {"tokensr": "x"}) == known
    assert config_hash(replace(settings, seed=1), {"tokensr": "x"}) != known
    assert config_hash(replace(settings, method=settings.method | {"tau_exp": 0.6}), {"tokensr": "x"}) != known
    assert config_hash(settings, {"tokensr": "retrained"}) != known


@pytest.mark.slow
def test_a_failing_point_is_a_row_and_does_not_end_the_sweep(tmp_path):
    words = ("sweep.py", "-m", "layers.indices=[12],[99],[13]", "method=blink_interp", "limit=2", f"store={tmp_path / 'points'}")
    printed = run(*words, f"hydra.sweep.dir={tmp_path / 'a'}", code=2)
    assert printed.count("measured: ") == 2
    assert "error: 1 of 3 points failed, first layers.indices=[99]: layer=99 is outside the backbone's 32 layers; use 0 to 31" in printed
    assert "| layers.indices=[99] | failed |" in (tmp_path / "a" / "summary.md").read_text(encoding="utf-8")


CONTROLS = [
    *("Blink-interp / random region", "Blink / random region"),
    *("Close-up / full", "Close-up / random region", "Two views / most salient"),
]


@pytest.mark.slow
def test_table_2_runs_and_keeps_published_and_measured_apart(tmp_path):
    out, report = tmp_path / "a", tmp_path / "report"
    words = ("sweep.py", "table=blink_table2", "limit=2", f"store={tmp_path / 'points'}", f"report={report}", f"hydra.run.dir={out}")
    assert "Blink, Table 2" in run(*words)
    table = (out / "table.md").read_text(encoding="utf-8")
    document = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert len(document["rows"]) == 18 and [row["point"] for row in document["rows"] if row.get("control")] == CONTROLS
    assert f"Control, not in the paper: {', '.join(CONTROLS)}." in table
    assert all(
        row["runs"]["mosaic_detail"]["status"] == "done" and row["runs"]["mosaic_detail"]["samples"] == 6 for row in document["rows"]
    )
    full = next(line for line in table.splitlines() if line.startswith("| Blink / full"))
    assert "1881.53" in full
    high = [line for line in table.splitlines() if line.startswith("| Blink / High tau")][-1]
    assert high.split("|")[2].strip() == ""  # lost in the paper's extraction: stays empty
    assert "(-15.99)" in high
    copy = report / "blink_table2" / "scale-llava-1.5,limit=2"
    for folder in (out, copy):
        assert {"table.json", "table.md", "table.csv", "table.tex", "page.html", "blink_examples", "closer_look"} <= {
            p.name for p in folder.iterdir()
        }
        assert {"blink.png", "blink.svg", "blink.pdf", "figure.json"} <= {p.name for p in (folder / "blink_examples").iterdir()}
    assert [row["label"] for row in document["effects"]] == ["interp", "TokenSR", "close-up"] and document["conclusion"][0] in table
    gathered = (report / "report.html").read_text(encoding="utf-8")
    assert "Blink, Table 2" in gathered and "region effect of" in gathered and "1881.53" in gathered and "python evaluate.py" in gathered


def printed_without_heavy_imports(*words):
    """What a command prints, which must not import what takes seconds."""
    code = f"import sys; sys.argv = {list(words)}; sys.path.insert(0, '.')\nimport runpy\n"
    run = "run_path" if words[0].endswith(".py") else "run_module"
    code += f"try:\n    runpy.{run}(sys.argv[0], run_name='__main__')\nexcept SystemExit as end:\n    print('CODE', end.code)\n"
    code += (
        "heavy = {'torch', 'transformers', 'pytorch_lightning', 'wandb', 'matplotlib', 'pandas'} & set(sys.modules)\nprint('HEAVY', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "HEAVY set()" in done.stdout
    return done.stdout + done.stderr


def test_help_is_instant_because_nothing_heavy_is_imported():
    printed = printed_without_heavy_imports("train.py", "--help")
    assert "groups, and their presets" in printed and "always_expand" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate.py", "devices=three"], "devices must be a whole number of devices from 1, or auto, got three"),
        (["sweep.py", "-m", "layer=12,13", "limit=0"], "limit must be a whole number of at least 1, or null, got 0"),
        (["sweep.py", "method=none"], "nothing to sweep; add -m and comma lists"),
        (["train.py", "resume=no/run"], "resume=no/run is not there; give a run's folder"),
        (["blink_exp", "rescore", "predictions=[tests,no/run]"], "predictions=no/run is not there; give a run's folder"),
        (["blink_exp", "compare", "predictions=tests"], "against must be given: against=... (a path)"),
    ],
)
def test_what_is_refused_by_its_words_is_refused_before_anything_heavy_is_imported(words, line):
    printed = printed_without_heavy_imports(*words)
    assert f"error: {line}" in printed and "CODE 2" in printed


@pytest.mark.slow
def test_wandb_offline_gets_one_run_a_job_and_one_for_the_sweep(tmp_path):
    words = ("sweep.py", "-m", "thresholds=high_exp,low_drop", "method=blink_interp", "limit=2", "logger=wandb", "logger.mode=offline")
    run(*words, f"store={tmp_path / 'points'}", f"hydra.sweep.dir={tmp_path / 'a'}")
    assert len(list(tmp_path.glob("a/wandb/offline-run-*"))) == 3


@pytest.mark.slow
def test_a_table_is_logged_point_by_point_and_as_a_whole(tmp_path):
    words = ("sweep.py", "table=blink_table3", "limit=2", "logger=wandb", "logger.mode=offline", "logger.images=0")
    run(*words, f"store={tmp_path / 'points'}", f"report={tmp_path / 'report'}", f"hydra.run.dir={tmp_path / 'a'}")
    assert len(list(tmp_path.glob("a/wandb/offline-run-*"))) == 4 + 1
    assert any(path.name.startswith("blink_table3") for path in tmp_path.glob("a/wandb/offline-run-*/files/media/table/table/*.json"))
    assert not list(tmp_path.glob("report/*/*/wandb"))  # the report holds results, not the logger's files


@pytest.mark.slow
def test_a_dashboard_is_built_without_an_account(tmp_path):
    pytest.importorskip("wandb_workspaces")
    run("sweep.py", "dashboard=wandb", f"hydra.run.dir={tmp_path}")
    sections = json.loads((tmp_path / "workspace.json").read_text(encoding="utf-8"))
    assert "blink_table2" in json.dumps(sections) and "hero_fig5" in json.dumps(sections)


@pytest.mark.slow
def test_the_viewer_takes_any_picture_and_any_question(tmp_path):
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.jpg")
    question = "What's this: red, or blue?"
    words = ("-m", "blink_exp", "view", f"image={tmp_path / 'photo.jpg'}", f"question={question}", "compare=[none]")
    run(*words, f"hydra.run.dir={tmp_path / 'a'}")
    page = (tmp_path / "a" / "view.html").read_text(encoding="utf-8")
    assert "What&#39;s this: red, or blue?" in page


@pytest.mark.parametrize("script", ["train", "evaluate", "sweep"])
def test_help_names_every_group_preset_and_setting_without_composing(script):
    output = run(f"{script}.py", "--help")
    for word in (
        "always_expand, default",
        "  method/policy",
        "closeup, conv",
        "Blink: tau_exp and tau_drop",
        "--cfg job",
        f"conf/{script}.yaml:",
    ):
        assert word in output
    settings = [
        line.split(":")[0] for line in (ROOT / "conf" / f"{script}.yaml").read_text(encoding="utf-8").splitlines() if line[:1].isalpha()
    ]
    assert all(f"  {name}:" in output for name in settings)
    assert "powered by Hydra" not in output
