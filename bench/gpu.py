"""HERO's Table VIII at the true shapes of LLaVA-NeXT-7B and 13B, and the same columns for Blink, with random weights.

Weights are made on the device itself, images are random pixels: torch and transformers are all that is needed, and no network. What
tokens, arithmetic, memory and time cost does not depend on what weights say; what is answered does, and is not looked at.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import report
from bench.decoding import Fixed, answer, graphed
from bench.meters import peak_bytes, summary, synchronisations
from bench.shapes import BEFORE, BEHIND, LLAVA_NEXT_7B, LLAVA_NEXT_13B, TINY, Prompt, attention_by, prefill
from bench.timing import median_seconds, seconds
from bench.ways import Ground, kv_bytes, lengths
from blink_exp import reference
from blink_exp.backbone.cache_name import CACHE
from blink_exp.errors import UserError, flat
from blink_exp.flops import CPU_ATTENTION

TITLE = "HERO, Table VIII, and Blink, at the true shapes with random weights"
MODELS = {"7b": ("LLaVA-NeXT-7B", LLAVA_NEXT_7B), "13b": ("LLaVA-NeXT-13B", LLAVA_NEXT_13B)}
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROWS = ("LLaVA-NeXT-7B (100%)", "HERO (40%)", "HERO (20%)", "HERO (10%)")
PUBLISHED = {
    "tokens (published)": "tokens",
    "TFLOPs (published)": "tflops",
    "GPU GB (published)": "gpu_memory_gb",
    "KV MiB (published)": "kv_cache_mb",
    "decode tokens/s (published)": "decode_tokens_per_s",
}
COLUMNS = (
    "model",
    "method",
    "tokens (published)",
    "tokens",
    "TFLOPs (published)",
    "TFLOPs",
    "GPU GB (published)",
    "GPU GB",
    "KV MiB (published)",
    "KV MiB",
    "encode ms",
    "scoring ms",
    "prefill ms",
    "prefill ms, FlashAttention",
    "waits in prefill",
    "decode tokens/s (published)",
    "decode tokens/s, generate",
    "decode tokens/s, graph",
    "decode tokens/s, compiled graph",
)
GIB, MIB = 1e9, 2**20
TRANSFORMERS = (5, 23)  # the first whose LLaVA models were seen to take encoded images


@dataclass(frozen=True)
class Case:
    """A row: its name, the tokens of its prompt, the share that HERO keeps (None: all), Blink or no method in the LLM."""

    name: str
    tokens: int
    ratio: float | None = None
    blink: str | None = None  # expanding | scanning
    published: dict[str, Any] | None = None


def cases(model: str, most: int | None = None) -> Iterator[Case]:
    """Table VIII's rows and Blink's. ``most``: tokens of the whole prompt of a toy model, whose visual tokens take the published shares.

    Published values stand beside the 7B's own rows only: Table VIII has no other."""
    text = BEFORE + BEHIND
    rows = [(label, reference.entry("hero", "hero-table-8", label)["values"]) for label in ROWS]
    full = rows[0][1]["tokens"]
    for label, values in rows:
        ratio = None if label == ROWS[0] else int(label.partition("(")[2].rstrip("%)")) / 100
        tokens = values["tokens"] if most is None else text + (values["tokens"] - text) * (most - text) // (full - text)
        shown = {column: values[key] for column, key in PUBLISHED.items()} if model == "7b" and most is None else None
        yield Case("untouched (100 %)" if ratio is None else f"HERO ({ratio:.0%})", tokens, ratio, None, shown)
    for kind in ("scanning", "expanding"):
        yield Case(f"Blink, {kind}", full if most is None else most, None, kind)


