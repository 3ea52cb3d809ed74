"""The commands, and which command a command-line argument belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Container, Sequence

COMMANDS = {
    "view": "one page about one question: what the model saw, decided and attended to, layer by layer (sample=ID, or image= question=)",
    "rescore": "scores the records of earlier runs again, without a model; puts the shards of a run together (predictions=)",
    "compare": "scores the records of one run against those of another (predictions= against=)",
    "parity": "the untouched model on every benchmark beside the printed numbers (model=)",
}
OF_VIEW = ("view", "image", "question", "compare")
OF_FOLDER = ("status", "summarize", "retry")  # of sweep.py, about the folder of a sweep; no settings
OF_SWEEP = ("table", "tables", "figure", "figures", "search", "dashboard", *OF_FOLDER)
VERBS = ("list", "all")  # of tables= and figures=
COMMAND_KEYS = (*OF_VIEW, *OF_SWEEP, "predictions", "against")


def command_name(root: str) -> str:
    """The command line prefix of config ``root``."""
    return f"python -m blink_exp {root}" if root in COMMANDS else f"python {root}.py"


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
    words = [f"{kind}s={value}" if value in VERBS else word for word in words for kind, value in [_experiment(word)]]
    if target == "view":
        words = [f"sample={word.removeprefix('view=')}" if word.startswith("view=") else word for word in words]
    foreign = next(
        (word for word in argv if word not in words or ((key := word.partition("=")[0]) in COMMAND_KEYS and key not in settings)), None
    )
    return (
        None
        if foreign is None
        else f"{foreign} is not taken by {command_name(root)}; use {shlex.join([*command_name(target).split(), *words])}"
    )


def _experiment(word: str) -> tuple[str, str]:
    """("table" or "figure", its value) of an argument that selects one; ("", "") for others."""
    key, _, value = word.partition("=")
    return (key, value) if key in ("table", "figure") else ("", "")
