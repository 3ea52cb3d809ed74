"""What loggers are told, read back from what they wrote. Nothing here asks the network or an account."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from blink_exp import tracking
from blink_exp.benchmarks.base import Sample
from blink_exp.errors import UserError
from blink_exp.tracking import base, names, summaries

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
STEPS = [
    {"layer": 12, "rho": 0.613, "region": 2, "decision": "expand", "effective": True, "visual_tokens": 180},
    {"layer": 13, "rho": 0.45, "region": 2, "decision": "keep", "effective": True, "visual_tokens": 180},
    {"layer": 14, "rho": 0.3, "region": 0, "decision": "drop", "effective": True, "visual_tokens": 144},
    {"layer": 15, "rho": 0.2, "region": 0, "decision": "drop", "effective": False, "visual_tokens": 144},
]
FINISHED = {
    "backbone": "scale-llava@abc",
    "method": "blink",
    "benchmark": "mosaic_mme",
    "headline": "total",
    "layers": [12, 13, 14, 15],
    "scores": {"total": {"value": 50.0, "samples": 2, "stderr": 3.5}, "count": {"value": None, "samples": 0, "stderr": None}},
    "blink": {"layers": {"13": {"rho": 0.45, "expand": 0.0, "drop": 0.0, "visual_tokens": 180}, "12": {"rho": None, "expand": 0.5}}},
    "cost": {"prefill_flops_formula": 8.0, "tokens_by_layer": [200.0, 208.0], "peak_memory_is": "resident set"},
    "samples": 2,
    "skipped": [],
    "seconds": 1.5,
}


def record(k: int, **more) -> dict:
    own = {"id": f"s{k}", "image_id": f"i{k}", "category": "count", "question": f"how many? {k}", "answer": "2", "prediction": "two | 2"}
    return own | {"correct": False, "layers": STEPS, "visual_tokens": 144, "newline_tokens": 0, "regions": []} | more


def settings(kind: str, **more) -> dict:
    logger = yaml.safe_load((CONF / "logger" / f"{kind}.yaml").read_text()) | more
    model = {"path": "nowhere/at-all", "name": "scale-llava"}
    return {
        "logger": logger,
        "model": model,
        "tokensr": {"architecture": "conv"},
        "thresholds": {"tau_exp": 0.5},
        "layer": None,
        "store": "x",
    }


@pytest.fixture
def point(tmp_path) -> Path:
    return write_point(tmp_path / "point")


def write_point(folder: Path) -> Path:
    """A finished point: two records, of which the second has a region."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(FINISHED))
    records = [record(0, correct=True), record(1, regions=[[0.25, 0.0, 0.5, 1.0]], answer=None)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


class Bench:
    """Two samples, each with an image of one colour."""

    def samples(self):
        colors = [(0, 0, 255), (0, 255, 0)]
        return [
            Sample(f"s{k}", f"i{k}", lambda c=c: Image.new("RGB", (40, 20), c), "", "2", "count", ((0.25, 0.0, 0.5, 1.0),) * k)
            for k, c in enumerate(colors)
        ]


TABLE = {
    "kind": "table",
    "name": "blink_table2",
    "model": "scale-llava",
    "scale": True,
    "figures": ["fig"],
    "published_columns": {"total": {"column": "mme_total", "digits": 2}, "GQA": {"column": "gqa", "digits": 1}},
    "groups": [{"benchmark": "mosaic_mme", "columns": {"total": {"value": "scores.total", "per": 10}, "GFLOPs": {"value": "cost.flops"}}}],
    "rows": [
        {
            "point": "Vanilla",
            "published": {"total": 1863.58, "GQA": None},
            "derived": ["total"],
            "conjecture": {"GQA": 61.9},
            "runs": {"mosaic_mme": {"status": "done", "scores": {"total": 1143.75}, "stderr": {"total": 22.0}, "cost": None}},
            "deltas": {"mosaic_mme": {"total": {"delta": -2.5, "p": 0.25}}},
        },
        {"point": "Blink", "published": {"total": 1881.53, "GQA": 62}, "derived": [], "runs": {"mosaic_mme": {"status": "failed"}}},
    ],
}


# names


def test_metrics_of_a_point_have_these_names_and_no_others():
    tokens = {"entering": 144.0, "newlines": 0.0, "layer": None}
    assert names.metrics_of(FINISHED, tokens, "blink_table2") == {
        "scores/total": 50.0,
        "stderr/total": 3.5,
        "tokens/entering": 144.0,
        "tokens/newlines": 0.0,
        "cost/prefill_flops_formula": 8.0,
        "layers/first": 12,
        "layers/last": 15,
        "run/samples": 2,
        "run/skipped": 0,
        "run/seconds": 1.5,
        "blink_table2/mosaic_mme": 50.0,
    }
    assert not any(k.startswith("blink_table2") for k in names.metrics_of(FINISHED, tokens))


def test_a_benchmark_with_several_headline_scores_stands_for_itself_by_the_last():
    both = FINISHED | {"headline": ["count", "total"]}
    assert names.metrics_of(both, {}, "t")["t/mosaic_mme"] == 50.0


def test_by_layer_is_in_the_layers_order_and_leaves_out_what_is_not_known():
    assert names.by_layer(FINISHED, "fig") == [
        {"layer": 0, "cost/tokens_by_layer": 200.0},
        {"layer": 1, "cost/tokens_by_layer": 208.0},
        {"layer": 12, "blink/expand_by_layer": 0.5},
        {
            "layer": 13,
            "blink/rho_by_layer": 0.45,
            "blink/expand_by_layer": 0.0,
            "blink/drop_by_layer": 0.0,
            "blink/tokens_by_layer": 180,
            "fig/rho_by_layer": 0.45,
        },
    ]


def test_a_configuration_is_plain_values_without_the_settings_of_the_sweep():
    said = names.config_of({"a": {"b": (1, None, Path("x"))}, "logger": {"kind": "csv"}, "store": "y", "c": True})
    assert said == {"a": {"b": [1, None, "x"]}, "c": True}


def test_decisions_are_short_and_tell_only_what_changed_something():
    assert names.decisions(STEPS) == "12 expand r2 (0.61), 14 drop (0.30)"
    assert names.decisions([{"layer": 3, "rho": None, "region": None, "decision": "retain", "visual_tokens": 60}]) == "3 retain 60"


def test_a_bounded_table_of_records_is_spread_over_all():
    assert names.evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert names.evenly([1, 2], 4) == [1, 2]


def test_a_table_keeps_published_and_measured_apart_and_what_is_not_known_empty():
    columns, rows = summaries.table_rows(TABLE)
    measured = "measured on scale-llava (scale model), mosaic_mme"
    assert columns == [
        *("point", "total (published)", "GQA (published)", "published, not printed but derived"),
        *(f"total{part} ({measured})" for part in ("", " ±", " change", " p")),
        *(f"GFLOPs{part} ({measured})" for part in ("", " ±", " change", " p")),
    ]
    assert rows[0] == ["Vanilla", 1863.58, None, "total", 114.375, 2.2, -0.25, 0.25, None, None, None, None]  # a conjecture is no number
    assert rows[1] == ["Blink", 1881.53, 62.0, None, *[None] * 8]


def test_a_measured_number_is_the_one_that_the_table_prints():
    """Score names may hold dots, errors of 0 and NaN are not known, and a run that failed has no number whatever it left behind."""
    scores = {"v1.5 (a)": 61.0, "none": float("nan"), "v1": {"5 (a)": 7.0}}
    run = {"status": "done", "scores": scores, "stderr": {"v1.5 (a)": 1.5, "none": 2.0}, "cost": {"kv_bytes": 6, "by_layer": [1.0]}}
    assert summaries.measured(run, {"value": "scores.v1.5 (a)", "per": 0.5}) == (122.0, 3.0)
    assert summaries.measured(run | {"stderr": {"v1.5 (a)": 0.0}}, {"value": "scores.v1.5 (a)"}) == (61.0, None)
    assert summaries.measured(run, {"value": "scores.none"}) == (None, None)
    assert summaries.measured(run, {"value": "cost.kv_bytes", "per": 2}) == (3.0, None)
    assert summaries.measured(run, {"value": "cost.by_layer"}) == (None, None)
    assert summaries.measured(run | {"status": "failed"}, {"value": "scores.v1.5 (a)"}) == (None, None)


# the seam


def test_a_failing_logger_is_one_line_and_is_closed(capsys):
    said = []

    class Broken(base.Nothing):
        def metrics(self, values):
            said.append(values)
            raise ConnectionError("the network\nis gone")

        def close(self, failed=False):
            said.append(failed)
            raise ConnectionError("still gone")

    track = base.Careful("wandb", Broken)
    track.metrics({"a": 1})
    track.metrics({"a": 2})
    track.close()
    assert said == [{"a": 1}, True]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "logger=wandb stopped (the network is gone)" in lines[0]


def test_a_logger_that_cannot_be_opened_costs_nothing_but_a_line(monkeypatch, tmp_path, capsys):
    def refused(*_):
        raise RuntimeError("bad key")

    monkeypatch.setattr(base, "opened", refused)
    with tracking.tracker(settings("wandb"), tmp_path, "n") as track:
        track.metrics({"a": 1})
    assert capsys.readouterr().err.count("\n") == 1


def test_what_fails_in_the_block_is_raised_and_the_run_is_closed_as_failed(monkeypatch, tmp_path):
    closed = []
    kept = SimpleNamespace(close=lambda failed: closed.append(failed))
    monkeypatch.setattr(base, "opened", lambda *_: kept)
    with pytest.raises(KeyboardInterrupt), tracking.tracker(settings("wandb"), tmp_path, "n"):
        raise KeyboardInterrupt
    with tracking.tracker(settings("wandb"), tmp_path, "n"):
        pass
    assert closed == [True, False]


def test_a_point_that_cannot_be_read_is_no_error(tmp_path, capsys):
    tracking.log_point(settings("wandb", mode="offline"), tmp_path / "none", tmp_path, "n")
    assert "metrics.json" in capsys.readouterr().err


def test_check_names_what_is_missing_before_any_work(monkeypatch):
    with pytest.raises(UserError, match=r"logger.kind=mlflwo is not known; did you mean mlflow"):
        tracking.check({"logger": {"kind": "mlflwo"}})
    with pytest.raises(UserError, match=r"logger.mode=on is not known; use one of: online, offline, disabled"):
        tracking.check(settings("wandb", mode="on"))
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else True)
    with pytest.raises(UserError, match=r"logger=mlflow needs sqlalchemy; pip install mlflow-skinny sqlalchemy alembic"):
        tracking.check(settings("mlflow"))
    tracking.check(settings("csv"))


