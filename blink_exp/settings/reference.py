"""The page docs/config.md: every setting with its type, range, default and meaning.

    python -m blink_exp.settings.reference > docs/config.md

Types and ranges come from the schemas. Defaults and meanings come from conf/: the comment behind a value says what the setting does. A
preset inherits comments like values; a preset that is silent has the comment of the same setting of the same schema in another preset.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from blink_exp.markdown import line
from blink_exp.settings.check import INSTANTIATE, SHORT_FOR, fields, value_type
from blink_exp.settings.commented import Conf, Preset, Value
from blink_exp.settings.doors import COMMANDS, command_name
from blink_exp.settings.folders import CONF
from blink_exp.settings.limits import Between, Each, Limit, Words
from blink_exp.settings.meanings import MEANINGS
from blink_exp.settings.roots import ROOTS, EvaluateSettings, RescoreSettings
from blink_exp.settings.targets import BY_TARGET

TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "mixed"}
EXPERIMENTS = {"table": "Tables", "figure": "Figures", "search": "Searches"}  # groups whose presets are experiments, with their headings
OWN_ROOTS = ("sweep", "view", "rescore", "compare", "parity")  # commands that add settings to those of evaluate.py
COLUMNS = ("setting", "type", "range", "default", "meaning")
REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)(?:,\w+)?\}")
INTRODUCTION = """# Settings reference

