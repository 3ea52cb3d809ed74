"""Evaluates one configuration on one benchmark: predictions, layer decisions, scores."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from blink_exp import hub
from blink_exp.backbone.memory import check_batch, shared_bytes
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import check_workers
from blink_exp.benchmarks.base import Benchmark, Judged, Probes, Sample, Score, Submits, shard, spread
from blink_exp.benchmarks.parts import check_part, part_of
from blink_exp.core.method import Method
from blink_exp.decoder.second_views import Asking
from blink_exp.documents.records import Record, Skipped
from blink_exp.documents.runs import Cost, Metrics, ScoredRun, ScoreValue
from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, printable
from blink_exp.evaluation import identity, placement, results
from blink_exp.evaluation.answering import Devices, Point, ask, check_annotation, prompt_of
from blink_exp.evaluation.batches import BatchSize
from blink_exp.evaluation.budget import budget_line, budget_of
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.records import RECORD_LOG, RECORDS, RecordLog, summary, write_lines
from blink_exp.evaluation.store import pop_shared_note
from blink_exp.evaluation.terminal import bar
from blink_exp.files import json_ready, write_json, write_text
from blink_exp.methods.budgets import whole_tokens
from blink_exp.settings.build import build
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import to_yaml


def prepare(settings: PointSettings) -> tuple[Backbone, Method, Benchmark]:
    """Backbone, method and benchmark of an evaluation. Raises UserError for invalid settings before any work is done."""
    workers_of(settings)
    benchmark = prepare_benchmark(settings)
    backbone, method = prepare_model(settings)
    check_batch(backbone.model.config, backbone.settings["dtype"], backbone.settings["device"], settings.batch_size)
    return backbone, method, benchmark


def workers_of(settings: PointSettings) -> int:
    """Number of worker processes that open images."""
    return check_workers(settings.workers, settings.model.get("device") or "cpu")


def prepare_model(settings: PointSettings) -> tuple[Backbone, Method]:
    """The backbone and the method built for it."""
    backbone = prepare_backbone(settings)
    return backbone, build_method(settings, backbone)


def prepare_backbone(settings: PointSettings) -> Backbone:
    """The model, with the memory that its questions may share."""
    backbone: Backbone = build(settings.model)
    backbone.shared_bytes = shared_bytes(settings.shared_gb, backbone.settings["device"])
    return backbone


def build_method(settings: PointSettings, backbone: Backbone, node: PlainSettings | None = None) -> Method:
    """The method of ``settings``, or of ``node`` in its place, with the group ``positions``. Raises UserError where expanded tokens are to
    have the positions of cells whose own are lost."""
    method: Method = build(_with_whole_tokens(settings.method if node is None else node, backbone), backbone)
    method = replace(method, positions=settings.positions.policy)
    expands = method.policy is not None and not method.drops_inside
    if expands and method.pruner is not None and method.policy.inherit_positions and not method.original_positions:  # type: ignore[union-attr]
        raise UserError(
            f"resolution.positions=inherit of method={method.name} gives expanded tokens the positions of their patch, and the pruner"
            " numbers what it keeps anew; use positions=original, or resolution.positions=contiguous"
        )
    return method


def _with_whole_tokens(node: PlainSettings, backbone: Backbone) -> PlainSettings:
    """A method's node, and those of a pair's halves, with budgets that are shares as numbers of this backbone's tokens."""
    halves = {key: _with_whole_tokens(value, backbone) for key, value in node.items() if isinstance(value, dict)}
    return {**node, **halves, **({"tokens": whole_tokens(backbone, node["tokens"])} if "tokens" in node else {})}


def prepare_benchmark(settings: PointSettings) -> Benchmark:
    """The benchmark, with its data read from ``data_root`` if it holds a copy."""
    node = with_local_data(settings).benchmark
    if (path := node.get("path")) is not None and not Path(path).is_dir():
        hub.check_connection()
    benchmark: Benchmark = build(node)
    check_part(settings.part, benchmark)
    return benchmark


def with_local_data(settings: PointSettings) -> PointSettings:
    """``settings`` with the hub id replaced by the copy of the data below ``data_root``. Another copy is another point."""
    path = settings.benchmark.get("path")
    if settings.data_root is None or path is None:
        return settings
    return replace(settings, benchmark=settings.benchmark | {"path": located(path, Path(settings.data_root))})


