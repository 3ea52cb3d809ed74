"""What the entry points share: every error that a user can cause is one line and exit code 2.

Imports nothing heavy, so that ``--help`` stays instant. HYDRA_FULL_ERROR=1 brings the traceback back.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from blink_exp.disk import disk_line
from blink_exp.errors import UserError, flat
from blink_exp.settings.doors import command_name
from blink_exp.settings.presets import CONF, presets
from blink_exp.stopping import run_folder, stop_on_signals, stopped, stopping

TRACEBACK = "BLINK_EXP_TRACEBACK"  # what the user's HYDRA_FULL_ERROR said, before we set it for ourselves
SCRIPT = "BLINK_EXP_SCRIPT"  # the config root of what runs: train, evaluate, sweep, view, ...
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, told by its name: torch is not imported here


def entry(main: Callable[[], object], config: str) -> None:
    """Runs a hydra.main function. Hydra is told to raise its errors, so that one place prints them."""
    user_wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ[TRACEBACK] = str(int(user_wants_traceback))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    lenient_output()
    os.environ[SCRIPT] = config
    logging.raiseExceptions = False  # a log file on a full disk: Hydra's handler would print a traceback for every line
    stop_on_signals()

    def checked(_: object) -> object:
        from blink_exp.settings.words import prepared

        if sys.argv[1:] in (["--help"], ["-h"]):
            print(help_text(config))
            return None
        sys.argv[1:] = prepared(sys.argv[1:], config)
        check_optuna(sys.argv[1:])
        return main()

    code: Any = None
    try:
        guard(checked, None)
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError as error:  # Python would say so in three lines and end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = code or 2
    if code:
        sys.exit(code)


def lenient_output() -> None:
    """Makes the terminal show a ? for what its encoding lacks: a run must not end in its last line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def guard(run: Callable[[Any], object], cfg: Any) -> Any:
    """``run(cfg)``, where an error that the user can cure ends the program with one line and exit code 2.

    Jobs call it too: an error that reached Hydra would be announced by Hydra first.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return run(cfg)
    except Exception as error:
        expected = isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError) or type(error).__name__ == OUT_OF_MEMORY
        if not expected or os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(stopped(resume_hint()))
    except SystemExit:
        if stopping():  # Lightning ends the process where it meets KeyboardInterrupt
            sys.exit(stopped(resume_hint()))
        raise


def resume_hint() -> str:
    """How a run that was stopped goes on: the folder to name, or that the store has what was finished."""
    script, folder = os.environ.get(SCRIPT), run_folder()
    if script in ("sweep", "parity"):
        what = "sweep" if script == "sweep" else "command"
        return f"to go on, run the same {what} again: finished points and all answers so far are in the store"
    if folder is None or script not in ("evaluate", "train"):
        return "run the same command again; jobs of a multirun that were finished are in their folders"
    if script == "train" and not any((folder / name).exists() for name in ("last.ckpt", "last.ckpt.old")):
        return "no checkpoint was written yet; run the same command again"
    return f"to go on, run the same command with {'resume' if script == 'train' else 'hydra.run.dir'}={folder}"


def one_line(error: BaseException) -> str:
    """The message of an error as one line, with the cure where the operating system's words lack it."""
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return disk_line(error)
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == OUT_OF_MEMORY:
        return (
            f"the device is out of memory ({flat(error, 160)}); use a smaller batch_size, model.dtype=bfloat16 or model.quantization=4bit"
        )
    from blink_exp.settings.messages import translated

    return translated(error)


def help_text(config: str) -> str:
    """What ``--help`` says: groups with their presets, and the settings of conf/<config>.yaml with their comments. Read off the files:
    Hydra composes everything first, which takes over a second."""
    folders = sorted(p for p in CONF.rglob("*") if p.is_dir())
    groups = {name: presets(name) for name in (p.relative_to(CONF).as_posix() for p in folders)}
    lines = [f"{command_name(config)} [group=preset] [group.key=value] [key=value] ...", "", "groups and their presets:"]
    lines += [f"  {name}: {', '.join(presets)}" for name, presets in groups.items() if presets]
    for name in dict.fromkeys((config, *([] if config == "train" else ["evaluate"]))):
        lines += ["", f"conf/{name}.yaml:", *(f"  {line}" for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines())]
    return "\n".join([*lines, "", "--cfg job --resolve: what a command would run with; --hydra-help: Hydra's own flags; -m: a sweep"])


def check_optuna(argv: list[str]) -> None:
    import importlib.metadata

    if any(word.lstrip("+").startswith(("search=", "hydra/sweeper=optuna")) for word in argv):
        try:
            importlib.metadata.version("hydra-optuna-sweeper")
        except importlib.metadata.PackageNotFoundError:
            raise UserError('a search needs Optuna; pip install "blink_exp[optuna]"') from None