Written by `python -m blink_exp.settings.reference > docs/config.md`: types and ranges from the schemas in `blink_exp/settings`, defaults
and meanings from `conf/`. How values are written on the command line, and how to add presets and settings: [settings](settings.md). A
default `${name}` is the value of another setting.
"""


def page(folder: Path = CONF) -> str:
    """The text of docs/config.md."""
    conf = Conf.of(folder)
    parts = [INTRODUCTION, "## Commands\n", *_commands(conf)]
    order = [*conf.roots["evaluate"].groups, *conf.roots["train"].groups]
    parts.append("## Groups\n")
    for group in dict.fromkeys(name for name in order if name in conf.groups):
        parts += _group(conf, group)
    for group, heading in EXPERIMENTS.items():
        parts += [f"## {heading}\n", *_presets(conf.groups[group], "")]
    return "\n".join([*parts, "## Launchers\n", *_launchers(conf.launchers)])


def _launchers(launchers: dict[str, Preset]) -> Iterator[str]:
    """Their settings are checked by Hydra and have no schema here."""
    for name, preset in launchers.items():
        values = {key: value for key, value in preset.values.items() if "_target_" not in key and value.text}
        rows = [(f"`hydra.launcher.{key}`", f"`{value.text}`", _escaped(value.comment)) for key, value in values.items()]
        yield f"#### hydra/launcher={name}\n"
        yield f"{_escaped(preset.header)}\n"
        if rows:
            yield _table(rows, ("setting", "default", "meaning"))


def _commands(conf: Conf) -> Iterator[str]:
    yield f"### {command_name('evaluate')}\n"
    yield f"{_escaped(conf.roots['evaluate'].header)}\n"
    yield _table(_rows(EvaluateSettings, "", conf.roots["evaluate"], {}))
    for root in OWN_ROOTS:
        known = fields(RescoreSettings if root == "compare" else EvaluateSettings)
        preset = conf.roots[root]
        rows = [row for row in _rows(ROOTS[root], "", preset, {}) if row[0].strip("`") not in known or row[0].strip("`") in preset.values]
        yield f"### {command_name(root)}\n"
        yield f"{_sentence(COMMANDS[root]) if root in COMMANDS else _escaped(preset.header)}\n"
        yield f"Beside the settings of `{command_name('rescore' if root == 'compare' else 'evaluate')}`:\n"
        yield _table(rows)
    yield f"### {command_name('train')}\n"
    yield f"{_escaped(conf.roots['train'].header)}\n"
    yield _table(_rows(ROOTS["train"], "", conf.roots["train"], {}))


@functools.cache
def method_settings(preset: str) -> dict[str, tuple[str, str]]:
    """{setting of a preset of conf/method: (what it does, the setting of the command line that it refers to, or "")}."""
    conf = _conf(CONF)
    presets = conf.groups["method"]
    merged = presets[preset].merged(presets)
    out = {}
    for name in fields(BY_TARGET[merged.target]):
        value = merged.values.get(name)
        reference = REFERENCE.fullmatch(value.text) if value is not None else None
        meaning = _meaning(BY_TARGET[merged.target], name, name, merged, presets)
        if reference is not None and not (value and value.comment):
            meaning = _meaning_of(conf, reference[1])
        out[name] = meaning, reference[1] if reference is not None else ""
    return out


_conf = functools.cache(Conf.of)


def _meaning_of(conf: Conf, setting: str) -> str:
    """What a setting of evaluate.py does, or a group of them."""
    group, _, name = setting.rpartition(".")
    if setting in MEANINGS or group not in conf.groups:
        value = conf.roots["evaluate"].values.get(setting)
        return MEANINGS.get(setting) or (value.comment if value is not None else "")
    presets = conf.groups[group]
    merged = presets[conf.default(group)].merged(presets)
    return merged.values[name].comment if name in merged.values and merged.values[name].comment else MEANINGS[group]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _group(conf: Conf, group: str) -> Iterator[str]:
    presets, default = conf.groups[group], conf.default(group)
    yield f"### {group}\n"
    yield f"{_sentence(_escaped(MEANINGS[group]))}\n"
    schema = next((kind for root in ROOTS.values() if group in fields(root) and _is_schema(kind := value_type(root, group)[0])), None)
    if schema is not None:
        yield _table(_rows(schema, f"{group}.", presets[default].merged(presets), presets))
        yield from _presets(presets, default)
        return
    if all(not preset.target and not preset.parents for preset in presets.values()):  # budgets: short for settings of the root
        yield from _presets(presets, default)
        return
    for name, preset in presets.items():
        merged = preset.merged(presets)
        yield f"#### {group}={name}{' (default)' if name == default else ''}\n"
        rows = list(_rows(BY_TARGET[merged.target], f"{group}.", merged, presets))
        if preset.parents:
            preset_keys = {f"`{group}.{key}`" for key in preset.values}
            rows = [row for row in rows if row[0] in preset_keys]
        yield f"{_escaped(preset.header)}\n"
        if preset.parents:
            yield f"As `{preset.parents[-1]}`, with:\n"
        yield _table(rows)


def _presets(presets: dict[str, Preset], default: str) -> Iterator[str]:
    rows = []
    for name, preset in presets.items():
        title, values = preset.header, ", ".join(f"`{key}: {v.text}`" for key, v in preset.values.items() if v.text and key[0] != "_")
        if "title" in preset.values:
            title, values = preset.values["title"].text.strip('"'), ""
        rows.append((f"`{name}`{' (default)' if name == default else ''}", _escaped(title), values.replace("|", "\\|")))
    columns = ("preset", "what it is", "sets") if any(row[2] for row in rows) else ("preset", "what it is")
    yield _table([row[: len(columns)] for row in rows], columns)


def _rows(schema: type, prefix: str, preset: Preset, group: dict[str, Preset], inside: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each setting of ``schema``, those of groups inside it included. ``inside``: dotted key of the node that it describes."""
    for name in fields(schema):
        key, kind = f"{inside}{name}", value_type(schema, name)[0]
        value = preset.values.get(key)
        inner = kind if _is_schema(kind) else None
        if name in INSTANTIATE or (prefix == "" and not inside and _is_group(schema, name)):
            continue
        if inner is not None:
            yield from _rows(inner, prefix, preset, group, f"{key}.")
        elif f"{key}._target_" in preset.values or any(other.startswith(f"{key}.") for other in preset.values):
            yield from _nested(prefix, preset, group, key, value)
        elif value is not None or key in preset.groups or fields(schema)[name].default != MISSING:  # else the preset leaves it away
            yield _row(schema, name, f"{prefix}{key}", value, _meaning(schema, name, key, preset, group), preset.groups.get(key, ""))


