"""Runs train.py, evaluate.py and sweep.py as a user does, in processes of their own, without importing torch anew for each.

A fork server (of the standard library) imports what the scripts import once and forks for every command: what a command does to its
process ends with it, and a suite with some fifty commands saves five seconds on each.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("torch", "transformers", "pytorch_lightning", "pandas", "rich.table", "matplotlib.pyplot", "easy_vqa"),
        *("hydra.main", "hydra._internal.hydra", "hydra.core.override_parser.overrides_parser"),
        *("transformers.models.llava.modeling_llava", "transformers.models.llava_next.modeling_llava_next"),
        *("transformers.models.clip.modeling_clip", "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
    ]
)


def run(words: list[str] | tuple[str, ...], env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """``python words...`` in the repository root, words[0] being a script or -m. Output is wide, so that tables do not wrap."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(words, folder, env)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(f"{' '.join(words)} took more than {timeout} s: {_text(folder, 'out')}{_text(folder, 'err')}")
        return subprocess.CompletedProcess(list(words), process.exitcode or 0, _text(folder, "out"), _text(folder, "err"))


def start(words: list[str] | tuple[str, ...], folder: str, env: dict[str, str] | None = None) -> multiprocessing.process.BaseProcess:
    """The same, not waited for. What it says goes to ``folder``/out and err."""
    process = _SERVER.Process(target=_child, args=(list(words), {"COLUMNS": "200", **(env or {})}, folder))
    process.start()
    return process


def _text(folder: str, name: str) -> str:
    return Path(folder, name).read_text()


def _child(words: list[str], env: dict[str, str], folder: str) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    os.environ.update(env)
    os.chdir(ROOT)
    sys.path[0:0] = [str(ROOT)]
    code: object = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
