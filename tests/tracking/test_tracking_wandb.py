"""Offline runs of Weights & Biases, read back from what they wrote."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from support.logged import TABLE, Bench, settings, training_settings, write_point
from support.scripts import ROOT

from blink_exp import tracking
from blink_exp.tracking import names


def offline(folder: Path) -> list:
    """The records of the one offline run below ``folder``: LevelDB's log format, a protocol buffer a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, records, part = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


def contents(records: list) -> tuple:
    """(the run's header, its configuration, [what each log call said], {metric: its axis})."""
    head = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    config = {u.key: json.loads(u.value_json) for u in head.config.update}
    history = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    axes = {r.metric.name or r.metric.glob_name: r.metric.step_metric for r in records if r.WhichOneof("record_type") == "metric"}
    return head, config, history, axes


def write_offline(folder: Path) -> None:
    """Three offline runs, each below a folder of its own; says after each whether it was finished. For a process of its own."""
    import wandb

    point = settings("wandb", mode="offline", rows=5)
    tracking.log_point(point, write_point(folder / "measured"), folder / "point", "Blink", "sweep7", "blink_table2", 13, Bench)
    print("finished", wandb.run is None)
    (folder / "table" / "fig").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "table" / "fig" / "rho.png")
    tracking.log_summary(TABLE, folder / "table", asdict(point))
    print("finished", wandb.run is None)
    loggers = tracking.lightning_logger(training_settings("wandb", mode="offline"), folder / "training", "tokensr-conv")
    loggers[1].log_metrics({"loss/train": 0.5}, step=3)
    tracking.finish(loggers)
    print("finished", wandb.run is None)


@pytest.fixture(scope="module")
def offline_runs(tmp_path_factory) -> Path:
    """The three runs of ``write_offline``. W&B writes some of it only when the process ends."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    code = f"import sys, pathlib, test_tracking_wandb; test_tracking_wandb.write_offline(pathlib.Path({str(folder)!r}))"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    env |= {
        "WANDB_SILENT": "true",
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.stdout == "finished True\n" * 3, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_a_point_in_weights_and_biases(offline_runs):
    folder = offline_runs / "point"
    head, config, history, axes = contents(offline(folder))
    assert (head.project, head.display_name, head.run_group, head.job_type) == ("blink-exp", "Blink", "sweep7", "point")
    assert set(head.tags) == {"experiment:blink_table2", "method:blink", "model:scale-llava", "benchmark:mosaic_mme"}
    assert config["thresholds"] == {"tau_exp": 0.5, "tau_drop": 0.2} and "store" not in config and config["layer"] is None
    logged = {k: v for row in history for k, v in row.items()}
    assert (logged["scores/total"], logged["blink_table2/mosaic_mme"], logged["blink_table2/x"]) == (50.0, 50.0, 13.0)
    assert logged["tokens/entering"] == 144
    curve = {row["layer"]: row["blink/rho_by_layer"] for row in history if "blink/rho_by_layer" in row}
    assert curve == {13: 0.45} and axes["blink/rho_by_layer"] == "layer"
    media = next(folder.glob("wandb/offline-run-*/files/media"))
    table = json.loads(next(media.glob("table/records_*.json")).read_text(encoding="utf-8"))
    assert table["columns"] == list(names.COLUMNS)
    assert table["data"][0] == ["s0", "i0", "count", "how many? 0", "2", "two | 2", 1, "12 expand r2 (0.61), 14 drop (0.30)", 144]
    assert table["data"][1][4] is None and len(table["data"]) == 2
    first = next(media.glob("images/examples/1_*.png"))
    assert Image.open(first).getpixel((10, 10)) == (0, 255, 0), "the sample with a region comes first, its picture unspoilt"
    (boxes,) = media.glob("metadata/boxes2D/examples/1_*.json")
    assert json.loads(boxes.read_text(encoding="utf-8"))["box_data"][0]["position"] == {"minX": 0.25, "minY": 0.0, "maxX": 0.5, "maxY": 1.0}
    assert logged["examples/1/caption"] == "how many? 1 | answer: None | predicted: two | 2"
    assert len(list(media.glob("images/examples/*.png"))) == 2


@pytest.mark.slow
def test_a_table_s_summary_in_weights_and_biases(offline_runs):
    head, config, history, _ = contents(offline(offline_runs / "table"))
    assert (head.display_name, head.run_group, head.job_type) == ("blink_table2 summary", "table", "summary")
    assert set(head.tags) == {"experiment:blink_table2", "model:scale-llava"} and config["summary"]["scale"] is True
    media = next(offline_runs.glob("table/wandb/offline-run-*/files/media"))
    table = json.loads(next(media.glob("table/table/blink_table2_*.json")).read_text(encoding="utf-8"))
    assert table["data"][0][:2] == ["Vanilla", 1863.58] and table["data"][0][4] == 114.375
    assert any("figures/fig/1/path" in row for row in history) and len(list(media.glob("images/figures/fig/1_*.png"))) == 1


@pytest.mark.slow
def test_a_training_in_weights_and_biases(offline_runs):
    head, config, history, axes = contents(offline(offline_runs / "training"))
    assert (head.run_group, head.job_type, set(head.tags)) == ("", "train", {"tokensr:conv", "model:scale-llava"})
    assert history[-1]["loss/train"] == 0.5 and history[-1]["trainer/global_step"] == 3
    assert axes["*"] == "trainer/global_step" and config["tokensr"] == {"architecture": "conv", "path": None}
