"""Whether tensors hold nan or inf, at the price of reading each once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch


def first_nonfinite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first of (name, tensor) that holds nan or inf; None where all numbers are finite. Whole numbers and tensors without
    memory are skipped.

    A float32 sum is nan or inf where a term is; where it is one of them by overflow alone, the tensor is looked at number by number. The
    sums of a device are copied to the CPU at once.
    """
    sums: dict[torch.device, list[tuple[int, str, torch.Tensor, torch.Tensor]]] = defaultdict(list)
    for k, (name, tensor) in enumerate(tensors):
        if tensor.is_floating_point() and tensor.device.type != "meta" and tensor.numel():
            held = tensor.detach()
            sums[held.device].append((k, name, held, held.sum(dtype=torch.promote_types(held.dtype, torch.float32))))
    nonfinite = []
    for group in sums.values():
        suspects = (~torch.stack([total.double() if total.device.type != "mps" else total for *_, total in group]).isfinite()).tolist()
        nonfinite += [
            (k, name) for (k, name, held, _), suspect in zip(group, suspects, strict=True) if suspect and not bool(held.isfinite().all())
        ]
    return min(nonfinite)[1] if nonfinite else None
