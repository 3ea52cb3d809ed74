"""Runs the project's commands with a package that is not part of this tree, in one process: importing torch is what takes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.scripts import ROOT

DRIVER = """
import json, os, runpy, sys
from hydra._internal.hydra import Hydra
Hydra.get_mode = lambda *_, **__: None  # else everything is composed once more, to see whether hydra.mode is set
sys.path.insert(0, ".")
for words in json.loads(sys.argv[1]):
    sys.argv = words
    os.environ.pop("HYDRA_FULL_ERROR", None)  # entry() sets it
    try:
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("CODE", code, flush=True)
"""


def run(commands: Sequence[Sequence[str]], site: Path, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    """``commands`` (a script and its words), one after the other, with the packages below ``site``."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def codes(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The exit code of each command."""
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("CODE ")]
