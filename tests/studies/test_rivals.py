"""The tables of rivals, cut short, from the configuration to the cells."""

from __future__ import annotations

import pytest

from blink_exp.reports import cells
from blink_exp.settings import compose
from blink_exp.studies import plan, point
from blink_exp.studies.experiments import load_experiment
from blink_exp.studies.tables import measure_table


def short(name: str, budget: str, labels: tuple[str, ...]) -> dict:
    table = load_experiment("table", name)
    chosen = [point for point in table["points"] if point["label"] in labels]
    return table | {"budgets": {budget: table["budgets"][budget]}, "points": chosen}


@pytest.mark.slow
def test_a_table_of_rivals_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(point.tracking, "output_and_group", lambda: (tmp_path / "run", "rivals"))
    table = short("rivals_llava", "1/3", ("none", "HERO", "VisionZip", "FastV", "random", "downsample"))
    sweep = compose.composed("sweep", [f"store={tmp_path / 'points'}"])
    document = measure_table(sweep, table, ["limit=6", "cost=1"])
    assert [row["point"] for row in document["rows"]] == ["none", *(f"{p['label']}, 1/3" for p in table["points"][1:])]
    assert all(run["status"] == "done" for row in document["rows"] for run in row["runs"].values())
    heads = [column.heading for column in cells.columns(document)]
    rows = {label: dict(zip(heads, row, strict=True)) for label, row in cells.rows(document)}
    assert rows["VisionZip, 1/3"]["GQA"].text == "59.2 [59.2 to 59.3]" and rows["none"]["GQA"].text == "61.9"
    assert rows["none"]["% of untouched"].text == "100.0" and rows["none"]["visual tokens in"].text == "144"
    assert rows["VisionZip, 1/3"]["visual tokens in"].text == "48" and float(
        rows["FastV, 1/3"]["visual tokens a layer"].text
    ) == pytest.approx(48, abs=1)
    assert rows["VisionZip, 1/3"]["selection ms"].text and not rows["FastV, 1/3"]["selection ms"].text
    assert rows["VisionZip, 1/3"]["over the best control"].text.startswith(("+", "-", "0"))
    assert "against" in rows["VisionZip, 1/3"]["over the best control"].note and not rows["random, 1/3"]["over the best control"].text
    assert rows["random, 1/3"]["where downsample is wrong"].text or rows["downsample, 1/3"]["accuracy"].text.startswith("100")


@pytest.mark.parametrize(("name", "model", "tokens"), [("rivals_llava", "scale_llava", 144), ("rivals_next", "scale_llava_next", 720)])
def test_the_shares_are_the_published_budgets(name, model, tokens):
    """192, 128 and 64 of 576, and 640, 320 and 160 of 2,880, on models with other numbers of tokens."""
    table, whole = load_experiment("table", name), {"rivals_llava": 576, "rivals_next": 2880}[name]
    assert f"model={model}" in table["overrides"]
    for share, budget in table["budgets"].items():
        top, bottom = map(int, share.split("/"))
        assert budget["overrides"] == [f"tokens={share}"] and budget["tokens"] * bottom == whole * top and tokens * top % bottom == 0
    rows = plan.points(table)
    assert len({row["label"] for row in rows}) == len(rows)
    assert {row["baseline"] for row in rows if "baseline" in row} <= {row["label"] for row in rows}