def test_no_key_is_said_before_any_work_and_offline_needs_none(monkeypatch):
    wandb = pytest.importorskip("wandb")

    def login(verify):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(UserError, match=r"No API key configured.*WANDB_API_KEY.*logger.mode=offline"):
        tracking.check(settings("wandb", mode="online"))
    tracking.check(settings("wandb", mode="offline"))


def test_out_of_reach_goes_offline_and_the_next_run_does_not_wait(monkeypatch, tmp_path, capsys):
    wandb = pytest.importorskip("wandb")
    from blink_exp.tracking import weights_and_biases

    asked = []

    def init(mode, **words):
        asked.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("Timed out\nwhile retrying")
        return words

    monkeypatch.setattr(weights_and_biases, "_unreachable", False)
    monkeypatch.setattr(wandb, "init", init)
    run = base.Run("n" * 200, "g" * 200 + "end", ("t" * 70,))
    for _ in range(2):
        words = weights_and_biases.started(settings("wandb", mode="online"), tmp_path, run)
    assert asked == ["online", "offline", "offline"]
    assert (len(words["name"]), len(words["group"]), words["group"][-3:], len(words["tags"][0])) == (128, 128, "end", 64)
    assert capsys.readouterr().err.count("\n") == 1


def test_the_default_imports_no_logger_and_asks_nothing(point, tmp_path):
    """A process of its own, with standard input closed, so that a question would be an error."""
    code = f"""
import sys
from pathlib import Path
from blink_exp import tracking
settings = {settings("csv")!r}
tracking.check(settings)
with tracking.tracker(settings, Path({str(tmp_path)!r}), "n") as track:
    track.metrics({{"a": 1}})
tracking.log_point(settings, Path({str(point)!r}), Path({str(tmp_path)!r}), "n")
tracking.log_summary([], Path({str(tmp_path)!r}), settings)
print("FOUND", sorted({{"wandb", "tensorboard", "mlflow", "torch", "pytorch_lightning"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.stdout == "FOUND []\n", done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["point"]


def test_every_logger_of_conf_is_one_that_is_known():
    kinds = {p.stem: yaml.safe_load(p.read_text())["kind"] for p in (CONF / "logger").glob("*.yaml")}
    assert kinds == {kind: kind for kind in base.NEEDED}


# Weights & Biases


def offline(folder: Path) -> list:
    """The records of the one offline run below ``folder``: LevelDB's log format, a protocol buffer a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, found, part = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(part))
            part = b""
    return found


