"""The W&B workspace: its panels show what points log, every table and figure has a section, and nothing asks the network."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace

import pytest
import yaml
from support.logged import FINISHED

from blink_exp.cli import CONF
from blink_exp.errors import UserError
from blink_exp.settings.compose import composed
from blink_exp.tracking import names


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def panels(document: dict) -> dict[str, list[dict]]:
    sections = document["spec"]["section"]["panelBankConfig"]["sections"]
    return {s["name"]: s["panels"] for s in sections}


@pytest.mark.slow
def test_a_workspace_shows_the_metrics_that_points_log(no_network):
    """The names on both sides are the same, or its panels stay empty."""
    pytest.importorskip("wandb_workspaces")
    from blink_exp.studies import dashboards

    table = {
        "name": "blink_table2",
        "title": "Table 2",
        "paper": "blink",
        "benchmarks": {"scale": "mosaic_mme"},
        "points": [{}],
        "figures": ["fig"],
    }
    drawn = {"name": "fig7", "title": "Figure 7", "benchmarks": {"scale": ["mosaic_mme"]}, "sweeps": [{"series": "start..18", "x": [4, 5]}]}
    made = dashboards.workspace({"table": [table], "figure": [drawn]}, "blink-exp", None)
    sections = panels(json.loads(dashboards.as_json(made)))
    tokens = {"entering": 1.0, "layer": 1.0}
    logged = names.metrics_of(FINISHED, tokens, "blink_table2") | names.metrics_of(FINISHED, tokens, "fig7")
    by_layer = {k for row in names.by_layer(FINISHED, "blink_table2") for k in row}
    bars = [m for p in sections["Table 2"] if p["viewType"] == "Bar Chart" for m in p["config"]["metrics"]]
    assert bars == ["blink_table2/mosaic_mme"] and set(bars) <= logged.keys()
    axes = [
        p["config"][k] for s in ("Table 2", "All runs") for p in sections[s] if p["viewType"] == "Scatter Plot" for k in ("xAxis", "yAxis")
    ]
    assert {a.removeprefix("summary:") for a in axes} - {"scores/accuracy"} <= logged.keys()
    lines = [p["config"] for s in ("Table 2", "All runs") for p in sections[s] if p["viewType"] == "Run History Line Plot"]
    assert {m for c in lines for m in c["metrics"]} | {c["xAxis"] for c in lines} <= by_layer
    assert [p["config"]["mediaKeys"][0] for p in sections["Table 2"] if p["viewType"] == "Media Browser"] == ["figures/fig/1"]
    (curve,) = [p["config"] for p in sections["Figure 7"] if p["viewType"] == "Run History Line Plot"]
    from blink_exp.tracking.points import curves

    document = {"name": "fig7", "rows": [{"status": "done", "x": x, "series": "start..18", "scores": {"total": 9.0 - x}} for x in (5, 4)]}
    ((axis, rows),) = curves(document)
    assert axis == curve["xAxis"] and rows == [{axis: 4, "fig7/start__18/total": 5.0}, {axis: 5, "fig7/start__18/total": 4.0}]
    assert re.match(curve["metricRegex"], "fig7/start__18/total") and not re.match(curve["metricRegex"], "fig7/mosaic_mme")


def test_panels_do_not_lie_on_each_other(no_network):
    pytest.importorskip("wandb_workspaces")
    from blink_exp.studies import dashboards

    made = dashboards.section("s", [dashboards.bars(str(k), "m") for k in range(7)])
    places = [(p.layout.x, p.layout.y) for p in made.panels]
    assert len(set(places)) == 7 and all(x + dashboards.WIDTH <= 24 for x, _ in places)


def test_the_command_writes_a_workspace_with_every_table_and_figure(no_network, tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    from blink_exp.studies import dashboards

    cfg = composed("sweep", ["dashboard=wandb"])
    path = dashboards.run(cfg, tmp_path)
    sections = panels(json.loads(path.read_text(encoding="utf-8")))
    presets = [p for kind in ("table", "figure") for p in (CONF / kind).glob("*.yaml")]
    titles = {yaml.safe_load(p.read_text(encoding="utf-8"))["title"] for p in presets}
    assert titles == sections.keys() - {"All runs", "TokenSR training"} and len(titles) == len(presets)
    assert "not sent anywhere" in capsys.readouterr().out
    with pytest.raises(UserError, match="dashboard=wnb is not known"):
        dashboards.run(replace(cfg, dashboard="wnb"), tmp_path)
