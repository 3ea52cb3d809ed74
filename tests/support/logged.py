"""A finished point, a table and settings that tests of the loggers share."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from blink_exp.benchmarks.base import Sample
from blink_exp.cli import CONF
from blink_exp.settings.groups import Thresholds, TokenSR
from blink_exp.settings.roots import EvaluateSettings, TrainSettings

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
    fields = {"id": f"s{k}", "image_id": f"i{k}", "category": "count", "question": f"how many? {k}", "answer": "2", "prediction": "two | 2"}
    return fields | {"correct": False, "layers": STEPS, "visual_tokens": 144, "newline_tokens": 0, "regions": []} | more


MODEL = {"path": "nowhere/at-all", "name": "scale-llava"}


def logger_settings(kind: str, **more) -> dict:
    """A preset of conf/logger with some values changed."""
    return yaml.safe_load((CONF / "logger" / f"{kind}.yaml").read_text(encoding="utf-8")) | more


def settings(kind: str, **more) -> EvaluateSettings:
    return EvaluateSettings(logger=logger_settings(kind, **more), model=MODEL, thresholds=Thresholds(0.5, 0.2), layer=None, store="x")


def training_settings(kind: str, **more) -> TrainSettings:
    return TrainSettings(logger=logger_settings(kind, **more), model=MODEL, tokensr=TokenSR("conv", None))


def write_point(folder: Path) -> Path:
    """A finished point: two records, of which the second has a region."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(FINISHED), encoding="utf-8")
    records = [record(0, correct=True), record(1, regions=[[0.25, 0.0, 0.5, 1.0]], answer=None)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
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
        {
            "point": "Blink",
            "published": {"total": 1881.53, "GQA": 62},
            "derived": [],
            "runs": {"mosaic_mme": {"status": "failed"}},
            "deltas": {},
        },
    ],
}