def located(path: str, root: Path) -> str:
    """The copy of hub id ``path`` below ``root`` (``root/owner/name`` or ``root/name``), or ``path`` itself if there is none."""
    if not root.is_dir():
        raise UserError(f"data_root={root} is not a folder; give the one that holds copies of the data sets, or null")
    copies = (root / path, root / path.rpartition("/")[2])
    return next((str(copy) for copy in copies if not Path(path).is_absolute() and copy.is_dir()), path)


class Incomplete(UserError):
    """Too many samples were skipped to count as a measurement of the benchmark."""


def incomplete(skipped: int, samples: int, limit: float) -> bool:
    """Whether ``skipped`` exceeds the fraction ``limit`` of ``skipped`` + ``samples``. One is allowed unless ``limit`` is 0."""
    return skipped > (max(1.0, limit * (skipped + samples)) if limit else 0)


def measure(
    settings: PointSettings,
    out: Path,
    parts: Path | None = None,
    devices: int | str = 1,
    before: tuple[Metrics, list[Record]] | None = None,
) -> Metrics:
    """Evaluates and writes ``config.yaml`` (before), ``records.part`` (during), ``records.jsonl`` and, last, ``metrics.json``. Returns the
    contents of ``metrics.json``. A killed evaluation leaves ``records.part``; the same settings in the same folder resume from it.

    ``parts``: the folder of ``records.part`` if it is not ``out``; ``devices``: see ``placement.process_count``; ``before``: metrics and
    records of a finished run of the same point. Its answers stay, and only what it lacks is measured.

    Raises:
        Incomplete: where more than ``skip_limit`` of the samples were skipped. The answers stay in ``records.part``.
    """
    started = time.time()
    settings = with_local_data(settings)
    processes = placement.process_count(devices, settings.model)
    backbone, method, benchmark = prepare(settings)
    parts = out if parts is None else parts
    write_text(out / results.CONFIG, to_yaml(settings))
    budget = budget_of(settings, backbone, method)
    if budget is not None and (line := budget_line(method.name, budget)) is not None:
        print(line, flush=True)
    batch_size = BatchSize(settings.batch_size)
    record_log = RecordLog(parts / RECORD_LOG, identity.config_hash(settings, identity.without_images(settings)))
    if isinstance(benchmark, Probes):
        with bar(None, benchmark.name, True) as advance:
            records, skipped = benchmark.probe(backbone, settings.limit, advance)
        samples: list[Sample] = []
    else:
        samples = chosen(benchmark, settings)
        if before is not None:
            record_log.adopt(before[1], samples)
        records, skipped = evaluate(
            backbone,
            method,
            benchmark,
            batch_size,
            samples=samples,
            progress=True,
            record_log=record_log,
            workers=workers_of(settings),
            devices=Devices(processes, settings),
        )
    check_complete(records, skipped, settings.skip_limit)
    cost = cost_of(backbone, method, benchmark, samples, settings.cost) if settings.cost else None
    together = pop_shared_note(parts)
    seconds = time.time() - started + (together["seconds"] / together["points"] if together else 0)
    earlier = before[0] if before is not None else None
    finished = {
        "backbone": backbone.identity,
        "method": method.name,
        "layers": list(method.policy.layers) if method.policy else [],
        **scored(benchmark, records, out),
        "blink": summary(records, backbone.grid[0] * backbone.grid[1]),
        "budget": budget,
        "positions": settings.positions.policy,
        "cost": cost,
        "skipped": skipped,
        "kept": earlier.get("kept", 0) if earlier else record_log.earlier,  # answered by an earlier run, not included in "seconds"
        "together": earlier.get("together") if earlier else together,  # number of points that ran together, and seconds
        "batch_size": batch_size.size,  # the largest that fitted in memory, of all devices
        **backbone.settings,
        **results.provenance(settings.seed, seconds + (earlier["seconds"] if earlier else 0)),
        **({"commit": earlier["commit"]} if earlier else {}),  # of the answers
    }
    metrics: Metrics = json_ready(finished)
    write_json(out / "metrics.json", metrics)
    record_log.remove()
    return metrics


