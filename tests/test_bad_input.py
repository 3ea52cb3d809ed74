"""What users get wrong: one line with value, limit and cure, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.refusals import one_line_of
from support.scripts import ROOT, run

CASES = [
    (["evaluate.py", "layer=40"], "layer=40 is outside the backbone's 32 layers; use 0 to 31"),
    (["evaluate.py", "grid.p=5"], "grid.p=5 does not divide the 12 x 12 visual tokens; use one of 1, 2, 3, 4, 6, 12"),
    (["evaluate.py", "thresholds=hihg_exp"], "thresholds=hihg_exp is not a preset; did you mean high_exp"),
    (["sweep.py", "-m", "thresholds=high_exp,lowdrop", "limit=2", "cost=0"], "thresholds=lowdrop is not a preset; did you mean low_drop"),
    (["evaluate.py", "tresholds=default"], "tresholds is not a setting; did you mean thresholds"),
    (
        ["evaluate.py", "layers.indices=12..18"],
        "layers.indices must be a range of layers such as 12-18, a list such as [12,13], one layer, or all, got 12..18",
    ),
    (["evaluate.py", "layers.indices=null"], "layers.indices=null names no layer; add layer=12"),
    (["train.py", "data.global_batch=6", "data.batch_size=4"], "data.batch_size=4 does not divide the 6 pairs"),
    (["train.py", "data=llava_665k", "data.json=/nowhere.json", "data.images=/"], "/nowhere.json is not there"),
    (
        ["train.py", "trainer.devices=0"],
        "trainer.devices must be auto, a number of devices of at least 1, or a list of distinct numbers of GPUs, got 0",
    ),
    (["evaluate.py", "tokensr=mlp"], "python train.py tokensr=mlp layers=12-18 output=FOLDER, then tokensr.path=FOLDER"),
    (["evaluate.py", "benchmark=mme", "benchmark.protocol=vlmevalkit"], "use llava or lmms_eval"),
    (
        ["evaluate.py", "benchmark=chartqa", "benchmark.protocol=llava"],
        "benchmark.protocol=llava does not exist for chartqa; use lmms_eval",
    ),
    (["evaluate.py", "benchmark=mme", "benchmark.path=/"], "holds no *.parquet"),
    (["evaluate.py", "shard=3/2", "limit=4"], "shard must be a part k/n with k from 1 to n, e.g. 1/8, or null, got 3/2"),
    (["evaluate.py", "data_root=/nowhere", "benchmark=mme"], "data_root must be a folder, or null, got /nowhere; it is not a folder"),
    (["evaluate.py", "benchmark=mmvet", "judge=openai", "judge.key_variable=NO_SUCH_KEY"], "NO_SUCH_KEY"),
    (["evaluate.py", "model=folder", "model.device=cpu", "model.path=/nowhere/llava"], "is neither a folder nor a hub id"),
    (["evaluate.py", "benchmark=easyvqa", "benchmark.path=/nowhere"], "benchmark.path=/nowhere has no questions.json"),
    (["train.py", "tokensr=interp"], "tokensr=interp has no parameters to train"),
    (["train.py", "data=folder", "data.path=/nowhere"], "data.path=/nowhere is not a folder"),
    (["evaluate.py", "method=hero", "retention_ratio=0.001"], "retention_ratio=0.001 rounds to no token of 144; use at least"),
    (
        ["evaluate.py", "method=hero", "hero_low.layers=[]"],
        "hero_low.layers must be a list of which each entry is a whole number of at least 1, and not empty, got []",
    ),
    (["evaluate.py", "method=hero", "hero_high.layers=[25]"], "hero_high.layers holds layer 25, outside the encoder's 1 to 24"),
    (
        ["evaluate.py", "method=hero", "model=scale_llava_next", "model.clip=null"],
        "model.clip=null, but this method reads CLIP's text tower",
    ),
    (["evaluate.py", "method=pair", "method/pruner=fastv"], "method/pruner=fastv is not a preset"),
    (["evaluate.py", "--config-name", "train"], "names a config without the settings of evaluate"),
    (["train.py", "--config-name", "evaluate"], "names a config without the settings of train"),
    (["evaluate.py", "--config-name", "nope"], "--config-name nope names no config"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(w) for w, _ in CASES])
def test_one_line_and_exit_code_2(words, message, tmp_path):
    assert message in one_line_of([*words, f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'run'}"])
    assert not list(tmp_path.rglob("metrics.json")) + list(tmp_path.rglob("records.jsonl")) + list(tmp_path.rglob("*.part"))


def test_the_traceback_is_there_for_who_asks():
    done = run(["evaluate.py", "thresholds=hihg_exp"], env={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_tokensr_checkpoint_of_another_backbone(tmp_path):
    from blink_exp.tokensr import checkpoint, modules

    checkpoint.save_all([(modules.conv(64), checkpoint.ModuleMetadata("other@123", 12, 64, (12, 12), "conv"))], tmp_path / "modules")
    done = run(["evaluate.py", "layer=12", f"tokensr.path={tmp_path / 'modules'}", f"hydra.run.dir={tmp_path / 'run'}"])
    assert done.returncode == 2
    assert "was trained for backbone other@123, not scale-llava-1.5@" in done.stderr


def test_missing_and_broken_images_are_named_counted_and_survived(tmp_path):
    import json

    import easy_vqa

    source = Path(easy_vqa.__file__).parent / "data" / "test"
    rows = json.loads((source / "questions.json").read_text(encoding="utf-8"))[:40]
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "questions.json").write_text(json.dumps(rows), encoding="utf-8")
    ids = sorted({r[2] for r in rows})
    for i in ids[1:]:
        shutil.copy(source / "images" / f"{i}.png", tmp_path / "set" / "images")
    cut = tmp_path / "set" / "images" / f"{ids[1]}.png"
    cut.write_bytes(cut.read_bytes()[:60])
    lost = sum(r[2] in ids[:2] for r in rows)
    out = tmp_path / "run"
    words = ["evaluate.py", "method=none", "benchmark=easyvqa", f"benchmark.path={tmp_path / 'set'}", "cost=0", f"hydra.run.dir={out}"]
    done = run([*words, "skip_limit=0.9"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["samples"] == len(rows) - lost
    assert len(metrics["skipped"]) == lost
    assert {s["id"].split("/")[0] for s in metrics["skipped"]} == {"easyvqa"}
    assert f"{lost} of {len(rows)} samples skipped, first easyvqa/test/00000" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere unless setpriv takes that away")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    less = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*less, sys.executable, "evaluate.py", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no permission to write {tmp_path}")
    assert "choose another folder with hydra.run.dir=" in line


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_traceback(closed):
    """Catches the flush of a stdout that is None, after a run that was whole."""
    done = subprocess.run(
        f"{sys.executable} evaluate.py --help {closed}", shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
