"""Identifies the features that a training needs, and finds or invalidates caches by the inputs of these features.

Inputs are weights, layers, the prompt's opening, preprocessing, names, sizes and times of the image files, and the pixels of three
pairs of each split.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from blink_exp.errors import UserError
from blink_exp.training.feature_cache import PLAN, CachePlan, PlanSettings, digest, fault, shard_path
from blink_exp.training.pairs import PairDataset


def weights(model: Any) -> str:
    """A digest of up to 65,536 values of every weight, on any device."""
    sha = hashlib.sha256()
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        if weight.device.type == "meta":
            continue
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, -(-flat.numel() // 2**16))].cpu().contiguous()
        sha.update(f"{name} {tuple(weight.shape)} {zlib.crc32(some.view(torch.uint8).numpy().data)}\n".encode())
    return sha.hexdigest()[:16]


def pixels(pairs: PairDataset) -> str:
    """A digest of the first, the middle and the last pair."""
    sha = hashlib.sha256()
    for i in (0, len(pairs) // 2, len(pairs) - 1):
        full, crop, quadrant = pairs[i]
        sha.update(full.numpy().tobytes() + crop.numpy().tobytes() + bytes([quadrant]))
    return sha.hexdigest()[:16]


def plan_contents(backbone: Any, layers: list[int], data: Any, precision: str) -> tuple[PlanSettings, dict[str, str]]:
    """``settings`` and ``contents`` of a plan. Raises UserError where pairs are not deterministic."""
    splits = [data.train, data.held_out]
    digests = [pixels(pairs) for pairs in splits]
    if digests != [pixels(pairs) for pairs in splits]:
        raise UserError(
            "data.cache_features=true would freeze pairs that change from draw to draw (a random augmentation or sampling);"
            " make them the same each time, or use data.cache_features=false"
        )
    settings: PlanSettings = {
        "model": {"name": backbone.name, **{k: v for k, v in backbone.settings.items() if k != "device"}},
        "layers": list(layers),
        "precision": precision,
        "dtype": data.cache_dtype,
        "data": data.identity,
        "pairs": [len(pairs) for pairs in splits],
    }
    processor = getattr(data.transform, "image_processor", None)
    contents = {
        "weights": f"{backbone.identity} {weights(backbone.model)}",
        "opening": digest(backbone.prompt("")),
        "preprocessing": digest(processor.to_dict() if processor is not None else type(data.transform).__name__),
        "files": digest([files.stamp() for files in data.files]),
        "pixels": digest(digests),
    }
    if backbone.settings.get("attn_implementation") == "eager":
        contents["attention"] = "causal"  # older caches may hold features of an eager pass without a mask
    return settings, contents


def choose_cache(root: Path, plan: CachePlan) -> tuple[Path, CachePlan, str]:
    """(folder, its plan, message). Deletes stale files and files of another cache. Called by rank 0."""
    folder = cache_folder(root, plan.settings)
    old = CachePlan.load(folder)
    stored = list(folder.glob("*.safetensors"))
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
    if old is not None and old.key == plan.key and _whole(old, plan):
        return folder, old, f"features are read from {folder}"
    if not stored and (larger := superset(root, plan)) is not None:
        return larger[0], larger[1], f"features are read from {larger[0]}, which holds more layers"
    message = f"features are made in {folder}"
    if old is not None and stored:
        message = f"features in {folder} are stale (another {', '.join(changed(plan, old))}) and are made anew"
        for path in stored:
            path.unlink()
    plan.save(folder)  # if only this file was damaged, files with the plan's key are reused
    return folder, plan, message


def _whole(old: CachePlan, new: CachePlan) -> bool:
    """Whether the files of ``old`` cover as many rows as those of ``new``, in any partition."""
    ends = {split: starts[-1] for split, starts in new.shards.items()}
    return {split: starts[-1] for split, starts in old.shards.items()} == ends and all(
        starts[0] == 0 and sorted(set(starts)) == starts for starts in old.shards.values()
    )


def cache_folder(root: Path, settings: PlanSettings) -> Path:
    name = re.sub(r"[^\w.-]+", "-", settings["model"]["name"])
    return root / f"{name}-{settings['data']['source']}-{digest(settings)}"


def changed(now: CachePlan, before: CachePlan) -> list[str]:
    both: tuple[tuple[Mapping[str, object], Mapping[str, object]], ...] = (
        (now.settings, before.settings),
        (now.contents, before.contents),
    )
    return [k for ours, theirs in both for k in ours if ours[k] != theirs.get(k)] or ["cut into files"]


def superset(root: Path, plan: CachePlan) -> tuple[Path, CachePlan] | None:
    """A complete cache of the same inputs with more layers."""
    for path in sorted(root.glob(f"*/{PLAN}")):
        other = CachePlan.load(path.parent)
        if other is None or not set(plan.layers) <= set(other.layers) or other.contents != plan.contents:
            continue
        if digest(other.settings | {"layers": plan.layers}) == digest(plan.settings) and not faults(path.parent, other)[0]:
            return path.parent, other
    return None


def faults(folder: Path, plan: CachePlan) -> tuple[dict[tuple[str, int], str], dict[str, set[int]]]:
    """({file: its fault}, {split: indices of unreadable image files})."""

    def check(file: tuple[str, int]) -> tuple[str | None, list[int]]:
        return fault(shard_path(folder, *file), plan.key, len(plan.rows(*file)))

    files = plan.files()
    with ThreadPoolExecutor(8) as threads:  # checksums and reads release the GIL
        results = list(threads.map(check, files))
    unreadable: dict[str, set[int]] = {split: set() for split in plan.shards}
    for (split, _), (_, numbers) in zip(files, results, strict=True):
        unreadable[split].update(numbers)
    return {file: wrong for file, (wrong, _) in zip(files, results, strict=True) if wrong}, unreadable