def check_complete(records: list[Record], skipped: list[Skipped], limit: float) -> None:
    """Raises Incomplete if no sample could be read, or more than the fraction ``limit`` was skipped."""
    first = f", first {skipped[0]['id']}: {skipped[0]['why']}" if skipped else ""
    total = len(skipped) + len(records)
    if not records:
        raise Incomplete(f"none of the {total} samples could be read{first}; is benchmark.path the whole copy of the data?")
    if incomplete(len(skipped), len(records), limit):
        share = f"{len(skipped)} of {total} samples ({100 * len(skipped) / total:.1f} %) were skipped"
        raise Incomplete(f"{share}, more than skip_limit={limit:g} allows{first}; bring the data back, or raise skip_limit")


def scored(benchmark: Benchmark, records: list[Record], out: Path) -> ScoredRun:
    """Scores of ``records`` with benchmark metadata. Writes ``records.jsonl`` and the files for a test server or judge."""
    write_text(out / RECORDS, write_lines(records))  # before judging: a failing judge must not lose the predictions
    if isinstance(benchmark, Judged) and records:
        records = benchmark.judged(records)
        write_text(out / RECORDS, write_lines(records))
    files = benchmark.submit(records, out) if isinstance(benchmark, Submits) else []
    return {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol,
        "split": getattr(benchmark, "split", None),
        "headline": benchmark.headline,
        "scores": {k: stored(score) for k, score in (benchmark.score(records) if records else {}).items()},
        "samples": len(records),
        "without_answer": sum("answer" in r and r["answer"] is None for r in records),
        "files": [str(file.relative_to(out)) for file in files],
    }


def stored(score: Score) -> ScoreValue:
    return {"value": score.value, "samples": score.samples, "stderr": score.stderr}


def chosen(benchmark: Benchmark, settings: PointSettings) -> list[Sample]:
    """The samples of a run: one shard of about ``limit`` samples. Raises UserError if it is empty."""
    samples = spread(part_of(benchmark.samples(), settings.part), settings.limit)
    part = samples if settings.shard is None else shard(samples, str(settings.shard))
    if not part:
        cure = "use fewer shards (one takes whole images)" if samples else "give a copy of the data that has rows"
        raise UserError(f"shard={settings.shard} of the {len(samples)} samples of {benchmark.name} is empty; {cure}")
    return part


def cost_of(backbone: Backbone, method: Method, benchmark: Benchmark, samples: list[Sample], prompts: int) -> Cost | None:
    """Cost measured on the first ``prompts`` samples with a readable image; None without any."""
    pairs = []
    for sample in samples:
        with contextlib.suppress(OSError, UserError):
            pairs.append((sample.image(), Asking("image", prompt_of(backbone, benchmark, sample), sample.id, sample.regions)))
        if len(pairs) == prompts:
            break
    return measure_cost(backbone, method, pairs) if pairs else None


def evaluate(
    backbone: Backbone,
    method: Method,
    benchmark: Benchmark,
    batch_size: int | BatchSize = 16,
    limit: int | None = None,
    progress: bool = False,
    samples: list[Sample] | None = None,
    record_log: RecordLog | None = None,
    workers: int = 0,
    devices: Devices | None = None,
) -> tuple[list[Record], list[Skipped]]:
    """Per-sample records of ``method`` on ``samples`` (None: about ``limit`` of the benchmark), and the samples skipped because their
    row or image could not be read, both in the order of ``samples``. ``record_log``, ``devices``: see ``answering.Point``; ``workers``: see
    ``pictures.open_images``."""
    samples = spread(benchmark.samples(), limit) if samples is None else samples
    check_annotation(method, f"benchmark={benchmark.name}", samples)
    point = Point(method, record_log, devices=devices)
    with bar(len(samples), f"{method.name} on {benchmark.name}", progress) as advance:
        skipped = ask(backbone, [point], benchmark, samples, batch_size, advance, workers)
    if skipped:
        print(f"{len(skipped)} of {len(samples)} samples skipped, first {printable(skipped[0]['id'])}: {skipped[0]['why']}")
    return [point.done[sample.id] for sample in samples if sample.id in point.done], skipped
