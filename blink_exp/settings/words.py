"""Preprocesses command-line arguments before Hydra parses them.

In Hydra's override grammar commas, quotes, brackets, colons and exponents have a meaning: a question with a comma would be a sweep, the
commit 7e31021 a number. Text settings are therefore quoted, so that Hydra reads them literally.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blink_exp.errors import UserError, flat, nearest
from blink_exp.settings import budgets, secrets
from blink_exp.settings.allowed import without_allowed
from blink_exp.settings.check import HYDRA, fields, format_value, refusal, unknown, value_type
from blink_exp.settings.doors import EXPERIMENTS, command_name, redirection
from blink_exp.settings.limits import is_finite
from blink_exp.settings.messages import misread
from blink_exp.settings.names import HYDRA_PATHS, NUMBERED, OPTIONAL_GROUPS, groups, settings, text_settings
from blink_exp.settings.presets import presets
from blink_exp.settings.roots import ROOTS

WITH_VALUE = {  # {Hydra flag with a value: example value}
    **dict.fromkeys(("--config-dir", "-cd", "--config-path", "-cp"), "FOLDER"),
    **dict.fromkeys(("--config-name", "-cn"), "evaluate"),
    **dict.fromkeys(("--package", "-p"), "model"),
    **dict.fromkeys(CFG := ("--cfg", "-c"), "job"),
}
FOLDER_FLAGS = ("--config-dir", "-cd")
PICKLE = "--experimental-rerun"  # Hydra's flag that loads a pickle
ALONE = (
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--shell-completion", "-sc", "--info", "-i"),
)
MULTIRUN = ("-m", "--multirun")
SHOWING = (*CFG, *(flag for flag in ALONE if flag not in (*MULTIRUN, "--run", "-r", "--resolve")))  # flags that run nothing
COMMAND_FLAGS = {  # {flag: its long form}, of which Hydra takes one
    **{"-m": "--multirun", "--multirun": "--multirun", "-r": "--run", "--run": "--run", "-c": "--cfg", "--cfg": "--cfg"},
    **{"-i": "--info", "--info": "--info", "-sc": "--shell-completion", "--shell-completion": "--shell-completion"},
    **{"-h": "--help", "--help": "--help", "--hydra-help": "--hydra-help"},
}
OF_MULTIRUN = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")
ONE_PROCESS = ("view", "rescore", "compare")  # commands that have the settings of evaluate.py and no use for other devices
NOTHING = {  # {command: (settings of which it needs one, what is said where none is given)}
    "sweep": (
        (*EXPERIMENTS, "dashboard"),
        "nothing to sweep; add -m and comma lists (thresholds=high_exp,low_drop), a table (table=blink_table2, tables=list: which)"
        " or a figure (figure=blink_fig3, figures=list)",
    ),
    "view": (("sample", "image", "question"), 'nothing to show; add sample=ID, or image=photo.jpg question="What is in the picture?"'),
}
LETTER_BY_LETTER = ("sample", "image", "question")  # text in which ${...} is not an interpolation
FUNCTION = re.compile(r"\w+\(.*\)", re.DOTALL)  # choice(a,b), glob(*): Hydra functions for several values
NOTHING_CHOSEN = tuple(f"{group}=null" for group in OPTIONAL_GROUPS)  # the default, which Hydra rejects as a choice


def prepared(argv: Sequence[str], root: str) -> list[str]:
    """The arguments for Hydra's main function of config ``root``. Raises UserError for those that Hydra would misread."""
    secrets.check_words(argv)
    words = [word for word in without_allowed(arranged(argv)) if word not in NOTHING_CHOSEN]
    if root != "train" and (line := redirection(words, root, fields(ROOTS[root]))) is not None:
        raise UserError(line)
    check_flags(words)
    words = quoted(words)
    check_words(words, root)
    check_read(words, root)
    return words


def shows(words: Sequence[str]) -> bool:
    """Whether a command shows its settings or a help text, and runs nothing."""
    return any(word.partition("=")[0] in SHOWING for word in words)


