"""Settings as values: composed, checked and resolved Hydra configs as the dataclass of their root. Code below the commands sees no
Hydra config.

Groups with a schema are dataclasses too. Nodes with a ``_target_`` (model, method, benchmark, judge) and the logger are plain dicts, from
which ``settings.build`` builds objects. Use ``dataclasses.replace`` to change a setting.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError, flat
from blink_exp.files import read_text
from blink_exp.settings.check import HYDRA, check, fields, value_type

T = TypeVar("T")


def typed(cfg: DictConfig) -> Any:
    """A composed config, checked, as the dataclass of its root without Hydra's own settings."""
    check(cfg)
    schema = OmegaConf.get_type(cfg)
    assert dataclasses.is_dataclass(schema)
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != HYDRA])
    return from_plain(schema, plain(settings))


def plain(cfg: DictConfig) -> PlainSettings:
    """A config as plain Python with interpolations resolved; missing values are "???"."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def from_plain(schema: Any, values: PlainSettings) -> Any:
    """A dataclass of ``schema`` from plain Python; unknown keys are ignored. Raises KeyError for a missing one."""
    arguments = {}
    for name in fields(schema):
        kind = value_type(schema, name)[0]
        arguments[name] = from_plain(kind, values[name]) if dataclasses.is_dataclass(kind) else values[name]
    return schema(**arguments)


def as_type(schema: type[T], settings: Any) -> T:
    """``settings`` reduced to the base dataclass ``schema``, e.g. sweep settings to those of a point."""
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    return schema(**{name: getattr(settings, name) for name in names})


def to_yaml(settings: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(settings)))


def read_yaml(path: Path) -> PlainSettings:
    """A file of conf/ as plain Python with interpolations resolved."""
    return plain(OmegaConf.load(path))  # type: ignore[arg-type]


def read_settings(path: Path, cure: str) -> PlainSettings:
    """The mapping in a YAML file as plain Python. Raises UserError if the file is missing, damaged, empty or not a mapping."""
    if not path.is_file():
        raise UserError(f"{path} is not there; {cure}")
    try:
        text = read_text(path)
        settings = (
            OmegaConf.to_container(OmegaConf.load(io.StringIO(text))) if ":" in text else None
        )  # OmegaConf reads a single word as a key
    except (ValueError, RecursionError, OSError, yaml.YAMLError, OmegaConfBaseException) as error:  # OSError: a YAML number
        raise UserError(f"{path} is damaged or cut off ({flat(error, 120)}); {cure}") from None
    if not isinstance(settings, dict) or not settings:
        raise UserError(f"{path} is empty or no mapping of settings; {cure}")
    return {str(key): value for key, value in settings.items()}


def by_full_name(settings: PlainSettings, prefix: str = "") -> PlainSettings:
    """{full name: value} of nested settings."""
    out: PlainSettings = {}
    for name, value in settings.items():
        out |= by_full_name(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
