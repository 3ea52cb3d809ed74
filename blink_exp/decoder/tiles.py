"""Batches that leave every row's numbers as they are when it is alone, bit for bit: on a CPU, where a batch changes its last digits.

A CPU's matrix product adds up most rows in one order and the one to three that are left behind whole tiles in another; a sigmoid of the
elements left behind whole vectors is another function. Both are therefore counted in whole tiles. Padding moves the sums over keys, so
there rows of one length are a batch. On other devices nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Rows
from typing import TypeVar

import torch
from torch.nn import functional as F

TILE = 4  # rows of the kernels that MKL and oneDNN divide products into
FEW = 16  # rows; more have whole tiles for each of up to eight threads
VECTORS = 64  # elements of float32; loops over two vectors of 16

K = TypeVar("K", bound=Hashable)


def independent(x: torch.Tensor) -> bool:
    """Whether rows on the device of ``x`` are kept independent of their batch: on a CPU, to the last bit in float32."""
    return x.device.type == "cpu"


def filled(x: torch.Tensor, dim: int) -> torch.Tensor:
    """``x`` with zeros behind its rows, which are those of dimension ``dim`` < 0, up to whole tiles."""
    rest = -x.shape[dim] % TILE
    return F.pad(x, (0, 0) * (-1 - dim) + (0, rest)) if rest and independent(x) else x


def filled_indices(indices: torch.Tensor) -> torch.Tensor:
    """(n,) ``indices`` and behind them repetitions of the first one, up to whole tiles."""
    rest = -len(indices) % TILE if independent(indices) else 0
    return torch.cat([indices, indices[:1].expand(rest)]) if rest else indices


def in_tiles(rows: Rows[K]) -> list[K]:
    """``rows`` behind repetitions of the first one, so that they are whole tiles."""
    return [rows[0]] * (-len(rows) % TILE) + list(rows) if rows else []


def linear(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """``layer`` of (..., width) ``x``, whose rows are filled up to whole tiles."""
    rows = x.flatten(0, -2)
    out: torch.Tensor = layer(filled(rows, -2))[: len(rows)].unflatten(0, x.shape[:-1])
    return out


def whole(tokens: int, rows: int, x: torch.Tensor) -> int:
    """``tokens`` of each of ``rows``, or as many as are whole tiles where a matrix product of them all would have few rows."""
    return tokens + -tokens % TILE if rows * tokens < FEW and independent(x) else tokens


def elementwise(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """``function`` of tensors of one shape, element by element in whole vectors."""
    if not independent(inputs[0]):
        return function(*inputs)
    size = inputs[0].numel()
    rest = -size % VECTORS
    flat = (F.pad(x.flatten(), (0, rest)) if rest else x.flatten() for x in inputs)
    return function(*flat)[:size].view(inputs[0].shape)


def by_value(values: Rows[K]) -> dict[K, list[int]]:
    """{value: the indices that it stands at}."""
    out: dict[K, list[int]] = {}
    for n, value in enumerate(values):
        out.setdefault(value, []).append(n)
    return out
