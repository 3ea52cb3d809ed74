"""Validates composed settings; a violation is one line.

Hydra checks the types of the root settings and of most groups (``roots``). Groups whose presets differ in schema, and all limits beyond
types, are checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, flat, nearest
from blink_exp.settings.allowed import check_targets
from blink_exp.settings.limits import Between, Limit
from blink_exp.settings.moved import moved
from blink_exp.settings.targets import BY_TARGET

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
HYDRA = "hydra"  # Hydra's own settings, checked by Hydra
INSTANTIATE = ("_target_", "_args_", "_convert_", "_partial_", "_recursive_")  # what instantiate() reads
SHORT_FOR = {"layer": "layers"}  # {setting: group that it abbreviates}
REFUSED = "refused"  # key with the error of a multirun job whose overrides do not compose (``job_loader``)


def expand_layer(cfg: DictConfig) -> None:
    """Replaces ``layer``, which abbreviates ``layers``, in place."""
    if cfg.get("layer") is not None:
        cfg.layers.indices, cfg.layers.relative = [cfg.layer], False
        cfg.layer = None


def check(cfg: DictConfig, whole: bool = True) -> None:
    """Raises UserError for the first setting of ``cfg`` that is unknown, of a wrong type, outside its limits, or calls what it may not.

    In place, text given for a number ("0.5") is converted, and ``layer`` is expanded to ``layers``. ``whole``: whether mandatory
    settings must be present.
    """
    if REFUSED in cfg:
        raise UserError(cfg[REFUSED])
    check_targets(cfg)
    for prefix, node in _nodes(cfg, ""):
        schema = schema_of(node)
        if schema is not None:
            _check_node(node, prefix, schema, whole)
    expand_layer(cfg)


def check_values(schema: type, prefix: str, values: PlainSettings) -> PlainSettings:
    """``values`` converted to the types of ``schema``, for use without Hydra. Raises UserError as ``check``; settings may be missing."""
    node = OmegaConf.create(values)
    _check_node(node, prefix, schema, whole=False)
    return {str(key): node[key] for key in node}


def schema_of(node: DictConfig) -> type | None:
    """The schema of ``node``; None for targets of other packages."""
    schema = OmegaConf.get_type(node)
    if dataclasses.is_dataclass(schema):
        return schema
    if "_target_" in node:
        return BY_TARGET.get(str(node["_target_"]))
    return None


def _nodes(node: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig]]:
    """``node`` and every mapping below it, with their dotted key prefixes. Interpolations are skipped."""
    yield prefix, node
    for key in list(node):
        if (not prefix and key == HYDRA) or OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(child := node[key], DictConfig):
            yield from _nodes(child, f"{prefix}{key}.")


def _check_node(node: DictConfig, prefix: str, schema: type, whole: bool) -> None:
    missing = []
    for key in list(node):
        if key in INSTANTIATE or (not prefix and key == HYDRA):
            continue
        if key not in fields(schema):
            raise UserError(unknown(f"{prefix}{key}", fields(schema)))
        if OmegaConf.is_missing(node, key):
            missing.append(str(key))
            continue
        if OmegaConf.is_interpolation(node, key):
            _ = node[key]  # raises if it refers to nothing; its target is checked separately
        else:
            _check_value(node, str(key), prefix, schema)
    if missing and whole:
        names, words = " and ".join(prefix + key for key in missing), [f"{prefix}{key}=... ({rule(schema, key)})" for key in missing]
        raise UserError(f"{names} must be given: {' '.join(words)}")


def _check_value(node: DictConfig, key: str, prefix: str, schema: type) -> None:
    given, kind = node[key], value_type(schema, key)[0]

    def wrong() -> UserError:
        return UserError(refusal(schema, key, f"{prefix}{key}", given))

    if kind is bool and isinstance(given, int | float) and not isinstance(given, bool):
        raise wrong()  # OmegaConf would take any number for true
    value = given
    group = isinstance(given, DictConfig) and (kind is Any or dataclasses.is_dataclass(kind))  # what it holds is checked by itself
    if not group and type(given) is not kind:
        typed = _empty(schema)
        try:
            typed[key] = given
            value = typed[key]
        except (OmegaConfBaseException, OverflowError):  # a whole number that no float holds
            raise wrong() from None
    limit = fields(schema)[key].metadata.get("limit")
    if (value is not None or kind is Any) and limit is not None and not limit.holds(value):  # of Any, the limit decides about null
        raise wrong()
    if isinstance(value, float) and limit is None and not Between().holds(value):
        raise wrong()
    if not isinstance(value, DictConfig | ListConfig) and (type(value) is not type(given)):
        node[key] = value


@functools.cache
def _empty(schema: type) -> DictConfig:
    """An empty node of ``schema`` to validate values with."""
    empty: DictConfig = OmegaConf.structured(schema)
    return empty


@functools.cache
def fields(schema: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(schema)}


@functools.cache
def _types(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def value_type(schema: type, key: str) -> tuple[Any, bool]:
    """(type of a setting, whether it is nullable)."""
    hint = _types(schema)[key]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0], True
    return hint, hint is type(None)


def rule(schema: type, key: str) -> str:
    """What a setting must be, in words: "a whole number of at least 1, or null"."""
    kind, nullable = value_type(schema, key)
    limit: Limit | None = fields(schema)[key].metadata.get("limit")
    text = limit.rule if limit is not None else NAMES.get(kind, "a group of settings" if dataclasses.is_dataclass(kind) else "null")
    return text + (", or null" if nullable and text != "null" else "")


def unknown(name: str, settings_there: Iterable[str], of: str = "") -> str:
    """One line for an unknown setting, with the most similar one of ``settings_there``. ``of``: words that say whose settings they are."""
    if line := moved(name):
        return line
    settings = [key for key in settings_there if key not in INSTANTIATE]
    if not settings and name.startswith(f"{HYDRA}.launcher."):
        return f"{name} is not a setting of this launcher, which has none; choose another with hydra/launcher=..."
    return f"{name} is not a setting{of}; " + (nearest(name.rpartition(".")[2], settings) if settings else "what holds it has none")


def refusal(schema: type, key: str, name: str, value: Any) -> str:
    """One line: the setting, its rule, the invalid value, and a cure if one is known."""
    limit: Limit | None = fields(schema)[key].metadata.get("limit")
    hint = limit.hint(value) if limit is not None else ""
    if isinstance(value, float) and value_type(schema, key)[0] is float and value.is_integer():
        value = int(value)  # OmegaConf converted it to float
    return f"{name} must be {rule(schema, key)}, got {format_value(value)}" + (f"; {hint}" if hint else "")


def format_value(value: Any) -> str:
    """A value in command-line syntax."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if value == "":
        return "nothing"
    if isinstance(value, list):
        return "[" + ",".join(format_value(entry) for entry in value) + "]"
    return flat(value, 200)
