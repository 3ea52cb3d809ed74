"""Region effects of a table: what a method gains by *where* it looks.

A comparison with the untouched model cannot tell a closer look from a second segment in the sequence; only the same method at a region
drawn at random can. The region effect of a method is its accuracy with the region chosen by attention less its accuracy with a random one,
on the same questions. The share recovered is the region effect over that of a reference, the close-up of the image's own pixels, which
bounds what any amplifier of tokens can gain. An experiment states them under ``effects``:

    reference   label of the effect that shares are taken of
    pairs       label, point, control: labels of an effect and of its two points
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from blink_exp.benchmarks.base import Benchmark, Subsets, group_by
from blink_exp.documents.experiments import EffectPair, RegionEffects
from blink_exp.documents.records import Record
from blink_exp.documents.tables import EffectRow, TableDocument
from blink_exp.reports.statistics import CONFIDENCE, RESAMPLES, SAME, compare
from blink_exp.studies.deltas import benchmark_of, records_of

Runs = Mapping[str, dict[str, Record]]  # {point: {sample id: record}}


def region_effects(document: TableDocument, effects: RegionEffects) -> list[EffectRow]:
    """The effects of every benchmark of a table whose points are measured. ``effects``: of the experiment."""
    out: list[EffectRow] = []
    for group in document["groups"]:
        name = group["benchmark"]
        runs = {row["point"]: row["runs"][name] for row in document["rows"] if row["runs"].get(name, {}).get("status") == "done"}
        pairs = [pair for pair in effects["pairs"] if pair["point"] in runs and pair["control"] in runs]
        if pairs:
            benchmark = benchmark_of(runs[pairs[0]["point"]])
            records = {label: records_of(runs[label]) for pair in pairs for label in (pair["point"], pair["control"])}
            out += effects_of(benchmark, name, records, pairs, effects["reference"])
    return out


def effects_of(benchmark: Benchmark, name: str, runs: Runs, pairs: list[EffectPair], reference: str) -> list[EffectRow]:
    """The effects of some pairs on one benchmark, by its headline score, or ``accuracy`` where it has one."""
    rows: list[EffectRow] = []
    for pair in pairs:
        first, second = runs[pair["point"]], runs[pair["control"]]
        shared = first.keys() & second.keys()
        score = "accuracy" if "accuracy" in benchmark.score([first[k] for k in shared]) else benchmark.headline
        test = compare(benchmark, first, second, [score]).get(score)
        if test is None:
            continue
        rows.append(
            {
                "label": pair["label"],
                "benchmark": name,
                "point": pair["point"],
                "control": pair["control"],
                "effect": test["delta"],
                "low": test["low"],
                "high": test["high"],
                "p": test["p"],
                "test": test["test"],
                "n": test["n"],
                "detectable": test.get("detectable"),
                "share": None,
                "share_low": None,
                "share_high": None,
            }
        )
    bound = next((row for row in rows if row["label"] == reference), None)
    if bound is None or bound["low"] is None or bound["low"] <= 0:
        return rows  # no share of an effect that may be none
    counts = (lambda r: benchmark.counts(score, r)) if isinstance(benchmark, Subsets) else (lambda r: r.get("correct") is not None)
    for row in rows:
        if row is not bound:
            ours, theirs = ((runs[one["point"]], runs[one["control"]]) for one in (row, bound))
            row["share"], row["share_low"], row["share_high"] = share_recovered(ours, theirs, counts)
    return rows


Pair = tuple[dict[str, Record], dict[str, Record]]  # a run and its control


def share_recovered(pair: Pair, reference: Pair, counts: Callable[[Record], bool]) -> tuple[float | None, float | None, float | None]:
    """The mean difference of ``correct`` in ``pair`` over that in ``reference``, and the ends of a percentile interval from a bootstrap
    over images (Efron and Tibshirani, 1993, chapter 13). ``counts``: which records count. None where the reference's difference is 0,
    or, for the interval, 0 in some draw."""
    ids = sorted(set.intersection(*(set(run) for run in (*pair, *reference))))
    ids = [k for k in ids if counts(pair[0][k])]
    images = group_by([pair[0][k] for k in ids], "image_id")
    gains = np.array([[_gain(ours, [r["id"] for r in image]) for image in images.values()] for ours in (pair, reference)])
    total = gains.sum(1)
    if abs(total[1]) < SAME:
        return None, None, None
    draws = np.random.default_rng(0).multinomial(len(images), np.full(len(images), 1 / len(images)), size=RESAMPLES)
    drawn = gains @ draws.T
    share = float(total[0] / total[1])
    if not (drawn[1] > SAME).all():
        return share, None, None
    low, high = np.quantile(drawn[0] / drawn[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return share, float(low), float(high)


def _gain(pair: Pair, ids: list[str]) -> float:
    return float(sum(float(pair[0][k]["correct"]) - float(pair[1][k]["correct"]) for k in ids))
