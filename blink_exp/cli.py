"""Shared code of the entry points: a user error becomes one line and exit code 2.

Imports nothing heavy, so that ``--help`` stays instant. HYDRA_FULL_ERROR=1 brings the traceback back.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from blink_exp.disk import disk_line
from blink_exp.errors import UserError, is_expected, out_of_memory, reason
from blink_exp.keys import masked
from blink_exp.openmp import wait_briefly
from blink_exp.settings.doors import COMMANDS, OF_FOLDER, as_typed, command_name, install
from blink_exp.settings.folders import CONF
from blink_exp.settings.meanings import MEANINGS
from blink_exp.settings.presets import presets
from blink_exp.stopping import end_on_signals, run_folder, stop_on_signals, stopped, stopping

TRACEBACK = "BLINK_EXP_TRACEBACK"  # the user's HYDRA_FULL_ERROR, before it is overwritten here
SCRIPT = "BLINK_EXP_SCRIPT"  # config root of the running command: train, evaluate, sweep, view, ...
OF_JOB = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # environment of a process that torchrun started
RANKS, WORKER = "blink_exp.evaluation.ranks", "blink_exp.evaluation.worker"  # by name: they are slow to import, and above this module


def entry(main: Callable[[], object], config: str, of_folder: Callable[[list[str]], list[str] | None] | None = None) -> None:
    """Runs a hydra.main function. Hydra is set to raise its errors, so that they are printed in one place.

    ``of_folder``: takes arguments about the folder of a sweep, and returns those for Hydra, or None where nothing is left to do."""
    user_wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ[TRACEBACK] = str(int(user_wants_traceback))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    lenient_output()
    os.environ[SCRIPT] = config
    os.environ["MPLBACKEND"] = "Agg"  # commands write pictures to files and need no display
    wait_briefly()
    logging.raiseExceptions = False  # on a full disk, Hydra's log handler would print a traceback for every line
    sys.excepthook = masked_traceback
    stop_on_signals()
    divided = config != "train" and under_torchrun()  # Lightning divides a training itself
    if divided and os.environ["RANK"] != "0":
        end_on_signals()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        importlib.import_module(WORKER).serve_torchrun()
        return

    def checked(_: object) -> object:
        if only_help():
            with contextlib.suppress(BrokenPipeError):
                print(help_text(config))
            return None
        words: list[str] | None = sys.argv[1:]
        if of_folder is not None and any(word.partition("=")[0] in OF_FOLDER for word in sys.argv[1:]):
            words = of_folder(sys.argv[1:])
        if words is None:
            return None
        from blink_exp.settings.job_loader import check_all_configs
        from blink_exp.settings.words import prepared, shows

        sys.argv[1:] = prepared(words, config)
        check_optuna(sys.argv[1:])
        check_all_configs(None if shows(sys.argv[1:]) else config)
        return main()

    code: Any = None
    try:
        guard(checked, None)
    except SystemExit as end:
        code = end.code
    finally:
        if divided or RANKS in sys.modules:
            importlib.import_module(RANKS).close()
    try:
        sys.stdout.flush()
    except OSError as error:  # Python would print three lines and exit with code 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not (isinstance(error, BrokenPipeError) and only_help()):  # head and less read as much as they show
            print(f"error: {one_line(error)}", file=sys.stderr)
            code = code or 2
    if code:
        sys.exit(code)


def only_help() -> bool:
    return sys.argv[1:] in (["--help"], ["-h"])


def under_torchrun() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    return all(os.environ.get(name) for name in OF_JOB) and int(os.environ["WORLD_SIZE"]) > 1


def masked_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of an error that nobody expected, with keys masked."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def lenient_output() -> None:
    """Prints ? for characters that the terminal cannot encode, instead of failing; nowhere, where a stream is closed (>&-), which is None
    in Python, and whose number the next file that is opened would get."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def guard(run: Callable[[Any], object], cfg: Any) -> Any:
    """``run(cfg)``; a user error ends the program with one line and exit code 2.

    Multirun jobs call it too, before Hydra prints the error itself.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return run(cfg)
    except Exception as error:
        expected = is_expected(error) or isinstance(error, HydraException | OmegaConfBaseException)
        if not expected or os.environ.get(TRACEBACK) == "1":
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(stopped(resume_hint()))
    except SystemExit:
        if stopping():  # Lightning exits on KeyboardInterrupt
            sys.exit(stopped(resume_hint()))
        raise


def resume_hint() -> str:
    """How to resume a stopped run: the folder to give, or the same command."""
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
    """The message of an error as one line, with keys masked. OS errors get a cure."""
    return masked(_one_line(error))


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return disk_line(error)
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return f"memory ran out ({reason(error)}); use a smaller batch_size, model.dtype=bfloat16 or, on a GPU, model.quantization=4bit"
    from blink_exp.settings.messages import translated

    return translated(error)


def help_text(config: str) -> str:
    """The text of ``--help``: groups with their presets, and conf/<config>.yaml with its comments. Read from the files, since composing
    them with Hydra takes over a second."""
    lines = [f"{command_name(config)} [group=preset] [group.key=value] [key=value] ..."]
    for name in ("compare", "rescore") if config == "compare" else (config,) if config in COMMANDS else ():
        lines += _settings_text(name)
    lines += ["", "groups, and their presets:"]
    for name, meaning in MEANINGS.items():
        if chosen := presets(name):
            lines += [f"  {name:<16} {meaning}", f"  {'':<16}   {', '.join(chosen)}"]
    for name in dict.fromkeys((*([] if config in COMMANDS else [config]), *([] if config == "train" else ["evaluate"]))):
        lines += _settings_text(name)
    return "\n".join([*lines, "", "--cfg job --resolve: what a command would run with; --hydra-help: Hydra's own flags; -m: a sweep"])


def _settings_text(name: str) -> list[str]:
    lines = as_typed((CONF / f"{name}.yaml").read_text(encoding="utf-8")).splitlines()
    return ["", f"conf/{name}.yaml:", *(f"  {line}" for line in lines)]


def check_optuna(argv: list[str]) -> None:
    import importlib.metadata

    if any(word.lstrip("+").startswith(("search=", "hydra/sweeper=optuna")) for word in argv):
        try:
            importlib.metadata.version("hydra-optuna-sweeper")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"a search needs Optuna; {install('optuna')}") from None
