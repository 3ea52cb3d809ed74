"""What Blink's figures share: how a claim is judged, errors of means and of differences, names of points, the picture a backbone sees."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from blink_exp.backbone.load import Backbone
from blink_exp.benchmarks.base import by
from blink_exp.errors import UserError
from blink_exp.figures.base import STYLE, TIP

RULE = "Holds, or does not, where the difference is more than two standard errors from 0; else this cannot be told."
Gains = dict[str, dict[str, float]]  # by subtask and image: what an image adds to the subtask's score


def told(difference: float | None, stderr: float | None) -> bool | None:
    """Whether a difference is above 0; None where it is within two standard errors of it, or where there is none."""
    if difference is None or stderr is None or abs(difference) <= 2 * stderr:
        return None
    return difference > 0


def all_told(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether every one holds: False as soon as one does not, None while one cannot be told."""
    found = list(verdicts)
    if not found or (None in found and False not in found):
        return None
    return all(found)


def clustered(values: Sequence[float], clusters: Sequence[str]) -> tuple[float | None, float | None]:
    """(mean, its standard error) of values that hang together within a cluster, as the questions on one image do. None of nothing; no
    error of fewer than two clusters."""
    if not values:
        return None, None
    mean = float(np.mean(values))
    apart: dict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        apart[cluster] += value - mean
    n = len(apart)
    if n < 2:
        return mean, None
    return mean, float(np.sqrt(sum(d**2 for d in apart.values()) * n / (n - 1)) / len(values))


def gains(records: list[dict[str, Any]], score: str) -> Gains:
    """What each image adds to a score. ``total``: MME's accuracy + accuracy-plus of each subtask (pairs with both answers only); else the
    per cent of right answers, question by question. The score is the sum over subtasks of the mean over images."""
    answered = [r for r in records if r["correct"] is not None]
    if score != "total":
        return {"": {r["id"]: 100.0 * r["correct"] for r in answered}}
    pairs = {k: {i: pair for i, pair in by(rows, "image_id").items() if len(pair) == 2} for k, rows in by(answered, "category").items()}
    return {
        k: {i: 50.0 * sum(r["correct"] for r in pair) + 100.0 * all(r["correct"] for r in pair) for i, pair in images.items()}
        for k, images in pairs.items()
        if images
    }


def contrast(first: Sequence[Gains], second: Sequence[Gains]) -> tuple[float | None, float | None]:
    """(difference, its standard error): the mean score of the ``first`` runs less that of the ``second``, paired image by image."""
    if not first or not second:
        return None, None
    difference = variance = 0.0
    for subtask in first[0]:
        images = [i for i in first[0][subtask] if all(i in run.get(subtask, {}) for run in (*first, *second))]
        if not images:
            continue
        a, b = ([[run[subtask][i] for i in images] for run in runs] for runs in (first, second))
        apart = np.mean(a, axis=0) - np.mean(b, axis=0)
        difference += float(apart.mean())
        variance += float(apart.var(ddof=1)) / len(images) if len(images) > 1 else 0.0
    return difference, variance**0.5


def headline(rows: list[dict[str, Any]], name: str) -> str:
    """The score that a figure over MME's total plots: ``total``, or accuracy on a benchmark that has no total."""
    found = next((s for s in ("total", "accuracy") if all(s in row["scores"] for row in rows)), None)
    if found is None:
        raise UserError(f"figure={name} needs a benchmark with a total or an accuracy; use benchmark=mme or mosaic_mme")
    return found


def point(study: Any, label: str) -> dict[str, Any]:
    """The measured point that others are compared with."""
    row = next((r for r in study.done if r["point"] == label), None)
    if row is None:
        raise UserError(
            f"figure={study.name} compares with its point {label}, which was not measured; see its error, then repeat the command"
        )
    return row


def measured_on(row: dict[str, Any]) -> str:
    """Backbone, benchmark and number of questions of a measured point."""
    benchmark = json.loads((Path(row["folder"]) / "metrics.json").read_text())["benchmark"]
    return f"{row['backbone']}, {benchmark}, {row['samples']} questions"


def styled() -> AbstractContextManager[None]:
    """The look of every figure, for the length of a ``with`` block."""
    rules: Any = STYLE  # matplotlib's own type names every rule there is
    return plt.rc_context(rules)


def tip(text: str, number: int) -> str:
    """The gid of an artist that says ``text`` where the pointer rests; ``number`` keeps equal texts apart."""
    return f"{TIP}{text}#{number}"


def square(backbone: Backbone, image: Image.Image) -> Image.Image:
    """The image as the base view shows it: stretched (LLaVA-NeXT's thumbnail), or cropped or padded by the image processor."""
    if backbone.tiled or image.width == image.height:
        return image.resize((max(image.size),) * 2) if image.width != image.height else image
    processor = backbone.processor.image_processor
    pixels = backbone.transform(image).permute(1, 2, 0).cpu().numpy() * np.array(processor.image_std) + np.array(processor.image_mean)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def listed(values: Iterable[float | None], digits: int = 4) -> list[float | None]:
    """Rounded as data.json has them."""
    return [None if v is None else round(float(v), digits) for v in values]
