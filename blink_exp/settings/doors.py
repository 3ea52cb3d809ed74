"""The commands: their names, how to start them, and which command a command-line argument belongs to."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Container, Sequence
from pathlib import Path

from blink_exp.settings.folders import CLONE

SCRIPTS = ("train", "evaluate", "sweep")  # of the repository's root; the other commands are those of python -m blink_exp
COMMANDS = {
    "view": "one page about one question: what the model saw, decided and attended to, layer by layer (sample=ID, or image= question=)",
    "rescore": "scores the records of earlier runs again, without a model; puts the shards of a run together (predictions=)",
    "compare": "two runs on the same questions: differences with paired tests, or what a judge prefers (benchmark= predictions= against=)",
    "parity": "the untouched model on every benchmark beside the printed numbers (model=)",
}
OF_VIEW = ("view", "image", "question", "compare")
OF_FOLDER = ("status", "summarize", "retry")  # of sweep.py, about the folder of a sweep; no settings
EXPERIMENTS = ("table", "tables", "figure", "figures")
OF_SWEEP = (*EXPERIMENTS, "search", "dashboard", *OF_FOLDER)
VERB = re.compile(r"\A(table|figure)=(list|all)\Z")  # of tables= and figures=
COMMAND_KEYS = (*OF_VIEW, *OF_SWEEP, "predictions", "against")

PLAIN = re.compile(r"(?P<key>[^=]+)='(?P<value>[A-Za-z_./][\w./:-]*)'")  # text that Hydra reads as such without quotes
NOT_TEXT = ("true", "false", "null", "nan", "inf")


def command_name(root: str) -> str:
    """The command of config ``root`` in the form that the user types: ``blink-sweep`` in an installed package and where a console script
    runs, ``python sweep.py`` or ``python -m blink_exp view`` in a clone."""
    if CLONE is None or Path(next(iter(sys.argv), "")).name.startswith("blink-"):
        return f"blink-{root}"
    return f"python -m blink_exp {root}" if root in COMMANDS else f"python {root}.py"


def command_line(root: str, words: Sequence[str]) -> str:
    """The command of config ``root`` with the overrides ``words``, quoted for a shell."""
    return f"{command_name(root)} {shlex.join(map(_plain, words))}".rstrip()


def _plain(word: str) -> str:
    """``word`` without quotes of Hydra's that it does not need: a shell's stand beside them."""
    plain = PLAIN.fullmatch(word)
    return word if plain is None or plain["value"].lower() in NOT_TEXT else f"{plain['key']}={plain['value']}"


def install(extra: str) -> str:
    """The command that installs an optional part of this project, an extra of pyproject.toml."""
    return f'pip install "blink_exp[{extra}]"' if CLONE is None else f'pip install -e "{"." if Path.cwd() == CLONE else CLONE}[{extra}]"'


def training_process(words: Sequence[str]) -> list[str]:
    """The arguments that start a training with the overrides ``words`` in a process of its own."""
    return [sys.executable, *(["-m", "blink_exp.train"] if CLONE is None else [str(CLONE / "train.py")]), *words]


def as_typed(text: str) -> str:
    """``text`` with the commands that it names in the form that the user types."""
    return re.sub(
        rf"python (?:({'|'.join(SCRIPTS)})\.py|-m blink_exp ({'|'.join(COMMANDS)})\b)", lambda m: command_name(m[1] or m[2]), text
    )


def redirection(argv: Sequence[str], root: str, settings: Container[str]) -> str | None:
    """One line with the command to use instead if an argument of ``argv`` belongs to another command than ``root``, else None.
    ``settings``: the settings of ``root``."""
    values = {word.partition("=")[0]: word.partition("=")[2] for word in argv if "=" in word and not word.startswith("-")}
    target, words = root, list(argv)
    if "table" in values and values["table"] == "parity":
        target, words = "parity", [word for word in argv if word != "table=parity"]
    elif "against" in values:
        target = "compare"
    elif "predictions" in values:
        target = "rescore"
    elif any(key in values for key in OF_VIEW):
        target = "view"
    elif root == "evaluate" and any(key in values for key in OF_SWEEP):
        target = "sweep"
    words = [VERB.sub(r"\1s=\2", word) for word in words]
    if target == "view":
        words = [f"sample={word.removeprefix('view=')}" if word.startswith("view=") else word for word in words]
    foreign = next(
        (word for word in argv if word not in words or ((key := word.partition("=")[0]) in COMMAND_KEYS and key not in settings)), None
    )
    return None if foreign is None else f"{foreign} is not taken by {command_name(root)}; use {command_line(target, words)}"
