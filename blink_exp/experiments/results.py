"""A run's output folder: what is written, when, and in what order, so that nothing is ever half there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# settings that a result depends on; ``method`` holds the values of the groups that it takes (thresholds, layers, ...), no others count
PART_OF_A_POINT = ("model", "method", "benchmark", "judge", "part", "limit", "shard", "seed")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as resolved plain Python, which is what everything but Hydra gets."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(finite(value), indent=2, sort_keys=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None for every number that JSON has no word for: the mean of nothing is not a number."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def point_hash(settings: dict[str, Any], digests: dict[str, str]) -> str:
    """What a point is known by: those resolved settings that it depends on, this package's version, and digests of its weights."""
    kept = {k: settings[k] for k in PART_OF_A_POINT if k in settings}
    if settings.get("model", {}).get("dtype", "float32") != "float32":
        kept["batch_size"] = settings.get("batch_size")  # padding flips a few answers in half precision
    text = json.dumps([kept, digests, importlib.metadata.version("blink_exp")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_digest(folder: Path | None) -> str:
    """Digest of the weights in a folder ("" for none), so that retrained modules are another point."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")) if folder else []:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16] if folder else ""


def folder_stamp(folder: Path) -> str:
    """Names, sizes and times of the weights in a folder: a published model's are too large to be read for every point."""
    stat = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps(stat).encode()).hexdigest()[:16]


def provenance(seed: int, seconds: float) -> dict[str, Any]:
    """Versions, commit, seed and time of a run."""
    packages = ("blink_exp", "torch", "transformers", "tokenizers", "hydra-core", "pytorch-lightning", "easy-vqa")
    root = Path(__file__).resolve().parent.parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
        "commit": commit and commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""),
        "seed": seed,
        "seconds": round(seconds, 2),
    }


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def console() -> Any:
    """A rich console that is wide enough for a table where the output is a file or a pipe."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=130)