def check_read(words: Sequence[str], root: str) -> None:
    """Raises UserError for settings that Hydra takes and the command would not read."""
    if shows(words):
        return
    several = any(word in (*MULTIRUN, "hydra.mode=MULTIRUN") for word in words)
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if not several and key.startswith(OF_MULTIRUN):
            raise UserError(f"{word} is for a multirun; add -m, or leave it away")
        if key == "devices" and value != "1" and root in ONE_PROCESS:
            raise UserError(
                f"{word} is for {command_name('evaluate')} and {command_name('sweep')}; {root} uses one device, so leave it away"
            )


def check_flags(words: Sequence[str]) -> None:
    """Raises UserError for a folder that is none, and for flags of which Hydra takes one at a time: it would end in a traceback."""
    for word, behind in itertools.pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        folder = value if equals else behind
        if flag in FOLDER_FLAGS and not os.path.isdir(folder):
            raise UserError(f"{flag} {folder} is not a folder; give one with presets in it, as conf/ has them")
    given = list(dict.fromkeys(COMMAND_FLAGS[flag] for word in words if (flag := word.partition("=")[0]) in COMMAND_FLAGS))
    if len(given) > 1:
        cure = "leave --multirun away to see what one job would run with" if "--cfg" in given else "give one of them"
        raise UserError(f"{' and '.join(given)} cannot be combined; {cure}")


def arranged(argv: Sequence[str]) -> list[str]:
    """Moves flags before settings, as argparse requires."""
    flags: list[str] = []
    settings: list[str] = []
    words = iter(argv)
    for word in words:
        (flags if word.startswith("-") else settings).append(word)
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            continue
        if flag == PICKLE:
            raise UserError(
                f"{flag} loads a pickle, which can run any code; give the words of the run again, which are in .hydra/overrides.yaml"
            )
        if flag not in (*WITH_VALUE, *ALONE):  # argparse would print its full usage
            raise UserError(f"{flag} is no flag; {nearest(flag, [f for f in (*WITH_VALUE, *ALONE) if f.startswith('--')])}")
        if flag in WITH_VALUE and not equals:
            following = next(words, None)
            if following is None or following.startswith("-"):
                raise UserError(f"{flag} needs a value behind it, e.g. {flag} {WITH_VALUE[flag]}")
            flags.append(value := following)
        if flag in CFG and value not in ("job", "hydra", "all"):
            raise UserError(f"{flag} {value} is not known; use job, hydra or all")
    return [*flags, *settings]


def quoted(argv: Sequence[str]) -> list[str]:
    """Arguments with the values of text settings quoted. null, empty and already quoted values are unchanged. In a multirun a comma
    separates values, unless the whole value is an existing path."""
    several = any(flag in argv for flag in MULTIRUN)
    return [_quoted(word, several) for word in argv]


def word(key: str, value: object) -> str:
    """``key=value`` as Hydra reads it back, for a text setting."""
    return f"{key}={_quote(str(value))}"


def _quoted(word: str, several: bool) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if equals and name in NUMBERED and value.replace(",", "").isalnum():
        return f"{key}=" + ",".join(f"'{preset}'" if preset.isdecimal() else preset for preset in value.split(","))
    if not equals or name not in text_settings() or value in ("", "null") or _is_quoted(value):
        return word
    if name == "predictions" and value.startswith("[") and value.endswith("]"):
        return word  # a list of files
    value = os.path.expanduser(value) if value.startswith("~/") and name not in LETTER_BY_LETTER else value
    several = several and name not in HYDRA_PATHS  # Hydra does not sweep over its own settings
    if several and FUNCTION.fullmatch(value):
        return word
    if several and "," in value and not Path(value).exists():
        if any(mark in value for mark in "'\"[]{}()"):
            return word
        return f"{key}=" + ",".join(_quote(part) for part in value.split(","))
    return f"{key}={_quote(value, references=name not in LETTER_BY_LETTER)}"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quote(value: str, references: bool = True) -> str:
    """``value`` in quotes. Inside, a backslash escapes only a quote (Hydra) and ${ (OmegaConf)."""
    if not references:
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"'{value}'"


