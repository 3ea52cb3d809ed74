"""Rows of a table against each other: budgets, shares of the untouched model, the best control, published ranges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blink_exp.benchmarks.base import ExactMatch
from blink_exp.reports import cells
from blink_exp.studies import comparisons, deltas, plan, tables

EXPERIMENT = {
    "rivals_on": "llava-1.5-7b",
    "budgets": {"1/3": {"tokens": 192, "overrides": ["tokens=1/3"]}, "2/9": {"tokens": 128, "overrides": ["tokens=2/9"]}},
    "points": [
        {"label": "none", "once": True, "rival": "untouched", "overrides": ["method=none"]},
        {"label": "FastV", "baseline": "HERO", "rival": "fastv", "overrides": ["method=fastv"]},
        {"label": "HERO", "overrides": ["method=hero"]},
    ],
}


def test_every_point_runs_at_every_budget_but_those_that_have_none():
    points = plan.points(EXPERIMENT)
    assert [p["label"] for p in points] == ["none", "FastV, 1/3", "HERO, 1/3", "FastV, 2/9", "HERO, 2/9"]
    assert points[3] == {
        **EXPERIMENT["points"][1],
        "label": "FastV, 2/9",
        "budget": "2/9",
        "baseline": "HERO, 2/9",
        "overrides": ["method=fastv", "tokens=2/9"],
        "rival_cell": {"backbone": "llava-1.5-7b", "tokens": 128, "method": "fastv"},
    }
    assert [p["rival_cell"]["tokens"] for p in points if "rival_cell" in p] == [None, 192, 128]


def test_a_point_is_left_out_at_budgets_that_it_cannot_reach():
    points = [point | ({"not_at": ["2/9"]} if point["label"] == "FastV" else {}) for point in EXPERIMENT["points"]]
    assert [p["label"] for p in plan.points(EXPERIMENT | {"points": points})] == ["none", "FastV, 1/3", "HERO, 1/3", "HERO, 2/9"]


def test_published_numbers_of_several_sources_are_the_anchor_s_and_their_range():
    table = {"published": {"GQA": "gqa", "MMB-CN": "mmbench_cn", "OCR": "ocrbench"}, "published_digits": 1}
    row = tables.new_row(table, plan.points(EXPERIMENT)[1])
    assert row["published"] == {"GQA": 57.1, "MMB-CN": 57.0} and row["ranges"] == {"GQA": [52.7, 57.1]}
    assert "SIEVE: 52.7 (copied)" in row["sources"]["GQA"]
    document = {"published_columns": tables.published_columns(table), "groups": [], "rows": [row]}
    ((_, (gqa, chinese, ocr)),) = cells.rows(document)
    assert (gqa.text, chinese.text, ocr.text) == ("57.1 [52.7 to 57.1]", "57.0", "") and "RESTORE" in gqa.note


class Words(ExactMatch):
    """Accuracy over everything."""


def run(folder: Path, correct: list[bool]) -> dict:
    folder.mkdir()
    rows = [
        {
            "id": str(i),
            "image_id": str(i),
            "category": "c",
            "question": "?",
            "answer": "a",
            "prediction": "a" if hit else "b",
            "correct": hit,
        }
        for i, hit in enumerate(correct)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    accuracy = 100 * sum(correct) / len(correct)
    return {
        "status": "done",
        "folder": str(folder),
        "point": folder.name,
        "scores": {"accuracy": accuracy},
        "stderr": {},
        "samples": len(rows),
    }


def row(tmp_path: Path, label: str, hits: int, **more: object) -> dict:
    return {"point": label, "baseline": None, "runs": {"b": run(tmp_path / label, [i < hits for i in range(40)])}, "deltas": {}, **more}


def rows(tmp_path: Path) -> list[dict]:
    return [
        row(tmp_path, "none", 40),
        row(tmp_path, "method small", 30, budget="small", baseline="random small"),
        row(tmp_path, "random small", 10, budget="small", control=True),
        row(tmp_path, "uniform small", 20, budget="small", control=True),
        row(tmp_path, "method large", 38, budget="large"),
        row(tmp_path, "uniform large", 39, budget="large", control=True),
    ]


def test_the_best_control_is_that_of_the_row_s_own_budget(tmp_path):
    all_rows = rows(tmp_path)
    controls = [comparisons.best_control(all_rows, r, "b", "accuracy") for r in all_rows]
    assert [r and r["point"] for r in controls] == [None, "uniform small", None, None, "uniform large", None]


def test_shares_are_of_the_untouched_model(tmp_path):
    all_rows = rows(tmp_path)
    comparisons.add_shares(all_rows, "b", "none")
    assert [r["runs"]["b"]["share"]["accuracy"] for r in all_rows] == [100, 75, 25, 50, 95, 97.5]
    comparisons.add_shares(all_rows[1:], "b", "gone")  # nothing to divide by, nothing happens


def test_a_row_is_tested_against_its_best_control(tmp_path, monkeypatch):
    monkeypatch.setattr(deltas, "benchmark_of", lambda run: Words())
    columns = {"accuracy": {"value": "scores.accuracy", "digits": 1}, "over": {"value": "over_control.accuracy", "digits": 1}}
    all_rows = rows(tmp_path)
    document = {"groups": [{"benchmark": "b", "label": "", "columns": columns}], "published_columns": {}, "rows": all_rows}
    for r in all_rows:
        r["published"] = {}
    deltas.add_deltas(document, "accuracy")
    test = all_rows[1]["deltas"]["b"]["over"]
    assert all_rows[1]["runs"]["b"]["over_control"] == {"accuracy": pytest.approx(25)} and test["against"] == "uniform small"
    assert test["p"] == pytest.approx(2 * 0.5**10)  # McNemar, exact: ten questions differ, all one way
    cell = cells.rows(document)[1][1][1]
    assert (cell.text, cell.mark, cell.delta) == ("+25.0†", "", "") and "against uniform small" in cell.note
    assert all_rows[4]["deltas"]["b"]["over"]["p"] == 1 and "over_control" not in all_rows[2]["runs"]["b"]