def told(records: list) -> tuple:
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

    said = settings("wandb", mode="offline", rows=5)
    tracking.log_point(said, write_point(folder / "measured"), folder / "point", "Blink", "sweep7", "blink_table2", 13, ["own:tag"], Bench)
    print("finished", wandb.run is None)
    (folder / "table" / "fig").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "table" / "fig" / "rho.png")
    tracking.log_summary(TABLE, folder / "table", said)
    print("finished", wandb.run is None)
    loggers = tracking.lightning_logger(said, folder / "training", "tokensr-conv", "layers")
    loggers[1].log_metrics({"loss/train": 0.5}, step=3)
    tracking.finish(loggers)
    print("finished", wandb.run is None)


@pytest.fixture(scope="module")
def offline_runs(tmp_path_factory) -> Path:
    """The three runs of ``write_offline``. W&B writes some of it only when the process ends."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    code = f"import sys, pathlib, test_tracking; test_tracking.write_offline(pathlib.Path({str(folder)!r}))"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    env |= {"WANDB_SILENT": "true", "HOME": str(folder), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert done.stdout == "finished True\n" * 3, done.stdout + done.stderr
    return folder


def test_a_point_in_weights_and_biases(offline_runs):
    folder = offline_runs / "point"
    head, config, history, axes = told(offline(folder))
    assert (head.project, head.display_name, head.run_group, head.job_type) == ("blink-exp", "Blink", "sweep7", "point")
    assert set(head.tags) == {"experiment:blink_table2", "method:blink", "model:scale-llava", "benchmark:mosaic_mme", "own:tag"}
    assert config["thresholds"] == {"tau_exp": 0.5} and "store" not in config and config["layer"] is None
    said = {k: v for row in history for k, v in row.items()}
    assert (said["scores/total"], said["blink_table2/mosaic_mme"], said["blink_table2/x"]) == (50.0, 50.0, 13.0)
    assert said["tokens/entering"] == 144
    curve = {row["layer"]: row["blink/rho_by_layer"] for row in history if "blink/rho_by_layer" in row}
    assert curve == {13: 0.45} and axes["blink/rho_by_layer"] == "layer"
    media = next(folder.glob("wandb/offline-run-*/files/media"))
    table = json.loads(next(media.glob("table/records_*.json")).read_text())
    assert table["columns"] == list(names.COLUMNS)
    assert table["data"][0] == ["s0", "i0", "count", "how many? 0", "2", "two | 2", 1, "12 expand r2 (0.61), 14 drop (0.30)", 144]
    assert table["data"][1][4] is None and len(table["data"]) == 2
    first = next(media.glob("images/examples/1_*.png"))
    assert Image.open(first).getpixel((10, 10)) == (0, 255, 0), "the sample with a region comes first, its picture unspoilt"
    (boxes,) = media.glob("metadata/boxes2D/examples/1_*.json")
    assert json.loads(boxes.read_text())["box_data"][0]["position"] == {"minX": 0.25, "minY": 0.0, "maxX": 0.5, "maxY": 1.0}
    assert said["examples/1/caption"] == "how many? 1 | answer: None | predicted: two | 2"
    assert len(list(media.glob("images/examples/*.png"))) == 2


def test_a_table_s_summary_in_weights_and_biases(offline_runs):
    head, config, history, _ = told(offline(offline_runs / "table"))
    assert (head.display_name, head.run_group, head.job_type) == ("blink_table2 summary", "table", "summary")
    assert set(head.tags) == {"experiment:blink_table2", "model:scale-llava"} and config["summary"]["scale"] is True
    media = next(offline_runs.glob("table/wandb/offline-run-*/files/media"))
    table = json.loads(next(media.glob("table/table/blink_table2_*.json")).read_text())
    assert table["data"][0][:2] == ["Vanilla", 1863.58] and table["data"][0][4] == 114.375
    assert any("figures/fig/1/path" in row for row in history) and len(list(media.glob("images/figures/fig/1_*.png"))) == 1


def test_a_training_in_weights_and_biases(offline_runs):
    head, config, history, axes = told(offline(offline_runs / "training"))
    assert (head.run_group, head.job_type, set(head.tags)) == ("layers", "train", {"tokensr:conv", "model:scale-llava"})
    assert history[-1]["loss/train"] == 0.5 and history[-1]["trainer/global_step"] == 3
    assert axes["*"] == "trainer/global_step" and config["tokensr"] == {"architecture": "conv"}


# TensorBoard and MLflow


def test_a_point_and_a_training_in_tensorboard(point, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.log_point(settings("tensorboard"), point, tmp_path, "Blink / full, mosaic", "g", "t", benchmark=Bench)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "Blink_full,_mosaic"))
    found.Reload()
    assert [e.value for e in found.Scalars("scores/total")] == [50.0]
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("blink/rho_by_layer")] == [(13, 0.45)]
    assert {"examples/1", "examples/2"} == set(found.Tags()["images"])
    text = found.Tensors("records/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2].startswith("| s0 | i0 | count | how many? 0 | 2 | two \\| 2 | 1.0 |")
    kept = (tmp_path / "tensorboard" / "Blink_full,_mosaic" / "hparams.yaml").read_text()
    assert "tau_exp: 0.5" in kept and "group: g" in kept

    _, logger = tracking.lightning_logger(settings("tensorboard"), tmp_path, "tokensr-conv")
    logger.log_metrics({"loss/train": 0.25}, step=3)
    logger.finalize("success")
    found = EventAccumulator(str(tmp_path / "tensorboard" / "tokensr-conv"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/train")] == [(3, 0.25)]


def test_points_and_their_pictures_in_mlflow(point, tmp_path):
    """Two runs in one database of the output folder, and nothing beside it."""
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package)
    before = set(ROOT.iterdir())
    for name in ("one", "two"):
        tracking.log_point(settings("mlflow"), point, tmp_path, name, "sweep7", "t", benchmark=Bench)
    assert set(ROOT.iterdir()) == before, "no mlruns folder where the command was started"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("blink-exp")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["one", "two"]
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert (run.data.tags["group"], run.data.tags["method"], run.data.tags["experiment"]) == ("sweep7", "blink", "t")
    assert run.data.params["thresholds/tau_exp"] == "0.5"
    assert run.data.metrics["scores/total"] == 50.0
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "cost/tokens_by_layer")] == [(0, 200.0), (1, 208.0)]
    kept = tmp_path / "mlflow" / run.info.run_id / "artifacts"
    table = json.loads((kept / "records.json").read_text())
    assert table["columns"] == list(names.COLUMNS) and table["data"][1][0] == "s1"
    assert Image.open(kept / "images" / "examples_1.png").getpixel((10, 10)) == (255, 0, 0), "regions are drawn in: 0.25 of 40 pixels"


def test_axes_that_are_not_whole_keep_their_values():
    """Steps are whole numbers there: alpha = 0.1, 0.2 would both be step 0."""
    pytest.importorskip("pytorch_lightning")
    from blink_exp.tracking.lightning import steps

    assert steps("x", [{"x": 0.1, "y": 1.0}, {"x": 0.2, "y": 2.0}]) == [(0, {"x": 0.1, "y": 1.0}), (1, {"x": 0.2, "y": 2.0})]
    assert steps("x", [{"x": 4, "y": 1.0}]) == [(4, {"y": 1.0})]


# the workspace


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refused(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def panels(document: dict) -> dict[str, list[dict]]:
    sections = document["spec"]["section"]["panelBankConfig"]["sections"]
    return {s["name"]: s["panels"] for s in sections}


def test_a_workspace_shows_the_metrics_that_points_log(no_network):
    """The names on both sides are the same, or its panels stay empty."""
    pytest.importorskip("wandb_workspaces")
    from blink_exp import dashboards

    own = {"name": "blink_table2", "title": "Table 2", "paper": "blink", "here": "mosaic_mme", "points": [{}], "figures": ["fig"]}
    drawn = {"name": "fig7", "title": "Figure 7", "here": ["mosaic_mme"], "sweeps": [{"series": "start..18", "x": [4, 5]}]}
    made = dashboards.workspace({"table": [own], "figure": [drawn]}, "blink-exp", None)
    found = panels(json.loads(dashboards.as_json(made)))
    tokens = {"entering": 1.0, "layer": 1.0}
    logged = names.metrics_of(FINISHED, tokens, "blink_table2") | names.metrics_of(FINISHED, tokens, "fig7")
    by_layer = {k for row in names.by_layer(FINISHED, "blink_table2") for k in row}
    bars = [m for p in found["Table 2"] if p["viewType"] == "Bar Chart" for m in p["config"]["metrics"]]
    assert bars == ["blink_table2/mosaic_mme"] and set(bars) <= logged.keys()
    axes = [
        p["config"][k] for s in ("Table 2", "All runs") for p in found[s] if p["viewType"] == "Scatter Plot" for k in ("xAxis", "yAxis")
    ]
    assert {a.removeprefix("summary:") for a in axes} - {"scores/accuracy"} <= logged.keys()
    lines = [p["config"] for s in ("Table 2", "All runs") for p in found[s] if p["viewType"] == "Run History Line Plot"]
    assert {m for c in lines for m in c["metrics"]} | {c["xAxis"] for c in lines} <= by_layer
    assert [p["config"]["mediaKeys"][0] for p in found["Table 2"] if p["viewType"] == "Media Browser"] == ["figures/fig/1"]
    (curve,) = [p["config"] for p in found["Figure 7"] if p["viewType"] == "Run History Line Plot"]
    from blink_exp.tracking.points import curves

    document = {"name": "fig7", "rows": [{"status": "done", "x": x, "series": "start..18", "scores": {"total": 9.0 - x}} for x in (5, 4)]}
    ((axis, rows),) = curves(document)
    assert axis == curve["xAxis"] and rows == [{axis: 4, "fig7/start__18/total": 5.0}, {axis: 5, "fig7/start__18/total": 4.0}]
    import re

    assert re.match(curve["metricRegex"], "fig7/start__18/total") and not re.match(curve["metricRegex"], "fig7/mosaic_mme")


def test_panels_do_not_lie_on_each_other(no_network):
    pytest.importorskip("wandb_workspaces")
    from blink_exp import dashboards

    made = dashboards.section("s", [dashboards.bars(str(k), "m") for k in range(7)])
    places = [(p.layout.x, p.layout.y) for p in made.panels]
    assert len(set(places)) == 7 and all(x + dashboards.WIDTH <= 24 for x, _ in places)


def test_the_command_writes_a_workspace_with_every_table_and_figure(no_network, tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    from omegaconf import OmegaConf

    from blink_exp import dashboards

    cfg = OmegaConf.create({"dashboard": "wandb", "logger": {"kind": "csv"}})
    path = dashboards.run(cfg, tmp_path)
    found = panels(json.loads(path.read_text()))
    presets = [p for kind in ("table", "figure") for p in (CONF / kind).glob("*.yaml") if p.stem not in ("all", "list", "parity")]
    titles = {yaml.safe_load(p.read_text())["title"] for p in presets}
    assert titles == found.keys() - {"All runs", "TokenSR training"} and len(titles) == len(presets)
    assert "not sent anywhere" in capsys.readouterr().out
    with pytest.raises(UserError, match="dashboard=wnb is not known"):
        dashboards.run(OmegaConf.create({"dashboard": "wnb", "logger": {"kind": "csv"}}), tmp_path)


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """MLflow's loggers are turned down for good."""
    level = logging.getLogger("alembic").level
    yield
    logging.getLogger("alembic").setLevel(level)
