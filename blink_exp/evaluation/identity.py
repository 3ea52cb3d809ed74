"""Cache key of an evaluation: a hash of everything that its result depends on, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blink_exp.backbone.shipped import SHIPPED, shipped
from blink_exp.documents.settings import PlainSettings
from blink_exp.settings.roots import PointSettings

# settings that a result depends on; ``method`` holds the resolved values of the groups that it uses (thresholds, layers, ...)
PART_OF_A_POINT = ("model", "method", "benchmark", "judge", "part", "limit", "shard", "seed")
OF_ASKING = ("cache", "max_retries", "timeout", "threads", "give_up")  # judge settings that do not change its verdicts
WEIGHTS = ("*.safetensors",)
FILES = (*WEIGHTS, "*.json", "*.jinja", "*.model")  # of a model: its tokenizer, processor and chat template change answers too
# of all formats in ``images.FORMATS``
IMAGES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"),
)
LEVELS = 4  # depth of subfolders searched for images
SLOW, REUSED = 0.1, 20.0  # a scan of a folder slower than SLOW seconds is cached for REUSED times its duration
_stamps: dict[Path, tuple[str, float]] = {}  # {large folder: (stamp, expiry on the monotonic clock)}
DATA = ("*.parquet", "*.json", "*.jsonl", "*.tsv", "*.txt")


DROPS = ("tokens", "retention_ratio", "ratio", "newline_policy")  # settings of methods that drop tokens, which alone read ``positions``
MEANING = 4  # version of the hash; raise it when the same settings yield another result or record, which invalidates stored points


def config_hash(settings: PointSettings, digests: dict[str, str]) -> str:
    """Name of a point: a hash of its settings, of the versions of this package and of its bundled data, and of ``digests`` of its
    files."""
    hashed = {k: getattr(settings, k) for k in PART_OF_A_POINT}
    hashed["method"] = canonical(settings.method)
    if settings.positions.policy is not None and drops(settings.method):
        hashed["positions"] = settings.positions.policy
    hashed["judge"] = {k: v for k, v in settings.judge.items() if k not in OF_ASKING}
    if settings.model.get("dtype", "float32") != "float32":
        hashed["batches"] = ["whole images", settings.batch_size]  # padding flips a few answers in half precision
    versions = [importlib.metadata.version(package) for package in ("blink_exp", "easy-vqa")]
    return hashlib.sha256(json.dumps([hashed, digests, versions, MEANING], sort_keys=True).encode()).hexdigest()[:16]


def canonical(method: Any) -> Any:
    """Canonical form of a method's settings: layers as a list; module settings without what their digest covers."""
    if not isinstance(method, dict):
        return method
    out = {k: canonical(v) for k, v in method.items()}
    if out.get("tokens") is not None:  # which goes before a ratio
        out = {k: v for k, v in out.items() if k not in ("retention_ratio", "ratio")}
    if isinstance(out.get("layers"), dict) and "indices" in out["layers"]:
        out["layers"] |= {"indices": listed(out["layers"]["indices"])}
    if isinstance(out.get("tokensr"), dict) and "amplify" in out:
        out["tokensr"] = {k: v for k, v in out["tokensr"].items() if k != "path"} if out["amplify"] else None
    return out


def drops(method: Any) -> bool:
    """Whether a method, or a half of a pair, drops visual tokens, by its settings."""
    return isinstance(method, dict) and (any(key in method for key in DROPS) or any(map(drops, method.values())))


def listed(indices: Any) -> Any:
    """[12, 13] for "12-13"; any other selection unchanged."""
    if isinstance(indices, int):
        return [indices]
    if not isinstance(indices, str):
        return indices
    first, _, last = indices.partition("-")
    return list(range(int(first), int(last or first) + 1)) if first.isdigit() and (last or first).isdigit() else indices


def digests(settings: PointSettings) -> dict[str, str]:
    """Digests of the files of a point: model, TokenSR modules, CLIP and a local copy of its data. Hub files are identified by name and
    revision in the settings."""
    return without_images(settings) | images(settings)


def images(settings: PointSettings) -> dict[str, str]:
    """Stamp of the image files in a local copy of the data, if it has any. Restoring missing files makes another point."""
    data = settings.benchmark.get("path")
    digest = image_stamp(Path(data)) if data else ""
    return {"images": digest} if digest else {}