def _nested(prefix: str, preset: Preset, group: dict[str, Preset], key: str, value: Value | None) -> Iterator[tuple[str, ...]]:
    """Rows of a node whose schema its ``_target_`` says, or the targets inside it, such as callbacks."""
    for target in [other for other in preset.values if other.startswith(f"{key}.") and other.endswith("_target_")]:
        node = target.removesuffix("._target_")
        schema = BY_TARGET.get(preset.values[target].text)
        named = preset.values[node]
        text, comment = preset.values[target].text, named.comment or (value.comment if value else "")
        yield f"`{prefix}{node}`", "settings with a `_target_`", "", f"`{text}`", _escaped(comment)
        if schema is not None:
            yield from _rows(schema, prefix, preset, group, f"{node}.")


def _row(schema: type, name: str, key: str, value: Value | None, meaning: str, default: str = "") -> tuple[str, ...]:
    kind, nullable = value_type(schema, name)
    limit: Limit | None = fields(schema)[name].metadata.get("limit")
    default = value.text if value is not None else default or _written(fields(schema)[name].default)
    shown = "must be given" if default == MISSING else f"`{default}`" if default else ""
    type_name = TYPES.get(kind, "list" if typing.get_origin(kind) is list else "group of settings")
    return f"`{key}`", type_name + (" or null" if nullable else ""), _escaped(_range(limit)), shown.replace("|", "\\|"), _escaped(meaning)


def _written(default: Any) -> str:
    return "null" if default is None else str(default)


def _range(limit: Limit | None) -> str:
    """The valid values: an interval for numbers, else the rule of the limit."""
    if isinstance(limit, Each):
        return f"each {_range(limit.limit)}"
    if isinstance(limit, Words):
        return ", ".join(limit.words)
    if not isinstance(limit, Between):
        return limit.rule if limit is not None else ""
    low, high = limit.low if limit.least is None else limit.least, limit.high if limit.high is not None else limit.most
    if low is None and high is None:
        return "any"
    if high is None:
        return f"above {low:g}" if limit.above else f"at least {low:g}"
    opening = "(" if limit.above and limit.least is None else "["
    return f"{opening}{_number(low)}, {_number(high)}{')' if limit.below else ']'}"


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:g}"


def _meaning(schema: type, name: str, key: str, preset: Preset, group: dict[str, Preset]) -> str:
    """What a setting does: the comment behind it, or of the settings around it, or what it refers to, or what another preset says."""
    value = preset.values.get(key)
    if key in preset.groups:
        return f"another one: `method/{key}=`"
    if value is not None and value.comment:
        return value.comment
    if value is not None and (reference := REFERENCE.fullmatch(value.text)):
        return f"see `{reference[1]}`"
    around = preset.values.get(key.rpartition(".")[0])
    if around is not None and around.comment:
        return around.comment
    owner = _owner(schema, name)
    for other in group.values():
        other_schema = BY_TARGET.get(other.merged(group).target)
        if other_schema is not None and name in fields(other_schema) and _owner(other_schema, name) is owner:
            elsewhere = other.merged(group).values.get(key)
            if elsewhere is not None and elsewhere.comment:
                return elsewhere.comment
    return f"short for the group `{SHORT_FOR[key]}`" if key in SHORT_FOR else ""


@functools.cache
def _owner(schema: type, name: str) -> type:
    """The dataclass that a field is declared in."""
    return next(base for base in schema.__mro__ if name in inspect.get_annotations(base))


def _is_schema(kind: Any) -> bool:
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and dataclasses.is_dataclass(kind)


def _is_group(root: type, name: str) -> bool:
    """Whether a field of a root is a config group."""
    return _is_schema(value_type(root, name)[0]) or (CONF / name).is_dir()


def _escaped(text: str) -> str:
    """Text of a comment as Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts).replace("|", "\\|")


def _table(rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]], columns: Sequence[str] = COLUMNS) -> str:
    rows = list(rows)
    if not rows:
        return "No settings.\n"
    return "\n".join(map(line, (columns, ("---",) * len(columns), *rows))) + "\n"


if __name__ == "__main__":
    print(page(), end="")
