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
from typing import Any

from omegaconf import DictConfig

from blink_exp.benchmarks.base import Probes
from blink_exp.cli import one_line
from blink_exp.errors import UserError
from blink_exp.evaluation import identity, locks, results, store
from blink_exp.evaluation.answering import Point, ask
from blink_exp.evaluation.evaluator import chosen, incomplete, locate, prepare, workers_of
from blink_exp.evaluation.records import Kept
from blink_exp.evaluation.store import SHARED_NOTE
from blink_exp.evaluation.terminal import bar
from blink_exp.files import write_json
from blink_exp.settings.check import check
from blink_exp.settings.messages import HYDRA_ERRORS

log = logging.getLogger(__name__)
ONE_RUN = ("model", "benchmark", "part", "limit", "shard", "data_root", "batch_size", "shared_gb")  # settings that points must agree on


def place(cfg: DictConfig) -> tuple[Path, dict[str, Any] | None]:
    """The folder of a point in the store, and what its metrics.json holds if the point is there and whole; ``cfg`` as composed."""
    settings = located_settings(cfg)
    folder = Path(cfg.store) / identity.point_hash(settings, identity.digests(settings))
    stored = None if cfg.force else store.metrics_of(folder)
    if stored is None:
        return folder, None
    return folder, None if incomplete(len(stored["skipped"]), stored["samples"], cfg.get("skip_limit", 0.0)) else stored


def parts_of(cfg: DictConfig) -> Path:
    """The folder of a point's answers until it is finished, which is also what a run locks. It is the point's own, but where its data has
    image files: there it does not depend on which of them are there, so that a point goes on when those that were missing are back."""
    settings = located_settings(cfg)
    return Path(cfg.store) / identity.point_hash(settings, identity.without_images(settings))


def located_settings(cfg: DictConfig) -> dict[str, Any]:
    """``cfg`` as composed, as plain Python, with the copy of the data that it means: another copy is another point."""
    cfg = cfg.copy()
    locate(cfg)
    return results.plain(cfg)


def run_together(configs: Iterable[DictConfig]) -> None:
    """Answers the questions of all points that are not in the store, group by group. Points alone in their group are left alone."""
    groups: dict[str, dict[Path, DictConfig]] = {}
    for cfg in configs:
        try:
            check(cfg)
            folder, stored = place(cfg)
        except (UserError, OSError, *HYDRA_ERRORS) as error:
            log.info("left alone: %s", one_line(error))
            continue
        if stored is None:
            settings = results.plain(cfg)
            groups.setdefault(json.dumps([settings.get(k) for k in ONE_RUN], sort_keys=True), {})[folder] = cfg
    for group in groups.values():
        if len(group) < 2:
            continue
        try:
            with locks.free(parts_of(cfg) for cfg in group.values()) as mine:  # another run answers for the others
                own = {parts: cfg for cfg in group.values() if (parts := parts_of(cfg)) in mine and place(cfg)[1] is None}
                if len(own) > 1:
                    _run_group(own)
        except Exception as error:  # each point meets it again when it is measured, and says it as its own
            log.warning("points run alone: %s", one_line(error))


def _run_group(group: dict[Path, DictConfig]) -> None:
    """Answers for all points of a group, by their folders of ``parts_of``."""
    started = time.time()
    points: dict[Path, Point] = {}
    for folder, cfg in group.items():
        try:
            cfg = cfg.copy()
            backbone, method, benchmark = prepare(cfg)
        except (UserError, OSError) as error:
            log.info("left alone: %s", one_line(error))
            continue
        if isinstance(benchmark, Probes):
            return
        settings = results.plain(cfg)
        points[folder] = Point(method, Kept(folder / "records.part", identity.point_hash(settings, identity.without_images(settings))))
    if len(points) < 2:
        return
    samples = chosen(benchmark, cfg)
    print(f"{len(points)} points run together on {benchmark.name}", flush=True)
    with bar(len(points) * len(samples), f"{len(points)} points on {benchmark.name}", True) as advance:
        ask(backbone, list(points.values()), benchmark, samples, cfg.batch_size, advance, workers_of(cfg))
    note = {"points": len(points), "seconds": round(time.time() - started, 2)}
    for folder in points:
        write_json(folder / SHARED_NOTE, note)
