"""The seam to loggers: failures cost a line, what is missing is said before any work, the default asks nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import yaml
from support.logged import logger_settings, settings, write_point
from support.scripts import ROOT

from blink_exp import tracking
from blink_exp.cli import CONF
from blink_exp.errors import UserError
from blink_exp.tracking import base, loggers
from blink_exp.tracking.interface import NullTracker, Run, SafeTracker


def test_a_failing_logger_is_one_line_and_is_closed(capsys):
    calls = []

    class Broken(NullTracker):
        def metrics(self, values):
            calls.append(values)
            raise ConnectionError("the network\nis gone")

        def close(self, failed=False):
            calls.append(failed)
            raise ConnectionError("still gone")

    track = SafeTracker("wandb", Broken)
    track.metrics({"a": 1})
    track.metrics({"a": 2})
    track.close()
    assert calls == [{"a": 1}, True]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "logger=wandb stopped (the network is gone)" in lines[0]


def test_a_logger_that_cannot_be_opened_costs_nothing_but_a_line(monkeypatch, tmp_path, capsys):
    def refused(*_):
        raise RuntimeError("bad key")

    monkeypatch.setattr(base, "open_tracker", refused)
    with tracking.tracker(loggers.Wandb(), tmp_path, Run("n")) as track:
        track.metrics({"a": 1})
    assert capsys.readouterr().err.count("\n") == 1


def test_what_fails_in_the_block_is_raised_and_the_run_is_closed_as_failed(monkeypatch, tmp_path):
    closed = []
    tracker = SimpleNamespace(close=lambda failed: closed.append(failed))
    monkeypatch.setattr(base, "open_tracker", lambda *_: tracker)
    with pytest.raises(KeyboardInterrupt), tracking.tracker(loggers.Wandb(), tmp_path, Run("n")):
        raise KeyboardInterrupt
    with tracking.tracker(loggers.Wandb(), tmp_path, Run("n")):
        pass
    assert closed == [True, False]


def test_a_point_that_cannot_be_read_is_no_error(tmp_path, capsys):
    tracking.log_point(settings("wandb", mode="offline"), tmp_path / "none", tmp_path, "n")
    assert "metrics.json" in capsys.readouterr().err


def test_check_names_what_is_missing_before_any_work(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else True)
    with pytest.raises(UserError, match=r"logger=mlflow needs sqlalchemy; pip install mlflow-skinny sqlalchemy alembic"):
        tracking.check(logger_settings("mlflow"))
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(UserError, match=r"logger=wandb needs wandb; pip install wandb, or use logger=csv"):
        tracking.check(logger_settings("wandb", mode="offline"))
    tracking.check(logger_settings("csv"))


def test_no_key_is_said_before_any_work_and_offline_needs_none(monkeypatch):
    wandb = pytest.importorskip("wandb")

    def login(verify):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(UserError, match=r"No API key configured.*WANDB_API_KEY.*logger.mode=offline"):
        tracking.check(logger_settings("wandb", mode="online"))
    tracking.check(logger_settings("wandb", mode="offline"))


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
    run = Run("n" * 200, "g" * 200 + "end", ("t" * 70,))
    for _ in range(2):
        words = weights_and_biases.start_run("p", None, "online", tmp_path, run)
    assert asked == ["online", "offline", "offline"]
    assert (len(words["name"]), len(words["group"]), words["group"][-3:], len(words["tags"][0])) == (128, 128, "end", 64)
    assert capsys.readouterr().err.count("\n") == 1


def test_the_default_imports_no_logger_and_asks_nothing(tmp_path):
    """A process of its own, with standard input closed, so that a question would be an error."""
    point = write_point(tmp_path / "point")
    code = f"""
import sys
from pathlib import Path
sys.path.append("tests")
from support.logged import settings
from blink_exp import tracking
csv = settings("csv")
tracking.check(csv.logger)
with tracking.tracker(tracking.logger_of(csv.logger), Path({str(tmp_path)!r}), tracking.Run("n")) as track:
    track.metrics({{"a": 1}})
tracking.log_point(csv, Path({str(point)!r}), Path({str(tmp_path)!r}), "n")
tracking.log_summary([], Path({str(tmp_path)!r}), vars(csv))
print("FOUND", sorted({{"wandb", "tensorboard", "mlflow", "torch", "pytorch_lightning"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    assert done.stdout == "FOUND []\n", done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["point"]


def test_every_logger_of_conf_is_one_that_is_known():
    known = {path.stem: base.logger_of(yaml.safe_load(path.read_text(encoding="utf-8"))).name for path in (CONF / "logger").glob("*.yaml")}
    assert known == {name: name for name in ("csv", "wandb", "tensorboard", "mlflow")}


def test_a_logger_of_another_package_needs_its_target_alone(tmp_path, monkeypatch):
    """The settings of a preset are the fields of its class."""
    written = []

    @dataclass(frozen=True)
    class Listed(loggers.Logger):
        path: str = ""
        name = "listed"

        def tracker(self, out, run):
            track = NullTracker()
            track.metrics = lambda values: written.append((self.path, run.name, values))
            return track

        def lightning(self, out, run):
            pytest.fail("no training runs here")

    monkeypatch.setattr(loggers, "Listed", Listed, raising=False)
    node = {"_target_": "blink_exp.tracking.loggers.Listed", "path": "x"}
    tracking.check(node)
    with tracking.tracker(tracking.logger_of(node), tmp_path, Run("n")) as track:
        track.metrics({"a": 1})
    assert written == [("x", "n", {"a": 1})]
