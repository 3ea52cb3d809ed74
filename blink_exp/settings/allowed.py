"""What settings may call.

Hydra calls whatever a ``_target_`` names, and Python's logging whatever a handler's ``class`` does: a preset, a config folder or the config
of a stored run could run any code. Names outside of the list here are refused before anything is called. ``allow_targets=[...]`` adds to
it, on the command line only: it is no setting, so that no config can hold it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blink_exp import plugins
from blink_exp.errors import UserError, flat
from blink_exp.settings.nodes import entries
from blink_exp.settings.targets import BY_TARGET

SETTING = "allow_targets"
VARIABLE = "BLINK_EXP_ALLOW_TARGETS"  # the names of the command line, for every process that it starts
NAMING = ("_target_", "custom_search_space")  # keys whose values name what is called; the second one is Optuna's
LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
OF_LOGGING = ("class", "()", "factory", "queue", "listener")  # keys whose values logging.config calls
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
PACKAGE = "blink_exp"
HOMES = ("backbone", "methods", "benchmarks", "judge", "figures", "training", "tracking")  # of this package: functions that settings name
OTHERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(pytorch_lightning|lightning\.pytorch)\.(Trainer|(callbacks|loggers|profilers)\.[A-Z]\w*)",
        r"torch\.optim\.(lr_scheduler\.)?[A-Z]\w*",
        r"transformers\.(optimization\.)?(Adafactor|get_\w*schedule(_with_\w+)?|get_scheduler)",
        r"(bitsandbytes\.optim|deepspeed\.ops\.adam)\.[A-Z]\w*",
        r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)",
        r"hydra_plugins(\.\w+)+\.\w+(Launcher|Sweeper|Groups)",
        r"hydra\.experimental\.callbacks\.LogJobReturnCallback",
        r"optuna\.(samplers|pruners)\.[A-Z]\w*",
        r"builtins\.(dict|list|tuple)",
    )
)
HANDLERS = re.compile(
    r"logging\.((Stream|File|Null)Handler|Formatter|handlers\.(Rotating|TimedRotating|Watched)FileHandler)"
    r"|colorlog\.(ColoredFormatter|StreamHandler)|rich\.logging\.RichHandler"
)


def check_targets(config: Any) -> None:
    """Raises UserError for the first name in a config that is not on the list."""
    for entry in entries(config):
        logging = entry.name.startswith(tuple(f"{node}." for node in LOGGING))
        if isinstance(entry.value, str) and logging and entry.value.startswith(("ext://", "cfg://")) and entry.value not in STREAMS:
            raise UserError(_refusal(entry.name, entry.value))
        if entry.key not in (*NAMING, *(OF_LOGGING if logging else ())) or entry.raw is None or callable(entry.raw):
            continue  # callable: code put it there, no config can
        if not isinstance(entry.raw, str):
            if entry.key not in NAMING:
                continue  # settings of a queue, whose names are checked by themselves
            raise UserError(f"{entry.name} must be the dotted name of a class or a function, got {flat(entry.value, 80)}")
        if "${" in entry.raw:
            raise UserError(f"{entry.name}={flat(entry.raw, 120)} refers to another setting; write the name itself")
        if not (is_allowed(entry.raw) or (logging and HANDLERS.fullmatch(entry.raw))):
            raise UserError(_refusal(entry.name, entry.raw))


def _refusal(setting: str, name: str) -> str:
    return (
        f"{setting}={flat(name, 120)} is nothing that settings may call: this package, packages that add to it, Lightning, torch.optim and"
        f" Hydra's plugins; if you trust it, add {SETTING}=[{flat(name, 120)}]"
    )


def is_allowed(name: str) -> bool:
    """Whether settings may call what ``name`` names."""
    if name in BY_TARGET or name in by_hand() or any(pattern.fullmatch(name) for pattern in OTHERS):
        return True
    root, _, rest = name.partition(".")
    if root == PACKAGE:
        function = not rest.rpartition(".")[2][:1].isupper()
        return (rest.partition(".")[0] in HOMES or not function) and _is_of(root, rest)
    return root in added_packages() and _is_of(root, rest)


def without_allowed(words: Sequence[str]) -> list[str]:
    """The words of a command line without ``allow_targets=[...]``, whose names are allowed from here on, in this process and in those that
    it starts. Raises UserError for what is no name."""
    rest = [word for word in words if word.partition("=")[0].lstrip("+") != SETTING]
    for word in words:
        if word not in rest:
            names = [name.strip(" '\"") for name in word.partition("=")[2].strip("[] '\"").split(",")]
            for name in filter(None, names):
                if not all(map(str.isidentifier, name.split("."))):
                    raise UserError(f"{SETTING} must be a list of dotted names such as [package.module.function], got {flat(name, 80)}")
            allow(filter(None, names))
    return rest


def allow(names: Iterable[str]) -> None:
    """Allows ``names`` too, in this process and in those that it starts."""
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*by_hand(), *names]))


def by_hand() -> list[str]:
    """The names that the command line allows beside the list."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


@functools.cache
def added_packages() -> frozenset[str]:
    """Packages that are installed and say, by an entry point, that they add to this one."""
    groups = (plugins.SCORERS, plugins.LOSSES, plugins.ARCHITECTURES, plugins.CONF)
    return frozenset(point.value.partition(":")[0].partition(".")[0] for group in groups for point in plugins.installed(group).values())


@functools.cache
def _is_of(root: str, rest: str) -> bool:
    """Whether ``root.rest`` is a public name of a module of the package, not one that the module imports: ``package.module.os.system`` is
    the system's. What is not there at all is left to Hydra, which says so."""
    if any(part.startswith("_") or not part.isidentifier() for part in rest.split(".")):
        return False
    file, names = _module(root, rest.split("."))
    if file is None or not names:
        return False
    tree = ast.parse(file.read_bytes())
    bound = {name for node in ast.walk(tree) for name in _imported(node, root)}
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names[0] not in bound and (len(names) == 1 or names[0] not in defined)


def _module(root: str, parts: list[str]) -> tuple[Path | None, list[str]]:
    """(file of the module that the dotted name begins with, the names behind it); no file for a package that is not there as files."""
    spec = importlib.util.find_spec(root)
    while spec is not None and spec.origin is None and spec.submodule_search_locations is not None and parts:
        # a namespace package has no file, and importing it runs no code; a folder beside a clone, named as the package in it, makes one
        root, parts = f"{root}.{parts[0]}", parts[1:]
        spec = importlib.util.find_spec(root)
    if spec is None or spec.origin is None:
        return None, parts
    file = Path(spec.origin)
    while parts and file.name == "__init__.py":
        below = next((p for p in (file.parent / parts[0] / "__init__.py", file.parent / f"{parts[0]}.py") if p.is_file()), None)
        if below is None:
            break
        file, parts = below, parts[1:]
    return (file if file.suffix == ".py" else None), parts


def _imported(node: ast.AST, root: str) -> list[str]:
    """Names that an import statement takes from elsewhere than from the package ``root``."""
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).partition(".")[0] != root:
        return [alias.asname or alias.name for alias in node.names]
    return []