def measure(
    size: str = "default",
    device: str = "cuda",
    dtype: str = "bfloat16",
    models: str = "7b,13b",
    decode: str | int = 64,
    repeats: str | int = 5,
    compiled: str = "untouched",
) -> dict[str, Any]:
    """``models``: some of 7b, 13b; ``decode``: tokens that are generated to time decoding; ``compiled``: rows whose decoding is compiled,
    which takes minutes: untouched, all or none; ``size=small device=cpu``: the same code on a toy shape, where there is no GPU. Cells that
    a device cannot fill stay empty. Every row is printed when it is filled, so that a run that is cut off has not been for nothing."""
    chosen = check(size, device, dtype, models, compiled)
    rows: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    notes = [
        "Tokens: the published counts, 61 of them text; the image is one of 2 x 2 tiles, cut to them. HERO with alpha = 1, since a random"
        " model has no text tower.",
        "TFLOPs: PyTorch's counter on the running model. GPU GB: most that was allocated, weights included, in encoding, prefill and"
        " decoding. encode: tower, scoring, choice and projector; scoring: what the choice adds to the tower.",
        "Blink: at layers 12-18 of 32, scaled to the depth; scanning: thresholds never met; expanding: at each of them, TokenSR included."
        " The counter gives a prompt that runs in one piece the full square of its attention, and one that runs in segments less.",
        "waits in prefill: how often the host waited for the device. graph: one decoding step as a CUDA graph over fixed buffers.",
        "Published: LLaVA-NeXT-7B on MME, batch 1, one GPU (the paper names NVIDIA L20), trained weights; it has no 13B row.",
    ]
    for name in chosen:
        title, shape = MODELS[name] if size != "small" else (f"toy for {name}", TINY)
        ground = Ground.of(shape, device, TYPES[dtype])
        most = None if size != "small" else ground.whole().tokens
        filled: Row | None = None
        for case in cases(name, most):
            row = {"model": title, "method": case.name, **(case.published or {})}
            rows.append(row)
            try:
                compiles = compiled == "all" or (compiled == "untouched" and case.ratio is None and case.blink is None)
                filled = Row(ground, case, row, int(decode), int(repeats), notes, compiles)
                with filled.tried("the rest of the row"):
                    filled.fill()
                print(json.dumps(row), flush=True)
                if case.tokens == 2673 and case.ratio is None:
                    with filled.tried("profile"):
                        prompt = filled.encoded()
                        profiles[f"{title}, {case.name}, prefill"] = summary(partial(filled.prefill, prompt), device)
                        profiles[f"{title}, {case.name}, 8 tokens"] = summary(partial(filled.generate, prompt, 8), device)
                        del prompt
            except torch.OutOfMemoryError as error:
                notes.append(f"{title}, {case.name}: out of memory ({flat(error, 120)})")
        del ground, filled  # both hold the weights
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return report.result(TITLE, rows, (), notes, COLUMNS) | {"device": device, "profile": profiles}


def check(size: str, device: str, dtype: str, models: str, compiled: str = "untouched") -> list[str]:
    """The models asked for. Raises UserError for what this machine or this benchmark has not."""
    version = importlib.metadata.version("transformers")
    if tuple(map(int, version.split(".")[:2])) < TRANSFORMERS:
        needed = ".".join(map(str, TRANSFORMERS))
        raise UserError(f"transformers {version} does not take images that are encoded already; install {needed} or newer")
    if compiled not in ("untouched", "all", "none"):
        raise UserError(f"compiled={compiled} is not known; use one of: untouched, all, none")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device={device} is not there: PyTorch {torch.__version__} sees no CUDA device; run bench gpu where there is one,"
            " or its toy on a CPU: python -m bench gpu size=small device=cpu"
        )
    if not device.startswith("cuda") and size != "small":
        raise UserError(f"device={device} cannot hold the true shapes in time; use device=cuda, or size=small")
    if dtype not in TYPES:
        raise UserError(f"dtype={dtype} is not known; use one of: {', '.join(TYPES)}")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # streams and clocks that name none then mean this one
    chosen = models.split(",")
    for name in chosen:
        if name not in MODELS:
            raise UserError(f"models={models} is not known; use one of: {', '.join(MODELS)}, or both with a comma")
    return chosen


