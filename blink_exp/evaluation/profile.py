"""Fig. 3 of the Blink paper for any backbone: the saliency ratio by layer, and how often the most salient patch is the right one."""

from __future__ import annotations

from typing import Any

from blink_exp.backbone.model import Backbone
from blink_exp.benchmarks.base import Benchmark, Box
from blink_exp.core.saliency import PatchGrid
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods.blink import BlinkPolicy, blink


def profile(backbone: Backbone, benchmark: Benchmark, limit: int | None = None, p: int = 2, saliency: str = "attention") -> dict[str, Any]:
    """Scans every layer of the untouched model (thresholds that are never met).

    Returns ``rho``: mean by layer; ``hit``: by layer, the share of samples whose most salient patch holds the annotated region, among
    samples whose region lies in one patch; ``samples``: number of those samples; ``accuracy``: of the untouched model, in per cent.
    """
    policy = BlinkPolicy(tuple(range(backbone.depth)), tau_expand=1.0, tau_drop=0.0, p=p, saliency=saliency)
    records, _ = evaluate(backbone, blink(policy), benchmark, batch_size=32, limit=limit)
    grid = PatchGrid(p, *backbone.grid)
    rho = [[] for _ in range(backbone.depth)]  # type: list[list[float]]
    hit = [[] for _ in range(backbone.depth)]  # type: list[list[bool]]
    for r in records:
        right = patch_of(r["regions"][0], grid) if len(r["regions"]) == 1 else None
        for step in r["layers"]:
            rho[step["layer"]].append(step["rho"])
            if right is not None:
                hit[step["layer"]].append(step["region"] == right)
    return {
        "rho": [round(sum(v) / len(v), 4) for v in rho],
        "hit": [round(sum(v) / len(v), 4) if v else None for v in hit],
        "samples": len(hit[0]),
        "accuracy": 100 * sum(r["correct"] for r in records) / len(records),
        "benchmark": benchmark.name,
    }


def patch_of(box: Box, grid: PatchGrid) -> int | None:
    """Index of the patch that contains a region; None if the region spans several patches."""
    for region in range(grid.p**2):
        left, top, right, bottom = grid.box(region)
        slack = 1e-6
        if box[0] >= left - slack and box[1] >= top - slack and box[2] <= right + slack and box[3] <= bottom + slack:
            return region
    return None
