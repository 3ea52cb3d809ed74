"""The configuration and the provenance of a run in its output folder."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from blink_exp.documents.runs import Provenance
from blink_exp.errors import UserError
from blink_exp.settings.folders import CLONE
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import from_plain, read_settings

CONFIG = "config.yaml"  # the settings of a run, in its folder
CURE = "measure the point again"


def settings_of(folder: str | Path) -> PointSettings:
    """The settings of a finished run. Raises UserError if its config.yaml is missing or damaged."""
    path = Path(folder) / CONFIG
    try:
        settings: PointSettings = from_plain(PointSettings, read_settings(path, CURE))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no {error}; {CURE}") from None
    return settings


def provenance(seed: int, seconds: float) -> Provenance:
    """Versions, commit, seed and time of a run."""
    packages = ("blink_exp", "torch", "transformers", "tokenizers", "hydra-core", "pytorch-lightning", "easy-vqa")
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
        "commit": commit and commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else ""),
        "seed": seed,
        "seconds": round(seconds, 2),
    }


def _git(*words: str) -> str | None:
    """What git prints in the clone; None outside of one: an environment may lie in a repository of the user's own."""
    if CLONE is None:
        return None
    try:
        done = subprocess.run(["git", "-C", str(CLONE), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
