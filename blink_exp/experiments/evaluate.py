"""One configuration on one benchmark: predictions, decisions, scores."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from blink_exp.backbone.load import Backbone
from blink_exp.benchmarks.base import Benchmark, Sample, spread
from blink_exp.errors import UserError
from blink_exp.experiments import results
from blink_exp.methods.base import Method
from blink_exp.sequence import Drop, Expand


def run(cfg: DictConfig) -> dict[str, float]:
    """evaluate.py: measures ``cfg``, writes the output folder, prints a table. Returns the scores by name."""
    from hydra.core.hydra_config import HydraConfig

    out = Path(HydraConfig.get().runtime.output_dir)
    finished = measure(cfg, out)
    show(finished)
    print(f"written to {out}")
    return {k: v["value"] for k, v in finished["scores"].items()}


def prepare(cfg: DictConfig) -> tuple[Backbone, Method, Benchmark]:
    """The three objects of an evaluation, with every user error said before any work is done."""
    from hydra.utils import instantiate

    if cfg.batch_size < 1:
        raise UserError(f"batch_size={cfg.batch_size} runs nothing; use 1 or more")
    if cfg.limit is not None and cfg.limit < 1:
        raise UserError(f"limit={cfg.limit} leaves no sample; use 1 or more, or null for all")
    backbone = instantiate(cfg.model, _convert_="all")
    method = instantiate(cfg.method, _partial_=True, _convert_="all")(backbone)  # as an argument: Hydra would turn a dataclass into a dict
    return backbone, method, instantiate(cfg.benchmark, _convert_="all")


def measure(cfg: DictConfig, out: Path) -> dict[str, Any]:
    """Evaluates and writes ``config.yaml`` (before), ``records.jsonl`` and, last, ``metrics.json``. Returns what the latter holds."""
    from blink_exp.tracking import tracker

    started = time.time()
    backbone, method, benchmark = prepare(cfg)
    results.write(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    settings = results.plain(cfg)
    with tracker(settings, out, name=f"{method.name}-{benchmark.name}") as track:
        records, skipped = evaluate(backbone, method, benchmark, cfg.batch_size, cfg.limit, progress=True)
        scores = benchmark.score(records) if records else {}
        cost = cost_of(backbone, method, benchmark, cfg.cost) if records and cfg.cost else None
        finished = {
            "backbone": backbone.identity,
            "method": method.name,
            "benchmark": benchmark.name,
            "layers": list(method.policy.layers) if method.policy else [],
            "scores": {k: asdict(v) for k, v in scores.items()},
            "blink": summary(records, backbone.grid[0] * backbone.grid[1]),
            "cost": cost,
            "samples": len(records),
            "skipped": skipped,
            "batch_size": cfg.batch_size,
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
            "device": str(backbone.model.device),
            **results.provenance(cfg.seed, time.time() - started),
        }
        results.write(out / "records.jsonl", "".join(json.dumps(r) + "\n" for r in records))
        results.write_json(out / "metrics.json", finished)
        track({k: v.value for k, v in scores.items()})
    return finished


def cost_of(backbone: Backbone, method: Method, benchmark: Benchmark, prompts: int) -> dict[str, Any] | None:
    """The cost meter over the first ``prompts`` samples whose image opens."""
    from blink_exp.experiments.cost import measure_cost

    asked = []
    for sample in benchmark.samples():
        with contextlib.suppress(OSError):
            asked.append((sample.image(), benchmark.prompt(sample)))
        if len(asked) == prompts:
            break
    return measure_cost(backbone, method, asked) if asked else None


@torch.no_grad()
def evaluate(
    backbone: Backbone, method: Method, benchmark: Benchmark, batch_size: int = 16, limit: int | None = None, progress: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Per-sample records of ``method`` on ``benchmark``, and the samples skipped because their image could not be read."""
    samples = spread(benchmark.samples(), limit)
    records: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    with method.attach(backbone.model) as attached, bar(len(samples), f"{method.name} on {benchmark.name}", progress) as advance:
        for start in range(0, len(samples), batch_size):
            batch, images = [], {}
            for sample in samples[start : start + batch_size]:
                try:
                    if sample.image_id not in images:
                        images[sample.image_id] = sample.image()
                    batch.append(sample)
                except OSError as error:
                    skipped.append({"id": sample.id, "why": " ".join(str(error).split())})
            if batch:
                if attached is not None:
                    attached.samples = [sample.id for sample in batch]
                known = {s.image_id: f"{getattr(benchmark, 'path', None)}:{s.image_id}" for s in batch}  # one id, two folders: two images
                seen = {key: images[image_id] for image_id, key in known.items()}
                asked = [(known[sample.image_id], benchmark.prompt(sample)) for sample in batch]
                visual = backbone.visual(seen, asked, method.pruner, method.recall)
                if attached is not None:
                    attached.images = [[v.shown] for v in visual]
                answers = backbone.generate([v.features for v in visual], [question for _, question in asked], benchmark.max_new_tokens)
                for b, (sample, prediction) in enumerate(zip(batch, answers, strict=True)):
                    decisions = [r for r in attached.records if r.row == b] if attached is not None else []
                    entering = {"visual_tokens": len(visual[b].source) - visual[b].newlines, "newline_tokens": visual[b].newlines}
                    records.append(record(benchmark, sample, prediction, decisions) | entering)
            advance(min(batch_size, len(samples) - start))
    if skipped:
        print(f"{len(skipped)} of {len(samples)} samples skipped, first {skipped[0]['id']}: {skipped[0]['why']}")
    return records, skipped


