"""The GPU's part of ``bench tokensr``: training steps at the width of LLaVA-1.5-7B (4096-2048-1024-4096), random weights, bf16 autocast."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from bench.shapes import BEFORE, LLAVA_NEXT_7B, TINY, Shape, random_model
from bench.timing import median_seconds
from blink_exp.tokensr import arithmetic
from blink_exp.training.feature_cache import Features
from blink_exp.training.module import TokenSRTraining
from blink_exp.training.pairs import PairBatch

COLUMNS = ["pairs/s", "GPU GB", "in backbone", "MFU", "of matmul"]
IMAGE_TOKEN = "<image>"
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bf16, of the makers' data sheets (SXM)
CASES: tuple[tuple[str, list[int], dict[str, Any]], ...] = (
    ("layer 18", [18], {}),
    ("layers 12-18", list(range(12, 19)), {}),
    ("layers 12-18, channels_last", list(range(12, 19)), {"channels_last": True}),
    ("layers 12-18, checkpoint_activations", list(range(12, 19)), {"checkpoint_activations": True}),
)
ROWS = [name for name, _, _ in CASES] + ["layers 12-18, from the cache", "layers 12-18, data.quadrants=all"]


class Frozen:
    """What a training asks of a backbone, over a LLaVA with random weights; the prompt's opening is random tokens."""

    def __init__(self, shape: Shape, device: str):
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.shape, self.model = shape, random_model(shape, device, dtype)
        self.width, self.grid, self.identity = shape.width, (shape.side, shape.side), "random"
        self.llm = self.model.model.language_model
        opening = SimpleNamespace(input_ids=torch.arange(3, 3 + BEFORE)[None])
        self.processor = SimpleNamespace(image_token=IMAGE_TOKEN, tokenizer=lambda text, return_tensors: opening)

    def prompt(self, question: str) -> str:
        return IMAGE_TOKEN + question


def rows(device: str | None, size: str = "default", pairs: int = 8) -> list[dict[str, Any]]:
    """A row each, its cells empty where there is no ``device``. ``size=small``: tiny shapes, which also a CPU runs."""
    if device is None:
        return [{"what": f"7B width, {name}"} for name in ROWS]
    frozen = Frozen(LLAVA_NEXT_7B if size == "default" else TINY, device)
    fit = min(1.0, (frozen.shape.layers - 1) / 18)  # tiny shapes have fewer layers
    out = []
    for name, layers, options in CASES:
        out.append(case(frozen, name, sorted({round(layer * fit) for layer in layers}), options, device, pairs))
    seven = sorted({round(layer * fit) for layer in range(12, 19)})
    out.append(case(frozen, ROWS[-2], seven, {}, device, pairs, stored=True))
    out.append(case(frozen, ROWS[-1], seven, {}, device, pairs, images=max(1, pairs // 4)))
    return out


def case(
    frozen: Frozen,
    name: str,
    layers: list[int],
    options: dict[str, Any],
    device: str,
    pairs: int,
    stored: bool = False,
    images: int | None = None,
) -> dict[str, Any]:
    """One row. ``stored``: the batch is features in main memory, as from a cache; ``images``: distinct ones of the batch."""
    torch.manual_seed(0)
    cuda = device.startswith("cuda")
    gc.collect()  # the last row's module and optimizer
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with torch.device(device):  # drawn where they stay
        module = TokenSRTraining(frozen, layers, **options).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(module.amplifiers.parameters(), 1e-4)
    batch = batch_of(frozen, pairs, images or pairs)
    if stored:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            features = module.capture(batch)
        held: Any = Features(*(x.cpu().pin_memory() if cuda else x for x in features))
    else:
        held = PairBatch(*(x.to(device) for x in batch))

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            moved = Features(*(x.to(device, non_blocking=True) for x in held)) if stored else held
            loss = module.losses(moved).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def backbone() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            module.frozen(held)

    whole = median_seconds(step, 7, warm=2)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None
    part = 0.0 if stored else median_seconds(backbone, 7, warm=2)
    work = flops(frozen.shape, layers, pairs, 0 if stored else pairs + (images or pairs))
    known = [peak for word, peak in PEAK.items() if cuda and word in torch.cuda.get_device_name(device)]
    return {
        "what": f"{'7B width' if frozen.shape is LLAVA_NEXT_7B else 'tiny'}, {name}",
        "s": whole,
        "pairs/s": pairs / whole,
        "GPU GB": memory,
        "in backbone": part / whole,
        "MFU": work / whole / known[0] if known else None,
        "of matmul": work / whole / product(device) if cuda else None,
    }


def batch_of(frozen: Frozen, pairs: int, images: int) -> PairBatch:
    size = frozen.shape.image_size
    owner = torch.arange(pairs) * images // pairs
    return PairBatch(torch.rand(images, 3, size, size), torch.rand(pairs, 3, size, size), torch.arange(pairs) % 4, owner)


def flops(shape: Shape, layers: list[int], pairs: int, views: int) -> float:
    """Of a step: ``views`` through the frozen backbone, and every module forward and backward. The work of running a checkpointed forward
    pass again does not count, as it is no progress."""
    sizes = arithmetic.Shape(
        width=shape.width,
        mlp=shape.mlp,
        tokens=shape.side**2,
        before=BEFORE,
        vision_width=shape.vision_width,
        vision_layers=shape.vision_layers,
    )
    return views * arithmetic.pass_flops(max(layers), sizes) + pairs * len(layers) * arithmetic.module_flops(sizes)


def product(device: str, side: int = 8192) -> float:
    """FLOP/s of a square bf16 matrix product: what this device gives in practice."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    work: Callable[[], Any] = lambda: a @ b  # noqa: E731
    return 2 * side**3 / median_seconds(work, 10, warm=3)
