"""How long an answer takes: tower, choice of tokens, prefill, decoding and peak memory, of each method at one budget.

Beside the untouched model on the fastest kernel at hand. A method that saves arithmetic can be slower than none: where its choice takes
longer than it saves, or where the kernels that it needs are slower. The row says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from bench import report
from bench.meters import peak_bytes
from bench.methods import ground_of
from bench.shapes import Prompt, attention_by, packed, prefill
from bench.timing import clock_of, compared, rounds
from bench.ways import HIGH, LOW, Ground, lengths
from blink_exp.backbone.encode import encode
from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.method import Method
from blink_exp.core.views import all_tokens
from blink_exp.errors import UserError, nearest
from blink_exp.methods import (
    cdpruner,
    controls,
    dart,
    divprune,
    fastervlm,
    fastv,
    globalcom2,
    hired,
    pyramiddrop,
    sparsevlm,
    visionzip,
    vispruner,
)
from blink_exp.methods.budgets import nominal_tokens, token_share
from blink_exp.methods.hero import Hero

TITLE = "Latency of an answer, by stage"
UNTOUCHED = "none"
KERNELS = {"sdpa": "SDPA", "flash_attention_2": "FlashAttention"}
COLUMNS = (
    "method",
    "tokens a layer",
    "tower ms",
    "selection ms",
    "prefill ms",
    "decode ms/token",
    "first token ms",
    "first token / none",
    "± of it",
    "answer ms",
    "answer / none",
    "peak MB",
)
QUESTION = "what is in the picture?"


class RandomClip:
    """Stands in for CLIP's text tower and projections, which a random model lacks; texts are embedded beforehand everywhere."""

    def __init__(self, width: int, projection: int, device: Any):
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(width, projection, generator=generator).to(device)
        self.text = torch.randn(1, projection, generator=generator).to(device)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        return states.float() @ self.weights

    def embed_text(self, text: str) -> torch.Tensor:
        return self.text[0]

    def embed_pieces(self, text: str, rule: str) -> torch.Tensor:
        return self.text


def methods_at(backbone: Any, tokens: int) -> dict[str, Callable[[], Method]]:
    """Makers of every method that drops tokens, at a budget of ``tokens`` a layer."""

    def hero() -> Method:
        return Method(name="hero", pruner=Hero(token_share(backbone, 1.0, tokens), LOW, HIGH))

    configure: dict[str, Callable[..., Method]] = {
        "visionzip": visionzip.configure,
        "divprune": divprune.configure,
        "cdpruner": cdpruner.configure,
        "vispruner": vispruner.configure,
        "fastervlm": fastervlm.configure,
        "globalcom2": globalcom2.configure,
        "hired": hired.configure,
        "pyramiddrop": pyramiddrop.configure,
        "dart": dart.configure,
        "fastv": fastv.configure,
        "sparsevlm": partial(sparsevlm.configure, schedule=None),
    }
    drawn = partial(controls.random, backbone, ratio=1.0, tokens=tokens, newline_policy="valid_rows", seed=0)
    made = {name: partial(make, backbone, retention_ratio=1.0, tokens=tokens) for name, make in configure.items()}
    return {"hero": hero, **made, "sparsevlm": partial(made["sparsevlm"], retention_ratio=None), "random": drawn}


@dataclass
class Case:
    """One way to an answer. Each stage takes what the one before gave once, so that it can be timed apart."""

    ground: Ground
    clip: RandomClip
    decoded: int
    method: Method = field(default_factory=Method)
    kernel: str = "sdpa"

    def __post_init__(self) -> None:
        self.needs = EncoderRequirements() if self.method.pruner is None else self.method.pruner.needs
        self.encoding = self.tower()
        self.prompt = self.selection()
        out = self.prefill()
        by_layer = lengths(out)
        text = self.prompt.tokens - len(self.prompt.features)
        self.tokens = sum(by_layer) / len(by_layer) - text
        self.peak = peak_bytes(lambda: (self.selection(), self.prefill()), str(self.ground.model.device))

    @torch.no_grad()
    def tower(self) -> Encoding:
        return encode(self.ground.model, self.ground.pixels, [self.ground.views], self.needs, self.clip)[0]

    @torch.no_grad()
    def selection(self) -> Prompt:
        """Choosing, and projecting what was chosen; without a pruner projecting alone."""
        pruner = self.method.pruner
        kept = pruner.select(self.encoding, QUESTION) if pruner is not None else None
        policy = pruner.newline_policy if pruner is not None else "valid_rows"
        features, _ = packed(self.ground.model, self.encoding, kept or all_tokens(self.ground.views), policy)
        return Prompt.around(self.ground.model, features)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.kernel != "sdpa":
                stack.enter_context(attention_by(self.ground.model, self.kernel))
            if self.method.policy is not None:
                stack.enter_context(self.ground.attach(self.method, self.prompt))
            yield

    def prefill(self) -> Any:
        with self.attached():
            return prefill(self.ground.model, self.prompt)

    def generate(self, tokens: int) -> Any:
        settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
        with self.attached(), torch.no_grad():
            return self.ground.model.generate(**self.prompt.arguments, **settings)

    def works(self, name: str) -> dict[str, Callable[[], Any]]:
        stages = {"tower": self.tower, "selection": self.selection}
        return {f"{stage} {name}": work for stage, work in stages.items()} | {
            f"first {name}": partial(self.generate, 1),
            f"answer {name}": partial(self.generate, 1 + self.decoded),
        }