def record(benchmark: Benchmark, sample: Sample, prediction: str, decisions: list[Any]) -> dict[str, Any]:
    return {
        "id": sample.id,
        "image_id": sample.image_id,
        "category": sample.category,
        "question": benchmark.prompt(sample),
        "answer": sample.answer,
        "prediction": prediction,
        "correct": benchmark.correct(sample, prediction),
        "regions": sample.regions,
        "layers": [
            {
                "layer": d.scan.layer,
                "image": d.scan.image,
                "rho": None if d.scan.rho is None else round(d.scan.rho, 5),
                "region": d.decision.region if isinstance(d.decision, Expand) else d.scan.region,
                "decision": type(d.decision).__name__.lower(),
                "effective": not isinstance(d.decision, Drop) or d.scan.expanded,
                "visual_tokens": d.visual_tokens,
            }
            for d in decisions
        ],
    }


def summary(records: list[dict[str, Any]], visual: int) -> dict[str, Any]:
    """By layer: mean rho, shares of expansions and of drops that had something to drop, mean visual tokens."""
    layers: dict[int, list[dict[str, Any]]] = {}
    for r in records:
        for step in r["layers"]:
            layers.setdefault(step["layer"], []).append(step)
    out = {}
    for layer, steps in sorted(layers.items()):
        rho = [s["rho"] for s in steps if s["rho"] is not None]
        out[layer] = {
            "rho": round(sum(rho) / len(rho), 4) if rho else None,
            "expand": sum(s["decision"] == "expand" for s in steps) / len(steps),
            "drop": sum(s["decision"] == "drop" and s["effective"] for s in steps) / len(steps),
            "visual_tokens": sum(s["visual_tokens"] for s in steps) / len(steps),
        }
    return {"visual_tokens_of_the_image": visual, "layers": out}


def show(finished: dict[str, Any]) -> None:
    """The scores as a table on the terminal."""
    from rich.table import Table

    table = Table(title=f"{finished['method']} on {finished['benchmark']} (measured here, {finished['backbone']})")
    for column in ("score", "value", "stderr", "samples"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, score in finished["scores"].items():
        stderr = "" if score["stderr"] is None else f"{score['stderr']:.2f}"
        table.add_row(name, f"{score['value']:.2f}", stderr, str(score["samples"]))
    console = results.console()
    console.print(table)
    if finished["layers"]:
        tokens = [v["visual_tokens"] for v in finished["blink"]["layers"].values()]
        console.print(f"layers {finished['layers']}, visual tokens by layer {[round(t) for t in tokens]}", highlight=False)
    if finished["cost"]:
        console.print(cost_line(finished["cost"]), highlight=False)
    if finished["skipped"]:
        console.print(f"{len(finished['skipped'])} samples skipped (see metrics.json)")


def cost_line(cost: dict[str, Any]) -> str:
    """What a prompt costs, in words."""
    layers = cost["tokens_by_layer"]
    return (
        f"a prompt: {cost['visual_tokens']:.0f} of {cost['visual_tokens_nominal']:.0f} visual tokens enter the LLM"
        f" (+ {cost['newline_tokens']:.0f} newlines), {sum(layers) / len(layers):.0f} tokens a layer on average;"
        f" prefill {cost['prefill_flops_formula'] / 1e9:.2f} GFLOPs by formula, {cost['prefill_flops_counted'] / 1e9:.2f} counted;"
        f" {cost['kv_bytes'] / 2**20:.2f} MiB of keys and values; encode {1e3 * cost['encode_seconds']:.0f} ms,"
        f" prefill {1e3 * cost['prefill_seconds']:.0f} ms, decode {cost['decode_tokens_per_second']:.0f} tokens/s"
    )


class bar:
    """A progress bar on a terminal, silence elsewhere; gives a function that advances it."""

    def __init__(self, total: int, title: str, shown: bool):
        from rich.progress import Progress

        self.progress = Progress(transient=True, disable=not shown)
        self.total, self.title = total, title

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        task = self.progress.add_task(self.title, total=self.total)
        return lambda n: self.progress.advance(task, n)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
