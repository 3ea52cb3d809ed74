"""What a point, its records and a table are called where they are logged: stable names, published and measured apart."""

from __future__ import annotations

from pathlib import Path

from support.logged import FINISHED, STEPS, TABLE

from blink_exp.tracking import names, summaries


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
    config = names.config_of(
        {"a": {"b": (1, None, Path("x"))}, "logger": {"_target_": "blink_exp.tracking.loggers.Csv"}, "store": "y", "c": True}
    )
    assert config == {"a": {"b": [1, None, "x"]}, "c": True}


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
