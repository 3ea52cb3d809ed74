"""Every setting of every root config with eight odd values each: one line that says what the setting must be, or a meaning listed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.composing import CONF, composed, leaves, line_of
from support.setting_values import MEANT, OF_METHODS, VALUES, meant

from blink_exp.settings.roots import ROOTS
from blink_exp.settings.targets import BY_TARGET

MIXED = {"evaluate": ["model", "benchmark", "method", "logger", "judge"], "train": ["data"]}  # groups whose presets differ


def made_of(file: Path) -> str | None:
    """What a preset says that it is; None for one that takes it from another."""
    match = re.search(r"^_target_: (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def one_of_each_schema(group: str) -> list[str]:
    """Presets of a group, one a schema."""
    first: dict[type, Path] = {}
    for file in sorted((CONF / group).glob("*.yaml")):
        if kind := made_of(file):
            first.setdefault(BY_TARGET[kind], file)
    return [f"{group}={file.stem}" for file in first.values()]


GROUPS = {root: [word for group in groups for word in one_of_each_schema(group)] for root, groups in MIXED.items()}
ROUNDS = [(root, "") for root in ("evaluate", "sweep", "train")] + [(root, word) for root, words in GROUPS.items() for word in words]


# groups, by the last part of their names
NO_VALUES = ("table", "figure", "search", "resolution", "tokensr", "options", "judge", "layers", "image_loading")


@pytest.mark.slow
@pytest.mark.parametrize(("root", "word"), ROUNDS, ids=[f"{root} {word}".strip() for root, word in ROUNDS])
def test_every_setting_takes_what_is_meant_and_refuses_the_rest_in_one_line(root, word):
    group = word.partition("=")[0]
    keys = [key for key in leaves(composed(root, word)) if not group or key.startswith(f"{group}.")]
    if root == "sweep":  # the rest is evaluate.py's
        keys = [key for key in keys if key not in leaves(composed("evaluate", ""))]
    if not group:  # tried with their presets
        keys = [key for key in keys if key.partition(".")[0] not in MIXED.get(root, [])]
    known = {key: meant(word, key) for key in keys}
    unknown = [key for key, kinds in known.items() if kinds is None and key.rpartition(".")[2] not in NO_VALUES]
    assert not unknown, "settings that this test has no row for"
    for key, kinds in known.items():
        for kind, value in VALUES.items() if kinds is not None else ():
            line = line_of(root, word, key, value)
            if kind in kinds:
                assert line is None, f"{key}={value}: {line}"
            else:
                assert line is not None, f"{key}={value} is taken"
                assert "\n" not in line and key in line, line
                assert "full_key" not in line and "object_type" not in line, line
                if value:
                    assert value in line or kind in ("empty", "list"), line


def test_everything_that_ships_has_a_schema():
    files = [file for group in ("model", "benchmark", "method", "judge", "data", "logger") for file in (CONF / group).glob("*.yaml")]
    callbacks = composed("train", "").trainer.callbacks.values()
    assert {kind for file in files if (kind := made_of(file))} | {callback["_target_"] for callback in callbacks} == set(BY_TARGET)


@pytest.mark.slow
def test_the_rows_name_settings_that_are_there():
    doors = [(root, "") for root in ROOTS]
    keys = {key for root, word in (*ROUNDS, *doors) for key in leaves(composed(root, word))}
    assert set(MEANT) <= keys | {"benchmark.request", "benchmark.of"}
    assert {f"method.{name}" for name in OF_METHODS} <= keys
