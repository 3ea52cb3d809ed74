"""TensorBoard and MLflow, read back from what they wrote."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image
from support.logged import Bench, settings, training_settings, write_point
from support.scripts import ROOT

from blink_exp import tracking
from blink_exp.tracking import names


@pytest.fixture
def point(tmp_path) -> Path:
    return write_point(tmp_path / "point")


@pytest.fixture(autouse=True)
def loggers_as_they_were():
    """MLflow's loggers are turned down for good."""
    level = logging.getLogger("alembic").level
    yield
    logging.getLogger("alembic").setLevel(level)


def test_a_point_and_a_training_in_tensorboard(point, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.log_point(settings("tensorboard"), point, tmp_path, "Blink / full, mosaic", "g", "t", benchmark=Bench)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "Blink_full,_mosaic"))
    events.Reload()
    assert [e.value for e in events.Scalars("scores/total")] == [50.0]
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("blink/rho_by_layer")] == [(13, 0.45)]
    assert {"examples/1", "examples/2"} == set(events.Tags()["images"])
    text = events.Tensors("records/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2].startswith("| s0 | i0 | count | how many? 0 | 2 | two \\| 2 | 1.0 |")
    hparams = (tmp_path / "tensorboard" / "Blink_full,_mosaic" / "hparams.yaml").read_text(encoding="utf-8")
    assert "tau_exp: 0.5" in hparams and "group: g" in hparams

    _, logger = tracking.lightning_logger(training_settings("tensorboard"), tmp_path, "tokensr-conv")
    logger.log_metrics({"loss/train": 0.25}, step=3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "tokensr-conv"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(3, 0.25)]


@pytest.mark.slow
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
    artifacts = tmp_path / "mlflow" / run.info.run_id / "artifacts"
    table = json.loads((artifacts / "records.json").read_text(encoding="utf-8"))
    assert table["columns"] == list(names.COLUMNS) and table["data"][1][0] == "s1"
    assert Image.open(artifacts / "images" / "examples_1.png").getpixel((10, 10)) == (255, 0, 0), "regions are drawn in: 0.25 of 40 pixels"


def test_axes_that_are_not_whole_keep_their_values():
    """Steps are whole numbers there: alpha = 0.1, 0.2 would both be step 0."""
    pytest.importorskip("pytorch_lightning")
    from blink_exp.tracking.lightning import steps

    assert steps("x", [{"x": 0.1, "y": 1.0}, {"x": 0.2, "y": 2.0}]) == [(0, {"x": 0.1, "y": 1.0}), (1, {"x": 0.2, "y": 2.0})]
    assert steps("x", [{"x": 4, "y": 1.0}]) == [(4, {"y": 1.0})]
