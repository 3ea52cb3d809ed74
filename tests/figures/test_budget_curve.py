"""The curve of accuracy against measured tokens: order, controls, what was not measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blink_exp.errors import UserError
from blink_exp.figures.base import Study
from blink_exp.figures.budget_curve import curves, ticks_of


def run(series: str, tokens: float, accuracy: float | None) -> dict:
    scores, more = {"accuracy": accuracy}, {"backbone": "m", "benchmark": "b", "samples": 9, "headline": "accuracy"}
    return {
        "point": series,
        "series": series,
        "status": "done",
        "tokens": {"layer": tokens},
        "scores": scores,
        "stderr": {"accuracy": 1.5},
        **more,
    }


def drawn(rows: list[dict]):
    return curves(Study("budget_curve", SimpleNamespace(), rows), untouched="none", controls=["random"])


def test_a_line_runs_over_measured_tokens_and_controls_stay_apart():
    failed = {"point": "HERO: 1/18", "series": "HERO", "status": "failed", "error": "no"}
    drawing = drawn([run("none", 144, 90), run("HERO", 48, 80), run("HERO", 16, 60), run("random", 16, 50), run("DART", 32, 40), failed])
    assert drawing.data["methods"]["HERO"] == {"tokens a layer": [16, 48], "accuracy": [60, 80], "stderr": [1.5, 1.5]}
    assert drawing.data["untouched"] == 90 and "1 points have no score" in drawing.caption and "at most 1.5" in drawing.caption
    (claim,) = drawing.claims
    assert claim.numbers == {"best control": 50, "best method": 60, "methods above it": 1} and claim.holds is None


def test_a_figure_without_a_scored_point_is_one_line():
    with pytest.raises(UserError, match="has no point with a score: no model"):
        drawn([{"point": "HERO", "series": "HERO", "status": "failed", "error": "no model"}])


def test_a_point_without_the_headline_is_left_out_and_counted():
    """A score of no question is None, and a split that a server scores has none."""
    unscored = run("HERO", 16, 60) | {"scores": {}}
    drawing = drawn([run("none", 144, None), run("HERO", 48, 80), unscored, run("random", 16, 50)])
    assert drawing.data["methods"]["HERO"]["tokens a layer"] == [48] and drawing.data["untouched"] is None
    assert "2 points have no score" in drawing.caption


def test_ticks_are_the_common_budgets_and_none_is_written_over_another():
    assert ticks_of([8, 16, 32, 48, 72, 8, 16, 32, 48, 72, 30, 31, 35, 50, 73, 13]) == [8, 13, 16, 32, 48, 72]
