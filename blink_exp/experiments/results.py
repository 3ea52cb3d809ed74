"""A run's output folder: what is written, when, and in what order, so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from blink_exp.disk import writing
from blink_exp.files import encodable


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as resolved plain Python, which is what everything but Hydra gets."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    part = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(encodable(text), encoding="utf-8")
            os.replace(part, path)
        except BaseException:  # of a signal too
            with contextlib.suppress(OSError):
                part.unlink()
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
    """A rich console that is wide enough for a table where the output is a file or a pipe.

    It prints labels, categories, overrides and paths letter by letter: "[/bold]" and ":smile:" are text here, never markup.
    """
    from rich.console import Console

    plain: dict[str, Any] = {"markup": False, "emoji": False}
    found = Console(**plain)
    return found if found.is_terminal else Console(width=130, **plain)
