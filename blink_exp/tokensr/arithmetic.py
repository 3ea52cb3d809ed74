"""Memory and floating-point operations of TokenSR's training, computed from shapes, for docs/training.md. Nothing is measured.

python -m blink_exp.tokensr.arithmetic
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blink_exp.tokensr.modules import build

GB = 1e9
BUCKET = 200_000_000  # gradients that DeepSpeed reduces at once (Lightning's default)


@dataclass(frozen=True)
class Shape:
    """A backbone. Values: LLaVA-1.5-7B. ``memory``: bytes of its weights in bf16, as loaded."""

    width: int = 4096
    mlp: int = 11008
    tokens: int = 576  # visual
    before: int = 35  # tokens before the image (vicuna_v1)
    vision_width: int = 1024
    vision_layers: int = 24
    memory: float = 14.1e9


LLAVA_7B = Shape()


def module_parameters(width: int) -> int:
    """Parameters of one ``conv`` module, counted on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in build("conv", width).parameters())


def bytes_a_parameter(strategy: str, devices: int) -> float:
    """Bytes of a device for each trained parameter at an optimizer step.

    ``ddp`` (and one device alone): float32 weights 4, gradients 4, Adam's two moments 8, autocast's bf16 copy of the weights 2. ZeRO:
    bf16 weights 2 and gradients 2, and of its share float32 weights 4, gradients 4 while stepping, moments 8; stage 2 keeps the bf16
    gradients of its share only.
    """
    if strategy in ("auto", "ddp"):
        return 4 + 4 + 8 + 2
    return 2 + 2 / (devices if strategy == "deepspeed_zero2" else 1) + (4 + 4 + 8) / devices


def activation_bytes(pairs: int, modules: int) -> float:
    """Bytes that autograd keeps for ``pairs`` pairs of a device at once, and the captured states of both views.

    For each token and module: bf16 inputs and outputs of the three convolutions and two ReLUs (d + d/2 + d/2 + d/4 + d/4 + d), and
    float32 log-probabilities of student and teacher (2 d).
    """
    d, tokens = LLAVA_7B.width, pairs * LLAVA_7B.tokens
    saved = tokens * (2 * 3.5 * d + 4 * 2 * d)
    captured = 2 * tokens * 2 * d
    return modules * (saved + captured)


def memory(strategy: str, devices: int, modules: int) -> dict[str, float]:
    """{part: GB of a device} for steps of 8 pairs; ``total`` is a lower bound, without kernels' workspaces, temporary tensors and
    fragmentation."""
    n = modules * module_parameters(LLAVA_7B.width)
    parts = {
        "backbone": LLAVA_7B.memory / GB,
        "trained": n * bytes_a_parameter(strategy, devices) / GB,
        "buckets": 2 * 2 * min(BUCKET, n) / GB if strategy.startswith("deepspeed") else 0.0,  # two, as reducing overlaps with the pass
        "activations": activation_bytes(max(1, 8 // devices), modules) / GB,
    }
    return parts | {"total": sum(parts.values())}


def pass_flops(last_layer: int, shape: Shape = LLAVA_7B) -> float:
    """FLOPs of one view through the frozen model to the input of ``last_layer`` (0-based): 2 a weight and token, 4 T^2 d for attention."""
    d, t, v = shape.width, shape.tokens + shape.before, shape.vision_width
    llm = last_layer * (2 * t * (4 * d * d + 3 * d * shape.mlp) + 4 * t * t * d)
    patches = shape.tokens + 1
    vision = shape.vision_layers * (2 * patches * 12 * v * v + 4 * patches * patches * v)
    return llm + vision + 2 * shape.tokens * (v * d + d * d)


def module_flops(shape: Shape = LLAVA_7B) -> float:
    """FLOPs of one ``conv`` module on one pair, forward and backward. Its input needs no gradient, so the first convolution's backward pass
    is half of the others'."""
    d = shape.width
    first, rest = 25 * d * (d // 2), 9 * (d // 2) * (d // 4) + (d // 4) * d
    return 2 * shape.tokens * (2 * first + 3 * rest)


def pair_flops(layers: list[int]) -> float:
    """FLOPs of one training pair: both views up to the last layer, and every module."""
    return 2 * pass_flops(max(layers)) + len(layers) * module_flops()


def memory_table() -> list[str]:
    """Rows of the table in docs/training.md."""
    rows = ["| | GPUs | backbone | trained, one | total, one | trained, seven | total, seven |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, strategy in (("DDP (1: `trainer=gpu`)", "ddp"), ("ZeRO-1", "deepspeed_zero1"), ("ZeRO-2", "deepspeed_zero2")):
        for devices in (1, 2, 8):
            one, seven = memory(strategy, devices, 1), memory(strategy, devices, 7)
            cells = (one["backbone"], one["trained"], one["total"], seven["trained"], seven["total"])
            rows.append(f"| {name} | {devices} | " + " | ".join(f"{x:.1f}" for x in cells) + " |")
    return rows


def time_table(images: int, throughput: float) -> list[str]:
    """Rows of the second table: hours of an epoch over ``images`` pairs at ``throughput`` FLOP/s a GPU."""
    rows = ["| layers | TFLOP a pair | TFLOP a step of 8 | 1 GPU | 2 GPUs | 8 GPUs |", "|---|---:|---:|---:|---:|---:|"]
    for name, layers in (("12", [12]), ("18", [18]), ("12-18", list(range(12, 19)))):
        flops = pair_flops(layers)
        hours = [images * flops / throughput / n / 3600 for n in (1, 2, 8)]
        rows.append(f"| {name} | {flops / 1e12:.1f} | {8 * flops / 1e12:.0f} | " + " | ".join(f"{h:.1f} h" for h in hours) + " |")
    return rows


if __name__ == "__main__":
    print("\n".join([*memory_table(), "", *time_table(378_797, 125e12)]))
