"""The schema of a model."""

from __future__ import annotations

from dataclasses import dataclass

from blink_exp.settings import limits


@dataclass
class Model:
    path: str = limits.text("a hub id or a folder")
    name: str | None = limits.text("a name")
    revision: str | None = limits.text("a branch, tag or commit")
    dtype: str = limits.words("float32", "float16", "bfloat16")
    device: str = limits.text("a device such as cpu, cuda or cuda:0")
    device_map: str | None = limits.words("auto", "balanced", "balanced_low_0", "sequential")
    attn_implementation: str = limits.words("sdpa", "eager", "flash_attention_2")
    quantization: str | None = limits.words("4bit", "8bit")
    pad: bool = limits.flag()
    system_prompt: str | None = limits.words("none", "vicuna_v1")
    clip: str | None = limits.text("a hub id or a folder")


TARGETS: dict[str, type] = {
    "blink_exp.backbone.load.load": Model,
}
