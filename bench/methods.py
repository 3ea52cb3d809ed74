"""Methods at the speed of their arithmetic: each beside the untouched model, beside the stock decoder fed as many tokens, and beside the
usual way to read attention. All at a shape where arithmetic dominates, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import reading, report
from bench.meters import arithmetic, peak_bytes, summary
from bench.shapes import LLAVA_NEXT_7B, MEDIUM, TINY, Shape, prefill
from bench.timing import Clock, clock_of, compared, rounds
from bench.ways import Ground, fed, kv_bytes, lengths
from blink_exp.core.method import Method
from blink_exp.errors import UserError

TITLE = "Methods beside the untouched model: prefill, memory, scoring"
RATIOS = (0.4, 0.2, 0.1)  # HERO's
BASELINE_RATIO = 0.2
UNTOUCHED, SCANNING, EXPANDING = "untouched", "Blink, thresholds never met", "Blink, expanding"
SCAN, EXPAND, SPEED = 1.02, 1.05, 0.97
COLUMNS = (
    "method",
    "tokens a layer",
    "FLOPs / untouched",
    "seconds",
    "time / untouched",
    "± of it",
    "time / FLOPs",
    "fed / method",
    "peak MB",
    "KV MB",
    *reading.COLUMNS,
)


@dataclass
class Timed:
    """One way: its ``work``, what it is to be as fast as (``limit``), and what is known of it before anything is timed."""

    work: Callable[[], Any]
    limit: Callable[[], Any] | None
    flops: int
    row: dict[str, Any]

    @classmethod
    def of(
        cls,
        ground: Ground,
        name: str,
        work: Callable[[], Any],
        limit: Callable[[list[int]], Callable[[], Any]] | None = None,
        amplifiers: torch.nn.ModuleDict | None = None,
    ) -> Timed:
        """Runs ``work`` twice: counted, then under the memory meter. ``limit``: makes the limit from the tokens that each layer held."""
        with arithmetic(ground.model, amplifiers) as flops:
            out = work()
        tokens = lengths(out)
        row = {"method": name, "tokens a layer": round(sum(tokens) / len(tokens)), "KV MB": kv_bytes(out) / 2**20}
        del out
        row["peak MB"] = peak_bytes(work, str(ground.model.device)) / 2**20
        return cls(work, limit(tokens) if limit else None, flops[0], row)


def measure(
    size: str = "default",
    device: str = "cpu",
    repeats: str | int | None = None,
    profiled: str | bool = True,
    usual: str | bool = True,
    clock: str = "wall",
) -> dict[str, Any]:
    """``size``: ``small`` is a toy model in seconds; ``device``: a CUDA device takes the 7B shape in bfloat16; ``repeats``: rounds of all
    ways; ``profiled``: whether the untouched prefill and Blink's are profiled; ``usual``: whether the usual way to read attention is run,
    which takes longest; ``clock``: ``wall`` or ``cpu`` (see ``clock_of``)."""
    watch = clock_of(clock, device)
    ground, count = ground_of(size, device, repeats)
    ways = in_llm(ground) | before_llm(ground)
    works = {f"{name}{end}": work for name, w in ways.items() for end, work in (("", w.work), (", fed", w.limit)) if work}
    taken = rounds(works, count, clock=watch)  # each beside what it is set against
    bars = [line for name in ways for line in compare(ways, taken, name)]
    rows = {name: way.row for name, way in ways.items()}
    bars += reading.scoring(ground, rows, pruners(ground), max(1, count // 2), watch)
    if wanted(usual):
        bars += reading.against_usual(ground, rows, policies(ground), pruners(ground), max(1, count // 2), watch)
    if wanted(usual) and device == "cpu":
        bars += of_more_heads(ground.shape, rows, max(1, count // 2), watch)
    notes = [
        f"{ground.shape.layers} layers of width {ground.shape.width}, CLIP of {ground.shape.vision_layers} layers of width"
        f" {ground.shape.vision_width}, {len(ground.whole().features):,} visual tokens, {str(ground.model.dtype).removeprefix('torch.')},"
        f" random weights, rounds: {count}, by {clock} clock; baselines keep {BASELINE_RATIO:.0%}",
        "FLOPs: HERO's formula with causal attention, TokenSR included. fed / method: seconds of the stock layers that are simply given"
        " as many tokens, over the method's; 1 is the limit.",
        "peak: tensors beyond the weights, of methods before the LLM behind the tower. usual: eager attention, output_attentions=True.",
    ]
    result = report.result(TITLE, list(rows.values()), bars, notes, COLUMNS) | {"device": device}
    if wanted(profiled):
        result["profile"] = {name: summary(ways[name].work, device) for name in (UNTOUCHED, EXPANDING)}
    return result


def wanted(setting: str | bool) -> bool:
    return str(setting).lower() != "false"


def of_more_heads(shape: Shape, rows: dict[str, dict[str, Any]], repeats: int, clock: Clock) -> list[dict[str, Any]]:
    """Blink's scan against the usual way once more, with twice as many heads of half the width: every head has a matrix of its own, so
    how dear they are depends on how many there are."""
    finer = Ground.of(replace(shape, heads=2 * shape.heads))
    name = f"{SCANNING}, {finer.shape.heads} heads of {shape.width // finer.shape.heads}"
    rows[name] = {"method": name}
    return reading.against_usual(finer, rows, {name: finer.blink(expands=False)}, {}, repeats, clock)


def ground_of(size: str, device: str, repeats: str | int | None) -> tuple[Ground, int]:
    """The model that ``size`` and ``device`` ask for, and the number of rounds."""
    words = str(repeats if repeats is not None else 2 if size == "small" else 5)
    if not words.isdigit() or int(words) < 1:
        raise UserError(f"repeats={repeats} times nothing; use 1 or more")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device} is not there: PyTorch {torch.__version__} sees no CUDA device; use device=cpu")
    if size == "small":
        return Ground.of(TINY, device), int(words)
    if device.startswith("cuda"):
        return Ground.of(LLAVA_NEXT_7B, device, torch.bfloat16), int(words)
    return Ground.of(MEDIUM, device), int(words)


def policies(ground: Ground) -> dict[str, Method]:
    """The methods that read attention in the LLM."""
    return {SCANNING: ground.blink(expands=False), **ground.policies(BASELINE_RATIO)}


def pruners(ground: Ground) -> dict[str, Any]:
    """The methods that choose before it."""
    return {f"HERO, R = {ratio}": ground.hero(ratio) for ratio in RATIOS} | ground.pruners(BASELINE_RATIO)


def in_llm(ground: Ground) -> dict[str, Timed]:
    """The untouched model, and the methods that work on the whole prompt. The projector is part of every way."""

    def layers_fed(tokens: list[int]) -> Callable[[], Any]:
        return lambda: fed(ground.model, tokens, ground.whole())

    timed = {UNTOUCHED: Timed.of(ground, UNTOUCHED, ground.vanilla)}
    methods = {SCANNING: ground.blink(expands=False), EXPANDING: ground.blink(expands=True), **ground.policies(BASELINE_RATIO)}
    for name, method in methods.items():
        limit = None if name in (SCANNING, EXPANDING) else layers_fed
        timed[name] = Timed.of(ground, name, partial(ground.under, method), limit, method.amplifiers)
    return timed


def before_llm(ground: Ground) -> dict[str, Timed]:
    """The methods that choose before the LLM: scoring behind the tower, projecting what is kept, and prefill."""

    def prompt_fed(tokens: list[int]) -> Callable[[], Any]:
        return lambda: prefill(ground.model, ground.fewer(tokens[0]))

    def work(pruner: Any) -> Callable[[], Any]:
        return lambda: prefill(ground.model, ground.pruned(pruner))

    return {name: Timed.of(ground, name, work(pruner), prompt_fed) for name, pruner in pruners(ground).items()}


def compare(ways: dict[str, Timed], taken: dict[str, list[float]], name: str) -> list[dict[str, Any]]:
    """Fills a way's row from the seconds that the rounds took, and gives the bars that follow."""
    way, base = ways[name], ways[UNTOUCHED]
    against, flops = compared(taken[name], taken[UNTOUCHED]), way.flops / base.flops
    way.row |= {"FLOPs / untouched": flops, "seconds": against.first, "time / untouched": against.ratio, "± of it": against.spread}
    way.row["time / FLOPs"] = against.ratio / flops
    if name == SCANNING:
        return [report.bar("Blink's scan, time / untouched", against.ratio, SCAN)]
    if name == EXPANDING:
        return [report.bar("Blink with expansions, time ratio / FLOP ratio", against.ratio / flops, EXPAND)]
    if way.limit is None:
        return []
    way.row["fed / method"] = compared(taken[f"{name}, fed"], taken[name]).ratio
    return [report.bar(f"{name}: speed-up as a share of what the stock decoder gains", way.row["fed / method"], SPEED, at_most=False)]
