"""Config groups and settings of each root config, by their dotted names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from blink_exp.settings import budgets
from blink_exp.settings.check import fields, value_type
from blink_exp.settings.limits import Text
from blink_exp.settings.roots import ROOTS
from blink_exp.settings.schemas.methods import Pair
from blink_exp.settings.targets import BY_TARGET

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
OPTIONAL_GROUPS = ("table", "figure", "search")
NUMBERED = (budgets.GROUP,)  # groups without a node of their own, whose presets may be numbers, which Hydra takes for text in quotes only


@functools.cache
def groups(root: type) -> tuple[str, ...]:
    """Config groups of a root config: those with one schema, and those whose presets have different schemas."""
    typed = [name for name in fields(root) if dataclasses.is_dataclass(value_type(root, name)[0])]
    mixed = [name for name in fields(root) if name in (*_variants(), *OPTIONAL_GROUPS)]
    return (*typed, *mixed, *(NUMBERED if "tokens" in fields(root) else ()))


@functools.cache
def settings(root: type) -> dict[str, list[tuple[type, str]]]:
    """{dotted key: [(schema, field name)]} of every setting of a command line. In a group whose presets differ, several schemas may have
    the same field."""
    out: dict[str, list[tuple[type, str]]] = {}
    for key, schema, name in _walk(root, ""):
        out.setdefault(key, []).append((schema, name))
    return out


def _walk(schema: Any, prefix: str) -> Iterator[tuple[str, type, str]]:
    for name in fields(schema):
        kind = value_type(schema, name)[0]
        inner = [kind] if dataclasses.is_dataclass(kind) else _variants().get(f"{prefix}{name}", [])
        for variant in inner:
            yield from _walk(variant, f"{prefix}{name}.")
        if not inner:
            yield prefix + name, schema, name


@functools.cache
def _variants() -> dict[str, list[type]]:
    """The schemas of each group whose presets have different schemas."""
    homes = {
        "model": "backbone.",
        "method": "methods.",
        "benchmark": "benchmarks.",
        "judge": "judge.",
        "data": "training.data.",
        "logger": "tracking.loggers.",
    }
    by_group = {
        group: list(dict.fromkeys(schema for target, schema in BY_TARGET.items() if target.startswith(f"blink_exp.{home}")))
        for group, home in homes.items()
    }
    alone = [schema for schema in by_group["method"] if schema is not Pair]
    paired = {"method.pruner": alone, "method.policy": alone}
    return by_group | paired


@functools.cache
def text_settings() -> frozenset[str]:
    """Dotted keys of the settings that hold literal text."""
    named_settings = [(key, places) for root in ROOTS.values() for key, places in settings(root).items()]
    texts = [key for key, places in named_settings if any(isinstance(fields(s)[n].metadata.get("limit"), Text) for s, n in places)]
    return frozenset([*texts, *HYDRA_PATHS, "predictions"])
