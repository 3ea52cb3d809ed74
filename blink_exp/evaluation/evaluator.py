"""One configuration on one benchmark: predictions, decisions, scores."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from blink_exp.backbone.memory import check_batch, shared_bytes
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import check_workers
from blink_exp.benchmarks.base import Benchmark, Judged, Probes, Sample, Submits, shard, spread
from blink_exp.benchmarks.parts import check_part, part_of
from blink_exp.core.method import Method
from blink_exp.documents import Metrics, Record, Skipped
from blink_exp.errors import UserError, printable
from blink_exp.evaluation import identity, results
from blink_exp.evaluation.answering import Point, ask, prompt_of
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.records import RecordLog, summary, write_lines
from blink_exp.evaluation.store import pop_shared_note
from blink_exp.evaluation.terminal import bar
from blink_exp.files import json_ready, write_json, write_text
from blink_exp.settings.build import build
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import to_yaml


def prepare(settings: PointSettings) -> tuple[Backbone, Method, Benchmark]:
    """The three objects of an evaluation. Raises UserError for whatever cannot be, before any work is done."""
    workers_of(settings)
    benchmark = prepare_benchmark(settings)
    backbone, method = prepare_model(settings)
    check_batch(backbone.model.config, backbone.settings["dtype"], backbone.settings["device"], settings.batch_size)
    return backbone, method, benchmark


def workers_of(settings: PointSettings) -> int:
    """Processes that open images."""
    return check_workers(settings.workers, settings.model.get("device") or "cpu")


def prepare_model(settings: PointSettings) -> tuple[Backbone, Method]:
    """The backbone, and the method made for it."""
    backbone = build(settings.model)
    backbone.shared_bytes = shared_bytes(settings.shared_gb, backbone.settings["device"])
    return backbone, build(settings.method, backbone)


def prepare_benchmark(settings: PointSettings) -> Benchmark:
    """The benchmark, its data taken from ``data_root`` where a copy is there."""
    benchmark: Benchmark = build(with_local_data(settings).benchmark)
    check_part(settings.part, benchmark)
    return benchmark


def with_local_data(settings: PointSettings) -> PointSettings:
    """``settings`` with the copy of the data below ``data_root`` in place of a hub id: another copy is another point."""
    path = settings.benchmark.get("path")
    if settings.data_root is None or path is None:
        return settings
    return replace(settings, benchmark=settings.benchmark | {"path": located(path, Path(settings.data_root))})


def located(path: str, root: Path) -> str:
    """The copy of hub id ``path`` below ``root`` (``root/owner/name`` or ``root/name``), or ``path`` itself where there is none."""
    if not root.is_dir():
        raise UserError(f"data_root={root} is not a folder; give the one that holds copies of the data sets, or null")
    copies = (root / path, root / path.rpartition("/")[2])
    return next((str(copy) for copy in copies if not Path(path).is_absolute() and copy.is_dir()), path)


class Incomplete(UserError):
    """So many samples were skipped that what is left is no measurement of the benchmark."""


def incomplete(skipped: int, samples: int, limit: float) -> bool:
    """Whether more than ``limit`` of all samples were skipped, where ``samples`` were not. One may always be, unless ``limit`` is 0."""
    return skipped > (max(1.0, limit * (skipped + samples)) if limit else 0)


def measure(settings: PointSettings, out: Path, parts: Path | None = None) -> Metrics:
    """Evaluates and writes ``config.yaml`` (before), ``records.part`` (during), ``records.jsonl`` and, last, ``metrics.json``. Returns what
    the latter holds. An evaluation that was killed leaves ``records.part``: the same settings in the same folder go on from there.

    ``parts``: the folder of ``records.part``, if it is not ``out``.

    Raises:
        Incomplete: where more than ``skip_limit`` of the samples were skipped. The answers stay in ``records.part``.
    """
    started = time.time()
    settings = with_local_data(settings)
    backbone, method, benchmark = prepare(settings)
    parts = out if parts is None else parts
    write_text(out / results.CONFIG, to_yaml(settings))
    kept = RecordLog(parts / "records.part", identity.config_hash(settings, identity.without_images(settings)))
    if isinstance(benchmark, Probes):
        with bar(None, benchmark.name, True) as advance:
            records, skipped = benchmark.probe(backbone, settings.limit, advance)
        samples: list[Sample] = []
    else:
        samples = chosen(benchmark, settings)
        records, skipped = evaluate(
            backbone, method, benchmark, settings.batch_size, samples=samples, progress=True, kept=kept, workers=workers_of(settings)
        )
    check_complete(records, skipped, settings.skip_limit)
    cost = cost_of(backbone, method, benchmark, samples, settings.cost) if settings.cost else None
    together = pop_shared_note(parts)
    seconds = time.time() - started + (together["seconds"] / together["points"] if together else 0)
    finished = {
        "backbone": backbone.identity,
        "method": method.name,
        "layers": list(method.policy.layers) if method.policy else [],
        **scored(benchmark, records, out),
        "blink": summary(records, backbone.grid[0] * backbone.grid[1]),
        "cost": cost,
        "skipped": skipped,
        "kept": len(kept.records),  # answered before: not in "seconds"
        "together": together,  # with how many other points, how long that took
        "batch_size": settings.batch_size,
        **backbone.settings,
        **results.provenance(settings.seed, seconds),
    }
    finished = json_ready(finished)
    write_json(out / "metrics.json", finished)
    kept.remove()
    return finished


def check_complete(records: list[Record], skipped: list[Skipped], limit: float) -> None:
    """Raises Incomplete where no sample could be read, or more than ``limit`` of them were skipped."""
    first = f", first {skipped[0]['id']}: {skipped[0]['why']}" if skipped else ""
    total = len(skipped) + len(records)
    if not records:
        raise Incomplete(f"none of the {total} samples could be read{first}; is benchmark.path the whole copy of the data?")
    if incomplete(len(skipped), len(records), limit):
        share = f"{len(skipped)} of {total} samples ({100 * len(skipped) / total:.1f} %) were skipped"
        raise Incomplete(f"{share}, more than skip_limit={limit:g} allows{first}; bring the data back, or raise skip_limit")


def scored(benchmark: Benchmark, records: list[Record], out: Path) -> dict[str, Any]:
    """Scores and what they are scores of; writes ``records.jsonl`` and what a test server or judge takes."""
    write_text(out / "records.jsonl", write_lines(records))  # first: a judge may fail, and what was predicted must not be lost
    if isinstance(benchmark, Judged) and records:
        records = benchmark.judged(records)
        write_text(out / "records.jsonl", write_lines(records))
    files = benchmark.submit(records, out) if isinstance(benchmark, Submits) else []
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "split": getattr(benchmark, "split", None),
        "headline": benchmark.headline,
        "scores": {k: asdict(v) for k, v in (benchmark.score(records) if records else {}).items()},
        "samples": len(records),
        "without_answer": sum("answer" in r and r["answer"] is None for r in records),
        "files": [str(file.relative_to(out)) for file in files],
    }


def chosen(benchmark: Benchmark, settings: PointSettings) -> list[Sample]:
    """The samples of a run: about ``limit`` of them, of which this is one shard. Raises UserError if none is left."""
    samples = spread(part_of(benchmark.samples(), settings.part), settings.limit)
    part = samples if settings.shard is None else shard(samples, str(settings.shard))
    if not part:
        cure = "use fewer shards (one takes whole images)" if samples else "give a copy of the data that has rows"
        raise UserError(f"shard={settings.shard} of the {len(samples)} samples of {benchmark.name} is empty; {cure}")
    return part


def cost_of(backbone: Backbone, method: Method, benchmark: Benchmark, samples: list[Sample], prompts: int) -> dict[str, Any] | None:
    """The cost meter over the first ``prompts`` samples whose image opens."""
    asked = []
    for sample in samples:
        with contextlib.suppress(OSError, UserError):
            asked.append((sample.image(), prompt_of(backbone, benchmark, sample)))
        if len(asked) == prompts:
            break
    return measure_cost(backbone, method, asked) if asked else None


def evaluate(
    backbone: Backbone,
    method: Method,
    benchmark: Benchmark,
    batch_size: int = 16,
    limit: int | None = None,
    progress: bool = False,
    samples: list[Sample] | None = None,
    kept: RecordLog | None = None,
    workers: int = 0,
) -> tuple[list[Record], list[Skipped]]:
    """Per-sample records of ``method`` on ``samples`` (None: about ``limit`` of the benchmark), and the samples skipped because their
    row or image could not be read; both in the samples' order. ``kept``: see ``asking.Point``; ``workers``: see ``open_images``."""
    samples = spread(benchmark.samples(), limit) if samples is None else samples
    point = Point(method, kept)
    with bar(len(samples), f"{method.name} on {benchmark.name}", progress) as advance:
        skipped = ask(backbone, [point], benchmark, samples, batch_size, advance, workers)
    if skipped:
        print(f"{len(skipped)} of {len(samples)} samples skipped, first {printable(skipped[0]['id'])}: {skipped[0]['why']}")
    return [point.done[sample.id] for sample in samples if sample.id in point.done], skipped
