"""What torch's FLOP counter lacks: the attention kernel of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """FLOPs of one attention from the shapes of its inputs."""
    return int(sdpa_flop_count(query, key, value))


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}  # for ``FlopCounterMode(custom_mapping=...)``