def without_images(settings: PointSettings) -> dict[str, str]:
    """``digests`` without ``images``: the dependencies of existing answers, which do not change when a missing image is restored.
    If parquet rows name the images, ``file_stamp`` cannot identify the file that was read, so ``images`` is included."""
    path, clip = settings.model["path"], settings.model.get("clip")
    shipped_model, tokensr = shipped(path), modules(settings.method)
    weights = tokensr["path"] or (shipped_model[1] if shipped_model else None) if tokensr else None
    data = settings.benchmark.get("path")
    named_by_rows = image_stamp(Path(data)) if data and Path(data).is_dir() and files_of(Path(data), ("*.parquet",)) else ""
    return {
        **({"images": named_by_rows} if named_by_rows else {}),
        "model": of_model(path),
        "tokensr": of_folder(Path(weights), WEIGHTS) if weights else "",
        "clip": of_folder(SHIPPED / "clip", FILES) if clip == "scale" else stamp(Path(clip), FILES) if clip else "",
        "data": stamp(Path(data), DATA) if data else "",
    }


def of_model(path: str) -> str:
    """Digest of a model's files: by contents for shipped models, else by names, sizes and modification times."""
    shipped_model = shipped(path)
    return of_folder(shipped_model[0], FILES) if shipped_model else stamp(Path(path), FILES)


def modules(method: Any) -> PlainSettings | None:
    """TokenSR settings of a method that expands through modules, at any depth; None for other methods."""
    if not isinstance(method, dict):
        return None
    if method.get("amplify") and "tokensr" in method:
        tokensr: PlainSettings | None = method["tokensr"]
        return tokensr
    return next((tokensr for value in method.values() if (tokensr := modules(value))), None)


def of_folder(folder: Path, patterns: tuple[str, ...]) -> str:
    """Digest of the contents of a folder's files. Retrained modules make another point."""
    files = files_of(folder, patterns)
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=64)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def stamp(folder: Path, patterns: tuple[str, ...]) -> str:
    """Hash of the names, sizes and times of a folder's files; "" without such a folder. Published weights are too large to hash by
    contents for every point."""
    if not folder.is_dir():
        return ""
    stat = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files_of(folder, patterns)]
    return hashlib.sha256(json.dumps(stat).encode()).hexdigest()[:16]


def image_stamp(folder: Path) -> str:
    """Hash of the names, sizes and times of the image files in a folder and up to ``LEVELS`` levels below it; "" if there are none.

    100,000 files take about half a second, so the stamp of a large folder is cached for ``REUSED`` times the duration of the scan.
    """
    now = time.monotonic()
    digest, until = _stamps.get(folder, ("", 0.0))
    if now < until:
        return digest
    stat = sorted(_image_files(str(folder), "", LEVELS))
    digest = hashlib.sha256(json.dumps(stat).encode()).hexdigest()[:16] if stat else ""
    spent = time.monotonic() - now
    if spent > SLOW:
        _stamps[folder] = digest, now + spent * REUSED
    return digest


def _image_files(folder: str, name: str, levels: int) -> Iterator[tuple[str, int, int]]:
    """(path relative to the first folder, bytes, mtime) of image files. Unreadable files and folders are skipped."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(OSError):
                if entry.name.lower().endswith(IMAGES):
                    stat = entry.stat()
                    yield name + entry.name, stat.st_size, stat.st_mtime_ns
                elif levels and entry.is_dir():
                    yield from _image_files(entry.path, f"{name}{entry.name}/", levels - 1)


def file_stamp(image: Any) -> list[int] | None:
    """[bytes, mtime] of the file that an image is opened from (``Sample.image`` as a partial of a path, or of a folder and a file
    name); None if the file is unknown or missing."""
    arguments = getattr(image, "args", ())
    folder = next((a for a in arguments if isinstance(a, Path)), None)
    name = next((a for a in arguments if isinstance(a, str)), "")
    path = folder / name if folder is not None else None
    try:
        stat = path.stat() if path is not None else None
    except (OSError, ValueError):  # ValueError: a name with a NUL, which is skipped where it is opened
        return None
    return None if stat is None else [stat.st_size, stat.st_mtime_ns]


def files_of(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Files in a folder and in its direct subfolders, which may hold parquet files."""
    return sorted({path for pattern in patterns for level in ("", "*/") for path in folder.glob(level + pattern)})
