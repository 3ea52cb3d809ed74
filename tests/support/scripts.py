"""Runs train.py, evaluate.py and sweep.py as a user does, in processes of their own, without importing torch anew for each.

A fork server (of the standard library) imports what the scripts import once and forks for every command: what a command does to its
process ends with it, and a suite with some fifty commands saves five seconds on each.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["support.preloaded"])
PATHS = os.environ.get("PYTHONPATH", "")
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(words: list[str] | tuple[str, ...], env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """``python words...`` in the repository root, words[0] being a script or -m. Output is wide, so that tables do not wrap."""
    return _run(words, [env or {}], timeout)[0]


def printed(*words: str, code: int = 0) -> str:
    """What a command prints, on either stream. Fails where it ends with another exit code."""
    done = run(words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_ranks(words: list[str] | tuple[str, ...], count: int, timeout: float = 300) -> list[subprocess.CompletedProcess[str]]:
    """The same as ``count`` processes of one job. Each is told its rank by the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    job |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return _run(words, [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)], timeout)


def _run(words: list[str] | tuple[str, ...], envs: list[dict[str, str]], timeout: float) -> list[subprocess.CompletedProcess[str]]:
    with tempfile.TemporaryDirectory() as root:
        folders = [tempfile.mkdtemp(dir=root) for _ in envs]
        processes = [start(words, folder, env) for folder, env in zip(folders, envs, strict=True)]
        until = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        outputs = [(_text(folder, "out"), _text(folder, "err")) for folder in folders]
        if late:
            raise TimeoutError(f"{' '.join(words)} took more than {timeout} s: {outputs}")
        return [subprocess.CompletedProcess(list(words), p.exitcode or 0, *texts) for p, texts in zip(processes, outputs, strict=True)]


def start(words: list[str] | tuple[str, ...], folder: str, env: dict[str, str] | None = None) -> multiprocessing.process.BaseProcess:
    """The same, not waited for. What it says goes to ``folder``/out and err."""
    process = _SERVER.Process(target=_child, args=(list(words), {"COLUMNS": "200", **(env or {})}, folder))
    with pytest.MonkeyPatch.context() as patch:  # the first command starts the server, which finds ``support.preloaded`` by this
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in (str(ROOT / "tests"), PATHS) if path))
        process.start()
    return process


def _text(folder: str, name: str) -> str:
    return Path(folder, name).read_text(encoding="utf-8")


def _child(words: list[str], env: dict[str, str], folder: str) -> None:
    multiprocessing.set_start_method(None, force=True)  # the platform's own, as in a process that a shell starts; not the server's
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(d, "w", buffering=1, closefd=False) for d in (1, 2))
    for name in RANKS:  # of a job that the tests themselves may be in
        os.environ.pop(name, None)
    os.environ.update({"PYTHONPATH": PATHS, **env})
    if "RANK" in env:
        from pytorch_lightning.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = int(env["RANK"])  # Lightning read the variable when the server imported it
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
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter ends: threads, then what is registered to run at exit
    atexit._run_exitfuncs()  # among it multiprocessing's, which ends what the command has started
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