@dataclass
class Row:
    """Fills the ``row`` of one ``case``; what a device refuses to do is noted and its cell left empty."""

    ground: Ground
    case: Case
    row: dict[str, Any]
    decode: int
    repeats: int
    notes: list[str]
    compiles: bool = True

    def __post_init__(self):
        self.model, self.device = self.ground.model, str(self.ground.model.device)
        self.method = self.ground.blink(self.case.blink == "expanding") if self.case.blink else None
        self.pruner = self.ground.hero(self.case.ratio) if self.case.ratio else None

    def fill(self) -> None:
        prompt = self.encoded()
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            out = self.prefill(prompt)
        tokens = lengths(out)
        self.row |= {
            "tokens": round(sum(tokens) / len(tokens)),
            "TFLOPs": counter.get_total_flops() / 1e12,
            "KV MiB": kv_bytes(out) / MIB,
            "encode ms": 1e3 * median_seconds(self.encoded, self.repeats),
            "prefill ms": 1e3 * median_seconds(lambda: self.prefill(prompt), self.repeats),
        }
        if self.pruner is not None:
            pruner = self.pruner
            scored = median_seconds(lambda: pruner.select(self.ground.encoding(pruner.needs), ""), self.repeats)
            self.row["scoring ms"] = 1e3 * scored
        self.flash(prompt)
        self.waits(prompt)
        self.decoding(prompt, out)
        del out
        self.row["GPU GB"] = self.most(prompt) / GIB

    def encoded(self) -> Prompt:
        """From pixels to the prompt, cut to the tokens of the case."""
        with torch.no_grad():
            if self.pruner is None:
                prompt = self.ground.whole(real=True)
            else:
                prompt = self.ground.projected(self.ground.encoding(self.pruner.needs, real=True), self.pruner)
        return prompt.cut(min(self.case.tokens, prompt.tokens))

    def prefill(self, prompt: Prompt) -> Any:
        return prefill(self.model, prompt) if self.method is None else self.ground.under(self.method, prompt)

    def flash(self, prompt: Prompt) -> None:
        if self.device.startswith("cuda") and importlib.util.find_spec("flash_attn") is not None:
            with self.tried("FlashAttention"), attention_by(self.model, "flash_attention_2"):
                self.row["prefill ms, FlashAttention"] = 1e3 * median_seconds(lambda: self.prefill(prompt), self.repeats)

    def waits(self, prompt: Prompt) -> None:
        with synchronisations(self.device) as counts:
            self.prefill(prompt)
        if counts:
            self.row["waits in prefill"] = counts[0]

    def decoding(self, prompt: Prompt, out: Any) -> None:
        one, many = (median_seconds(partial(self.generate, prompt, n), self.repeats) for n in (1, 1 + self.decode))
        self.row["decode tokens/s, generate"] = self.decode / max(many - one, 1e-9)
        first = out.logits[:, -1:].argmax(-1)
        for column, compiled in (("decode tokens/s, graph", False), ("decode tokens/s, compiled graph", True))[: 1 + self.compiles]:
            fixed = Fixed(self.model, out[CACHE], first, self.decode + 4)
            with self.tried(column):
                step = graphed(fixed, compiled) if self.device.startswith("cuda") else fixed.step
                took = []
                for _ in range(self.repeats):
                    fixed.rewind(first)
                    took.append(seconds(partial(answer, fixed, 1 + self.decode, step)))
                if self.device.startswith("cuda"):
                    self.row[column] = self.decode / sorted(took)[len(took) // 2]
            del fixed

    def generate(self, prompt: Prompt, tokens: int) -> Any:
        settings = {"max_new_tokens": tokens, "do_sample": False}
        if self.method is None:
            return self.model.generate(**prompt.arguments, **settings)
        with self.ground.attach(self.method, prompt):
            return self.model.generate(**prompt.arguments, **settings)

    def most(self, prompt: Prompt) -> int:
        modules = self.method.amplifiers if self.method is not None else None
        weights = sum(p.nbytes for part in (self.model, modules) if part is not None for p in part.parameters())
        return weights + max(peak_bytes(self.encoded, self.device), peak_bytes(lambda: self.generate(prompt, 2), self.device))

    def tried(self, what: str) -> _Tried:
        return _Tried(f"{self.row['model']}, {self.case.name}: {what}", self.notes)


class _Tried:
    """A block whose failure leaves a cell empty and a note, since it depends on the device's software and not on ours."""

    def __init__(self, what: str, notes: list[str]):
        self.what, self.notes = what, notes

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> bool:
        if error is None or not isinstance(error, Exception) or isinstance(error, torch.OutOfMemoryError):
            return False
        self.notes.append(f"{self.what} did not run here ({flat(error, 120)})")
        return True
