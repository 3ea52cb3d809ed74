"""Cache of the frozen backbone's features on disk, for later epochs and other runs on the same pairs.

A cache is a folder. ``cache.json`` is its plan; ``train-00003.safetensors``, ``held_out-00000.safetensors`` hold some rows
each, a row being an image with one of its quadrants: ``patch``, the full view's tokens of the quadrant, and ``teacher``, those of the
close-up, at the input of every layer. Quadrants of one image share no data. A file records the key of its cache and the checksum of its
tensors. Files are written atomically.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch.utils.data import Dataset

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, nearest
from blink_exp.files import write_bytes

FORMAT = 1
PLAN = "cache.json"
DTYPES = ("bfloat16", "float32")


class Features(NamedTuple):
    """``patch``: (pairs, layers, h * w, width) of a quadrant's cells in the full view; ``teacher``: (pairs, layers, H * W, width)."""

    patch: torch.Tensor
    teacher: torch.Tensor


def check_settings(path: Any, dtype: str) -> None:
    """Raises UserError for an invalid data.cache_path or data.cache_dtype."""
    if dtype not in DTYPES:
        raise UserError(f"data.cache_dtype={dtype} is not known; {nearest(str(dtype), DTYPES)}")
    if not str(path or "").strip():
        raise UserError("data.cache_path is empty; give a folder for the features, e.g. outputs/features")
    if Path(path).exists() and not Path(path).is_dir():
        raise UserError(f"data.cache_path={path} is a file; give a folder for the features")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class PairsIdentity(TypedDict, total=False):
    """The settings of conf/data that determine the pairs, beside their number."""

    source: Required[str]
    seed: Required[int]
    quadrants: Required[str]
    sizes: list[int]  # of scenes
    small: bool
    pad: bool  # of image files
    image_loading: PlainSettings
    path: str  # of a folder
    json: str  # of LLaVA's instruction data
    images: str
    held_out_share: float


class PlanSettings(TypedDict):
    """The settings that features depend on. ``pairs``: their number in each split."""

    model: PlainSettings
    layers: list[int]
    precision: str
    dtype: str
    data: PairsIdentity
    pairs: list[int]


@dataclass(frozen=True)
class CachePlan:
    """Description of a cache.

    Args:
        settings: the user's.
        contents: {name: digest} of the inputs when it was made: weights, files, preprocessing, pixels.
        shards: {split: first row of each file, then the number of rows}.
    """

    settings: PlanSettings
    contents: dict[str, str]
    shards: dict[str, list[int]]
    format: int = FORMAT

    @property
    def key(self) -> str:
        return digest([self.format, self.settings, self.contents])

    @property
    def layers(self) -> list[int]:
        return list(self.settings["layers"])

    def files(self) -> list[tuple[str, int]]:
        """(split, number) of each file."""
        return [(split, k) for split, starts in self.shards.items() for k in range(len(starts) - 1)]

    def rows(self, split: str, k: int) -> range:
        return range(self.shards[split][k], self.shards[split][k + 1])

    def save(self, folder: Path) -> None:
        write_bytes(folder / PLAN, json.dumps(asdict(self), indent=2).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> CachePlan | None:
        """The plan of a folder; None where it is missing or unreadable."""
        try:
            plan = cls(**json.loads((folder / PLAN).read_text(encoding="utf-8")))
            whole = isinstance(plan.contents, dict) and all(isinstance(n, int) for starts in plan.shards.values() for n in starts)
            return plan if whole and plan.format == FORMAT and plan.layers else None
        except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
            return None


def shard_path(folder: Path, split: str, k: int) -> Path:
    return folder / f"{split}-{k:05d}.safetensors"


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of the tensors' bytes, in order of names. Detects damaged files, not tampering."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def write_shard(path: Path, key: str, features: Features, states: torch.dtype, unreadable: list[int]) -> None:
    """Writes rows to a file. ``states``: the backbone's dtype; ``unreadable``: indices of image files that could not be read."""
    tensors = features._asdict()
    metadata = {"key": key, "file": path.name, "states": str(states).removeprefix("torch."), "crc32": _checksum(tensors)}
    write_bytes(path, safetensors.torch.save(tensors, metadata | {"unreadable": json.dumps(unreadable)}))


def _read(path: Path) -> tuple[dict[str, str], Features]:
    """Metadata and tensors of a file; tensors are memory-mapped."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}, Features(file.get_tensor("patch"), file.get_tensor("teacher"))


def fault(path: Path, key: str, rows: int) -> tuple[str | None, list[int]]:
    """(fault of a file or None, indices of image files that were unreadable when it was made). Reads the whole file."""
    if not path.is_file():
        return "missing", []
    try:
        metadata, features = _read(path)
        if (metadata.get("key"), metadata.get("file")) != (key, path.name):
            return "another's", []
        if not rows == len(features.patch) == len(features.teacher):
            return "of another length", []
        return (None if metadata.get("crc32") == _checksum(features._asdict()) else "damaged"), json.loads(metadata["unreadable"])
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError):
        return "damaged", []


class StoredFeatures(Dataset[Features]):
    """The features of a split's pairs. Index: a list of items from a batch sampler. Returns Features in the backbone's dtype.

    Args:
        folder, plan, split: the cache, already checked.
        layers: required layers, a subset of the cache's.
        row: (items,) the row of each item.
    """

    def __init__(self, folder: Path, plan: CachePlan, split: str, layers: list[int], row: np.ndarray):
        self.folder, self.plan, self.split, self.row = folder, plan, split, row
        self.columns = slice(None) if layers == plan.layers else [plan.layers.index(layer) for layer in layers]
        self._open: list[tuple[torch.dtype, Features]] = []
        _ = self.shards

    @property
    def shards(self) -> list[tuple[torch.dtype, Features]]:
        """(backbone dtype, rows) of each file. All are opened at once, so that they stay readable if another run deletes them."""
        if not self._open:
            for k in range(len(self.plan.shards[self.split]) - 1):
                metadata, features = _read(shard_path(self.folder, self.split, k))
                if metadata.get("key") != self.plan.key:
                    raise UserError(f"the features in {self.folder} were made anew by another run while this one started; start it again")
                self._open.append((getattr(torch, metadata["states"]), features))
        return self._open

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": []}  # worker processes open the files themselves

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, items: list[int]) -> Features:
        rows, starts = [], self.plan.shards[self.split]
        for row in self.row[items]:
            k = bisect_right(starts, row) - 1
            states, features = self.shards[k]
            rows.append([part[int(row) - starts[k]][self.columns] for part in features])
        return Features(*(torch.stack(list(parts)).to(states) for parts in zip(*rows, strict=True)))
