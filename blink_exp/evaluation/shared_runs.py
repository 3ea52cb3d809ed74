"""Points that share a model and a benchmark, run together: common computation is done once (``blink_exp.decoder``).

The records of a point are written to its own folder of the store, as if it ran alone. Each point is then measured as usual: it finds
its answers there and scores them. A point that cannot be shared, or fails, runs alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from blink_exp.benchmarks.base import Probes
from blink_exp.cli import one_line
from blink_exp.documents.runs import Metrics
from blink_exp.errors import UserError
from blink_exp.evaluation import identity, locks, placement, ranks, store
from blink_exp.evaluation.answering import Devices, Point, ask, check_annotation
from blink_exp.evaluation.evaluator import chosen, incomplete, prepare, with_local_data, workers_of
from blink_exp.evaluation.records import RECORD_LOG, RecordLog
from blink_exp.evaluation.store import SHARED_NOTE
from blink_exp.evaluation.terminal import bar
from blink_exp.files import write_json
from blink_exp.settings.roots import EvaluateSettings, PointSettings
from blink_exp.settings.values import as_type

log = logging.getLogger(__name__)
ONE_RUN = ("model", "benchmark", "part", "limit", "shard", "data_root", "batch_size", "shared_gb")  # settings that points must agree on


def stored_point(settings: EvaluateSettings) -> tuple[Path, Metrics | None]:
    """The folder of a point in the store, and its metrics if the point is finished and complete, else None."""
    folder = point_folder(settings)
    stored = None if settings.force else store.metrics_of(folder)
    if stored is None:
        return folder, None
    return folder, None if incomplete(len(stored["skipped"]), stored["samples"], settings.skip_limit) else stored


def point_folder(settings: EvaluateSettings) -> Path:
    """The folder of a point in the store, which need not exist."""
    point = with_local_data(settings)
    return Path(settings.store) / identity.config_hash(point, identity.digests(point))


def parts_of(settings: EvaluateSettings) -> Path:
    """The folder of a point's answers until it is finished; runs lock it. It equals the point's folder unless its data has image files:
    then it does not depend on them, so that a point resumes when missing images are restored."""
    point = with_local_data(settings)
    return Path(settings.store) / identity.config_hash(point, identity.without_images(point))


def run_key(settings: EvaluateSettings) -> str:
    """Equal for points that can run together."""
    return json.dumps([getattr(settings, name) for name in ONE_RUN], sort_keys=True)


def run_together(points: Iterable[EvaluateSettings]) -> None:
    """Answers the questions of all points that are not in the store, group by group. Groups of one point are skipped."""
    groups: dict[str, dict[Path, EvaluateSettings]] = {}
    for settings in points:
        try:
            folder, stored = stored_point(settings)
        except (UserError, OSError) as error:
            log.info("not run together with the others: %s", one_line(error))
            continue
        if stored is None:
            groups.setdefault(run_key(settings), {})[folder] = settings
    for group in groups.values():
        if len(group) < 2:
            continue
        try:
            with locks.free(map(parts_of, group.values())) as locked:  # the others are locked by another run
                pending = {
                    parts: point for point in group.values() if (parts := parts_of(point)) in locked and stored_point(point)[1] is None
                }
                if len(pending) > 1:
                    _run_group(pending)
        except ranks.LostRank:
            raise
        except Exception as error:  # raised again, for each point, when the points are measured
            log.warning("points run alone: %s", one_line(error))


def _run_group(group: dict[Path, EvaluateSettings]) -> None:
    """Answers the questions of all points of a group; ``group``: {``parts_of`` folder: settings}."""
    started = time.time()
    points: dict[Path, Point] = {}
    for folder, point in group.items():
        try:
            settings = with_local_data(point)
            devices = placement.process_count(point.devices, settings.model)
            backbone, method, benchmark = prepare(settings)
            if method.second_view is not None:
                check_annotation(method, f"benchmark={benchmark.name}", chosen(benchmark, settings))
        except (UserError, OSError) as error:
            log.info("not run together with the others: %s", one_line(error))
            continue
        if isinstance(benchmark, Probes):
            return
        record_log = RecordLog(folder / RECORD_LOG, identity.config_hash(settings, identity.without_images(settings)))
        points[folder] = Point(method, record_log, devices=Devices(devices, as_type(PointSettings, settings)))
    if len(points) < 2:
        return
    samples = chosen(benchmark, settings)
    print(f"{len(points)} points run together on {benchmark.name}", flush=True)
    with bar(len(points) * len(samples), f"{len(points)} points on {benchmark.name}", True) as advance:
        ask(backbone, list(points.values()), benchmark, samples, settings.batch_size, advance, workers_of(settings))
    note = {"points": len(points), "seconds": round(time.time() - started, 2)}
    for folder in points:
        write_json(folder / SHARED_NOTE, note)
