"""A table as sweep.py writes it, made up, whose every cell is known: what the tests of its forms show."""

from __future__ import annotations

LABEL = "scale-llava-1.5 (scale model) on mosaic_mme, 640 questions"


def measured(total, stderr, command="python evaluate.py method=none", **more):
    scores = {"total": total, "a.b": 50.04}
    return {"status": "done", "scores": scores, "stderr": {"total": stderr}, "samples": 640, "command": command} | more


def row(point, **more):
    empty = {"published": {}, "derived": [], "missing": {}, "conjecture": {}, "published_deltas": {}, "runs": {}, "deltas": {}}
    return {"point": point, "baseline": None} | empty | more


def document() -> dict:
    """Two published columns; on one benchmark a score, a category with a dot in its name, and a cost. Four points: the baseline, one that
    is better, one that is worse and lacks a published number, one that failed."""
    test = {"delta": 2.5, "p": 0.03, "test": "bootstrap", "n": 638, "low": 0.125, "high": 4.9}
    cost = {"cost": {"kv_bytes": 3 * 2**20}}
    columns = {
        "total": {"value": "scores.total", "per": 1, "digits": 2, "error_digits": 0, "published": "total"},
        "part": {"value": "scores.a.b", "per": 1, "digits": 1, "error_digits": 0, "published": None},
        "KV MiB": {"value": "cost.kv_bytes", "per": 2**20, "digits": 2, "error_digits": 0, "published": None},
    }
    return {
        "kind": "table",
        "name": "blink_table2",
        "title": "Blink, Table 2: modules & thresholds",
        "published_on": "LLaVA-1.5-7B, MME",
        "note": None,
        "error_over": "images",
        "command": "python sweep.py table=blink_table2",
        "scale": True,
        "footnotes": [{"kind": "discrepancy", "text": "tau_exp | 5 %"}],
        "published_columns": {"perception": {"column": "p", "digits": 2}, "total": {"column": "t", "digits": None}},
        "groups": [{"benchmark": "mosaic_mme", "label": LABEL, "columns": columns}],
        "rows": [
            row("none", published={"perception": 1505.7, "total": 1863.58}, derived=["total"], runs={"mosaic_mme": measured(100, 20.4)}),
            row(
                "w/o SGS",
                baseline="none",
                published={"perception": 1509.0, "total": 1866.08},
                published_deltas={"perception": 3.3, "total": 2.5},
                runs={"mosaic_mme": measured(102.5, None, "python evaluate.py saliency=random", **cost)},
                deltas={"mosaic_mme": {"total": test}},
            ),
            row(
                "L={6-10}",
                baseline="none",
                published={"perception": None, "total": 1849.74},
                published_deltas={"total": -13.84},
                missing={"perception": "lost in text extraction"},
                conjecture={"perception": 1234.5},
                runs={"mosaic_mme": measured(99.999, float("nan"), **cost)},
                deltas={"mosaic_mme": {"total": test | {"delta": -0.001, "p": 0.5, "low": -3, "high": 3}}},
            ),
            row("[broken]", runs={"mosaic_mme": {"status": "failed", "error": "no memory", "command": "c"}}),
        ],
    }