def measure(
    size: str = "default",
    device: str = "cpu",
    repeats: str | int | None = None,
    clock: str = "wall",
    method: str = "all",
    tokens: str | int | None = None,
    decode: str | int = 16,
) -> dict[str, Any]:
    """``method``: one, several with commas, or all; ``tokens``: visual tokens a layer of an image's nominal number, by default two ninths
    (640 of 2,880); ``decode``: tokens of an answer behind its first. Others: as ``bench.methods``."""
    watch = clock_of(clock, device)
    ground, count = ground_of(size, device, repeats)
    backbone = SimpleNamespace(
        model=ground.model, depth=ground.depth, grid=(ground.views.side, ground.views.side), check=lambda needs: None
    )
    budget = whole("tokens", tokens if tokens is not None else 2 * nominal_tokens(backbone) // 9)
    answer = whole("decode", decode)
    makers = methods_at(backbone, budget)
    names = list(makers) if method == "all" else method.split(",")
    for name in names:
        if name not in makers:
            raise UserError(f"method={name} is not timed here; {nearest(name, makers)}")
    clip = RandomClip(ground.shape.vision_width, 768, ground.model.device)
    with_flash = device.startswith("cuda") and importlib.util.find_spec("flash_attn") is not None
    kernels = [kernel for kernel in KERNELS if kernel == "sdpa" or with_flash]
    cases = {f"{UNTOUCHED}, {KERNELS[kernel]}": Case(ground, clip, answer, kernel=kernel) for kernel in kernels}
    untouched = list(cases)
    cases |= {name: Case(ground, clip, answer, makers[name]()) for name in names}
    works = {key: work for name, case in cases.items() for key, work in case.works(name).items()}
    taken = rounds(works, count, clock=watch)

    def total(name: str, last: str) -> list[float]:
        return [sum(parts) for parts in zip(*(taken[f"{stage} {name}"] for stage in ("tower", "selection", last)), strict=True)]

    fastest = min(untouched, key=lambda name: median(total(name, "first")))
    rows = []
    for name, case in cases.items():
        one, many = taken[f"first {name}"], taken[f"answer {name}"]
        first = compared(total(name, "first"), total(fastest, "first"))
        whole_answer = compared(total(name, "answer"), total(fastest, "answer"))
        row = {"method": name, "tokens a layer": round(case.tokens, 1), "peak MB": case.peak / 2**20}
        row |= {f"{stage} ms": 1e3 * median(taken[f"{stage} {name}"]) for stage in ("tower", "selection")}
        row |= {"prefill ms": 1e3 * median(one), "decode ms/token": 1e3 * (median(many) - median(one)) / answer}
        row |= {"first token ms": 1e3 * first.first, "first token / none": first.ratio, "± of it": first.spread}
        rows.append(row | {"answer ms": 1e3 * whole_answer.first, "answer / none": whole_answer.ratio})
    slower = [row["method"] for row in rows if row["method"] not in untouched and row["first token / none"] > 1 + row["± of it"]]
    notes = [
        f"{ground.shape.layers} layers of width {ground.shape.width}, {len(cases[fastest].prompt.features):,} visual tokens untouched,"
        f" budget {budget} a layer, {str(ground.model.dtype).removeprefix('torch.')}, random weights, batch 1",
        f"rounds: {count}, by {clock} clock; all stages take turns.",
        f"none: {fastest}. selection: choosing, and projecting what is kept; of methods inside the LLM it is part of the prefill."
        f" answer: the first token and {answer} more. peak: tensors beyond the weights, behind the tower.",
        f"Slower than the untouched model up to the first token: {', '.join(slower) or 'none'}.",
    ]
    return report.result(TITLE, rows, [], notes, COLUMNS) | {"device": device}


def whole(name: str, value: str | int) -> int:
    if not str(value).isdigit() or int(value) < 1:
        raise UserError(f"{name}={value} is no number of tokens; use 1 or more")
    return int(value)