def check_words(argv: Sequence[str], root: str) -> None:
    """Raises UserError for overrides that Hydra would accept silently: an empty sweep, several presets or none for a group, a number
    for a boolean. In a multirun, each value of a sweep is checked by its own job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    budgets.check_budget(argv)
    for word in argv:
        if word.startswith("~") and not word.startswith("~hydra"):
            raise UserError(f"{word} would take a setting away; give it a value, or null where it may have none")
        if "=" not in word or word.startswith("-"):
            continue
        try:
            override = parser.parse_override(word)
        except (HydraException, RecursionError):
            raise UserError(misread(word)) from None
        except ValueError:  # Python reads no whole number of more than 4300 digits
            raise UserError(_too_large(word)) from None
        if not override.key_or_group:
            raise UserError(misread(word))
        key, value = str(override.key_or_group), override.value()
        values: list[Any] = [value]
        if override.is_sweep_override():
            if override.is_interval_sweep() or isinstance(value, Glob):
                continue
            values = list(override.sweep_iterator())
            if not values:
                raise UserError(f"{word} names no value, so nothing would run; a range ends before its second number: range(1,5) is 1 to 4")
        if any(map(_holds_too_large, values)):  # OmegaConf ends in an OverflowError where it makes a float of one
            raise UserError(_too_large(word))
        if word.startswith("+") and key.startswith(f"{HYDRA}."):
            _check_hydra_key(key)
        if key == "hydra.searchpath":
            _check_search_path(value)
        if word.startswith("+") and key in groups(ROOTS[root]):
            raise UserError(f"{word} would add a second preset to {key}; write {word.lstrip('+')}")
        if not (override.is_sweep_override() and any(flag in argv for flag in MULTIRUN)):
            for single in values:
                _check_one(key, single, ROOTS[root])


def _check_search_path(folders: Any) -> None:
    """Raises UserError for a folder of hydra.searchpath that is not there, of which Hydra prints a warning and goes on."""
    for folder in folders if isinstance(folders, list) else []:
        path = str(getattr(folder, "text", folder)).removeprefix("file://")  # text: of Hydra's QuotedString
        if "://" not in path and "${" not in path and not os.path.isdir(path):
            raise UserError(f"hydra.searchpath holds {path}, which is not a folder; give one with presets in it, as conf/ has them")


def _holds_too_large(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_holds_too_large, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not is_finite(value)


def _too_large(word: str) -> str:
    return f"{flat(word, 60)}... holds a number of more digits than any setting can have; give a smaller one"


def _check_hydra_key(key: str) -> None:
    """Raises UserError where Hydra has no setting ``key``, which it would add and never read. What a launcher and a sweeper read is known
    from their own schemas, so no setting of theirs needs a plus either."""
    from hydra.conf import HydraConf

    names = key.split(".")[1:]
    if len(names) == 2 and names[0] in ("launcher", "sweeper"):
        raise UserError(f"{key} is not a setting; write {key}=... without + for one that hydra/{names[0]} has")
    schema: Any = HydraConf
    for name in names:
        if not dataclasses.is_dataclass(schema):
            return  # free entries: environment variables, callbacks, logging
        if name not in fields(schema):  # type: ignore[arg-type]
            raise UserError(unknown(key, fields(schema)))  # type: ignore[arg-type]
        schema = value_type(schema, name)[0]  # type: ignore[arg-type]


def _check_one(key: str, value: Any, root: type) -> None:
    if key in groups(root):
        if isinstance(value, list):
            each = ",".join(map(str, value))
            raise UserError(
                f"{key} must be one preset, got {format_value(value)}; add -m and write {key}={each} to run one after the other"
            )
        if value is None or isinstance(value, dict):
            raise UserError(f"{key} must be one preset, got {format_value(value)}; --help lists them")
        if isinstance(value, int | float):
            instead = f"write layer={value} for one layer" if key == "layers" else nearest(format_value(value), presets(key))
            raise UserError(f"{key}={format_value(value)} is not a preset; {instead}")
        return
    if isinstance(value, int | float) and not isinstance(value, bool):
        schemas = settings(root).get(key, [])
        if schemas and all(value_type(schema, name)[0] is bool for schema, name in schemas):
            raise UserError(refusal(*schemas[0], key, value))
