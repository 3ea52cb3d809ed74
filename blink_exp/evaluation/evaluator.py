"""One configuration on one benchmark: predictions, decisions, scores."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from blink_exp.backbone.memory import check_batch, shared_bytes
from blink_exp.backbone.model import Backbone
from blink_exp.backbone.pictures import check_workers
from blink_exp.benchmarks.base import Benchmark, Judged, Probes, Sample, Submits, shard, spread
from blink_exp.benchmarks.parts import check_part, part_of
from blink_exp.core.method import Method
from blink_exp.errors import UserError, printable
from blink_exp.evaluation import identity, results
from blink_exp.evaluation.answering import Point, ask, prompt_of
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.records import Kept, summary, write_lines
from blink_exp.evaluation.store import pop_shared_note
from blink_exp.evaluation.terminal import bar
from blink_exp.files import json_ready, write_json, write_text


def prepare(cfg: DictConfig) -> tuple[Backbone, Method, Benchmark]:
    """The three objects of an evaluation, with every user error said before any work is done."""
    workers_of(cfg)
    benchmark = prepare_benchmark(cfg)
    backbone, method = prepare_model(cfg)
    check_batch(backbone.model.config, backbone.settings["dtype"], backbone.settings["device"], cfg.batch_size)
    return backbone, method, benchmark


def workers_of(cfg: DictConfig) -> int:
    """Processes that open images, by ``cfg.workers``."""
    return check_workers(cfg.get("workers"), cfg.model.get("device") or "cpu")


def prepare_model(cfg: DictConfig) -> tuple[Backbone, Method]:
    """The backbone of ``cfg.model``, and ``cfg.method`` made for it."""
    from hydra.utils import instantiate

    backbone = instantiate(cfg.model, _convert_="all")
    backbone.shared_bytes = shared_bytes(cfg.get("shared_gb"), backbone.settings["device"])
    return backbone, instantiate(cfg.method, _partial_=True, _convert_="all")(backbone)  # as an argument: Hydra would make a dict of it


def prepare_benchmark(cfg: DictConfig) -> Benchmark:
    """The benchmark, its data taken from ``data_root`` where a copy is there."""
    from hydra.utils import instantiate

    locate(cfg)
    benchmark = instantiate(cfg.benchmark, _convert_="all")
    check_part(cfg.part, benchmark)
    return benchmark


def locate(cfg: DictConfig) -> None:
    """Replaces a hub id in ``cfg.benchmark.path`` by the copy below ``cfg.data_root``, in place."""
    if cfg.data_root is not None and cfg.benchmark.get("path") is not None:
        with open_dict(cfg):
            cfg.benchmark.path = located(cfg.benchmark.path, Path(cfg.data_root))


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


def measure(cfg: DictConfig, out: Path, parts: Path | None = None) -> dict[str, Any]:
    """Evaluates and writes ``config.yaml`` (before), ``records.part`` (during), ``records.jsonl`` and, last, ``metrics.json``. Returns what
    the latter holds. An evaluation that was killed leaves ``records.part``: the same settings in the same folder go on from there.

    ``parts``: the folder of ``records.part``, if it is not ``out``.

    Raises:
        Incomplete: where more than ``cfg.skip_limit`` of the samples were skipped. The answers stay in ``records.part``.
    """
    started = time.time()
    backbone, method, benchmark = prepare(cfg)
    parts = out if parts is None else parts
    write_text(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    settings = results.plain(cfg)
    kept = Kept(parts / "records.part", identity.point_hash(settings, identity.without_images(settings)))
    if isinstance(benchmark, Probes):
        with bar(None, benchmark.name, True) as advance:
            records, skipped = benchmark.probe(backbone, cfg.limit, advance)
        samples: list[Sample] = []
    else:
        samples = chosen(benchmark, cfg)
        records, skipped = evaluate(
            backbone, method, benchmark, cfg.batch_size, samples=samples, progress=True, kept=kept, workers=workers_of(cfg)
        )
    check_complete(records, skipped, cfg.skip_limit)
    cost = cost_of(backbone, method, benchmark, samples, cfg.cost) if cfg.cost else None
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
        "batch_size": cfg.batch_size,
        **backbone.settings,
        **results.provenance(cfg.seed, seconds),
    }
    finished = json_ready(finished)
    write_json(out / "metrics.json", finished)
    kept.remove()
    return finished


def check_complete(records: list[dict[str, Any]], skipped: list[dict[str, str]], limit: float) -> None:
    """Raises Incomplete where no sample could be read, or more than ``limit`` of them were skipped."""
    first = f", first {skipped[0]['id']}: {skipped[0]['why']}" if skipped else ""
    total = len(skipped) + len(records)
    if not records:
        raise Incomplete(f"none of the {total} samples could be read{first}; is benchmark.path the whole copy of the data?")
    if incomplete(len(skipped), len(records), limit):
        share = f"{len(skipped)} of {total} samples ({100 * len(skipped) / total:.1f} %) were skipped"
        raise Incomplete(f"{share}, more than skip_limit={limit:g} allows{first}; bring the data back, or raise skip_limit")


def scored(benchmark: Benchmark, records: list[dict[str, Any]], out: Path) -> dict[str, Any]:
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


def chosen(benchmark: Benchmark, cfg: DictConfig) -> list[Sample]:
    """The samples of a run: about ``cfg.limit`` of them, of which this is one shard. Raises UserError if none is left."""
    samples = spread(part_of(benchmark.samples(), cfg.part), cfg.limit)
    part = samples if cfg.shard is None else shard(samples, str(cfg.shard))
    if not part:
        cure = "use fewer shards (one takes whole images)" if samples else "give a copy of the data that has rows"
        raise UserError(f"shard={cfg.shard} of the {len(samples)} samples of {benchmark.name} is empty; {cure}")
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
    kept: Kept | None = None,
    workers: int = 0,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Per-sample records of ``method`` on ``samples`` (None: about ``limit`` of the benchmark), and the samples skipped because their
    row or image could not be read; both in the samples' order. ``kept``: see ``asking.Point``; ``workers``: see ``pictures.opened``."""
    samples = spread(benchmark.samples(), limit) if samples is None else samples
    point = Point(method, kept)
    with bar(len(samples), f"{method.name} on {benchmark.name}", progress) as advance:
        skipped = ask(backbone, [point], benchmark, samples, batch_size, advance, workers)
    if skipped:
        print(f"{len(skipped)} of {len(samples)} samples skipped, first {printable(skipped[0]['id'])}: {skipped[0]['why']}")
    return [point.done[sample.id] for sample in samples if sample.id in point.done], skipped
