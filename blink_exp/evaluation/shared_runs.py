"""Points that share a model and a benchmark, run together: everything that they have in common is run once (``blink_exp.decoder``).

A point's records go into its own folder of the store as they come, exactly as if it ran alone. So nothing else changes: each point is
then measured as ever, finds its answers there, and scores and writes them. What cannot run here, or fails, simply runs alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from blink_exp.benchmarks.base import Probes
from blink_exp.cli import one_line
from blink_exp.documents import Metrics
from blink_exp.errors import UserError
from blink_exp.evaluation import identity, locks, store
from blink_exp.evaluation.answering import Point, ask
from blink_exp.evaluation.evaluator import chosen, incomplete, prepare, with_local_data, workers_of
from blink_exp.evaluation.records import RecordLog
from blink_exp.evaluation.store import SHARED_NOTE
from blink_exp.evaluation.terminal import bar
from blink_exp.files import write_json
from blink_exp.settings.roots import EvaluateSettings

log = logging.getLogger(__name__)
ONE_RUN = ("model", "benchmark", "part", "limit", "shard", "data_root", "batch_size", "shared_gb")  # settings that points must agree on


def stored_point(settings: EvaluateSettings) -> tuple[Path, Metrics | None]:
    """The folder of a point in the store, and what its metrics.json holds if the point is there and whole."""
    folder = point_folder(settings)
    stored = None if settings.force else store.metrics_of(folder)
    if stored is None:
        return folder, None
    return folder, None if incomplete(len(stored["skipped"]), stored["samples"], settings.skip_limit) else stored


def point_folder(settings: EvaluateSettings) -> Path:
    """The folder of a point in the store, whether it is there or not."""
    point = with_local_data(settings)
    return Path(settings.store) / identity.config_hash(point, identity.digests(point))


def parts_of(settings: EvaluateSettings) -> Path:
    """The folder of a point's answers until it is finished, which is also what a run locks. It is the point's own, but where its data has
    image files: there it does not depend on which of them are there, so that a point goes on when those that were missing are back."""
    point = with_local_data(settings)
    return Path(settings.store) / identity.config_hash(point, identity.without_images(point))


def run_together(points: Iterable[EvaluateSettings]) -> None:
    """Answers the questions of all points that are not in the store, group by group. Points alone in their group are left alone."""
    groups: dict[str, dict[Path, EvaluateSettings]] = {}
    for settings in points:
        try:
            folder, stored = stored_point(settings)
        except (UserError, OSError) as error:
            log.info("left alone: %s", one_line(error))
            continue
        if stored is None:
            groups.setdefault(json.dumps([getattr(settings, k) for k in ONE_RUN], sort_keys=True), {})[folder] = settings
    for group in groups.values():
        if len(group) < 2:
            continue
        try:
            with locks.free(map(parts_of, group.values())) as locked:  # another run answers for the others
                pending = {
                    parts: point for point in group.values() if (parts := parts_of(point)) in locked and stored_point(point)[1] is None
                }
                if len(pending) > 1:
                    _run_group(pending)
        except Exception as error:  # each point meets it again when it is measured, and says it as its own
            log.warning("points run alone: %s", one_line(error))


def _run_group(group: dict[Path, EvaluateSettings]) -> None:
    """Answers for all points of a group, by their folders of ``parts_of``."""
    started = time.time()
    points: dict[Path, Point] = {}
    for folder, point in group.items():
        try:
            settings = with_local_data(point)
            backbone, method, benchmark = prepare(settings)
        except (UserError, OSError) as error:
            log.info("left alone: %s", one_line(error))
            continue
        if isinstance(benchmark, Probes):
            return
        points[folder] = Point(
            method, RecordLog(folder / "records.part", identity.config_hash(settings, identity.without_images(settings)))
        )
    if len(points) < 2:
        return
    samples = chosen(benchmark, settings)
    print(f"{len(points)} points run together on {benchmark.name}", flush=True)
    with bar(len(points) * len(samples), f"{len(points)} points on {benchmark.name}", True) as advance:
        ask(backbone, list(points.values()), benchmark, samples, settings.batch_size, advance, workers_of(settings))
    note = {"points": len(points), "seconds": round(time.time() - started, 2)}
    for folder in points:
        write_json(folder / SHARED_NOTE, note)
