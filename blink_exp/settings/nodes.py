"""Everything that a composed config holds, also what a resolver makes when it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blink_exp.errors import UserError, flat

TEXT_ONLY = ("${now:", "${hydra:", "${oc.env:", "${python_version:")  # resolvers that make no mapping


class Entry(NamedTuple):
    """An entry of a config. ``name``: its dotted key; ``key``: the last part of it; ``raw``: as written; ``value``: with interpolations
    resolved, None where that is not possible yet."""

    name: str
    key: Any
    raw: Any
    value: Any


def entries(config: Any) -> Iterator[Entry]:
    """Every entry of a config, or of a plain mapping that Hydra would make one of, in order. What an interpolation refers to has entries of
    its own and is not repeated; what a resolver such as ``oc.create`` makes is walked where it stands.

    Raises UserError for a resolver that could make settings and cannot be resolved.
    """
    root = config if OmegaConf.is_config(config) else OmegaConf.create(config, flags={"allow_objects": True})
    yield from _walk(OmegaConf.to_container(root, resolve=False), "", root)


def _walk(value: Any, prefix: str, root: Any) -> Iterator[Entry]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, child in pairs:
        name = f"{prefix}[{key}]" if isinstance(value, list) else f"{prefix}.{key}" if prefix else str(key)
        if not isinstance(child, str) or "${" not in child or root is None:
            yield Entry(name, key, child, child)
            yield from _walk(child, name, root)
            continue
        resolved = _resolved(root, name, child)
        yield Entry(name, key, child, resolved)
        if ":" in child:
            yield from _walk(resolved, name, None)


def _resolved(root: Any, name: str, raw: str) -> Any:
    """The value of an interpolation as plain Python; None where it has none yet, such as Hydra's output folder."""
    try:
        value = OmegaConf.select(root, name, throw_on_missing=True)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, ValueError, TypeError):
        if raw.startswith("${") and ":" in raw and not raw.startswith(TEXT_ONLY):
            raise UserError(f"{name}={flat(raw, 120)} cannot be resolved; write the settings themselves") from None
        return None
