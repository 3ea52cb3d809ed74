"""Translates errors of Hydra and OmegaConf into one line with the setting, its value, its rule and a cure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from blink_exp.errors import UserError, flat, nearest
from blink_exp.settings.check import fields, refusal, unknown

HYDRA_ERRORS = (HydraException, OmegaConfBaseException)
# Hydra's internal object names and links in error messages
INTERNALS = re.compile(r"\n\s*(full_key|object_type|reference_type):?.*|\n?See https?://\S+.*", re.DOTALL)


def translated(error: BaseException) -> str:
    """One line that explains an error of Hydra or OmegaConf to the user."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, UserError):  # instantiate() wraps what a constructor raised
            return str(cause)
    for cause in chain:
        message = _one(cause)
        if message:
            return message
    return flat(INTERNALS.sub("", str(error))) or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its chain of causes, innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _one(error: BaseException) -> str | None:
    if isinstance(error, MissingConfigException):
        return _missing_preset(error)
    if isinstance(error, InstantiationException):
        reason = error.__cause__ or error.__context__
        message = flat(INTERNALS.sub("", str(error)).partition(", set env var")[0])
        return f"{message}: {flat(reason, 300)}" if reason is not None and str(reason) not in message else message
    if isinstance(error, OverrideParseException):
        return misread(error.override)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=..."
    if isinstance(error, ConfigKeyError | AttributeError) and isinstance(error, OmegaConfBaseException):
        return _unknown(error)
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key or 'a setting'} refers to something that is not there: {flat(INTERNALS.sub('', str(error)))}"
    if isinstance(error, ValidationError):
        return _wrong_value(error)
    if isinstance(error, ConfigCompositionException):
        several = re.match(r"Ambiguous value for argument '(.*?)'", str(error), re.DOTALL)
        if several:
            return f"{several[1]} has several values; add -m to run one after the other, or quote a value that holds commas"
        merged = re.match(r"Error merging override (.*)", str(error), re.DOTALL)
        if merged and not isinstance(error.__cause__, ValidationError):
            return misread(merged[1])
    return None


def misread(word: str) -> str:
    """The message for an argument that Hydra's grammar rejects."""
    cure = "quote a value with blanks, commas, quotes or brackets: \"key='value'\"" if "=" in word else "write key=value"
    return f"{flat(word, 200)} is not understood; {cure}"


def _missing_preset(error: MissingConfigException) -> str | None:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group and name:
        return f"--config-name {name} names no config; leave it away, or give the folder that it is in with --config-dir FOLDER"
    if not group or not error.options:
        return None
    return f"{group}={name} is not a preset; {nearest(name, error.options)}"


def _unknown(error: OmegaConfBaseException) -> str:
    """The message for an unknown key."""
    schema, key = error.object_type, str(error.full_key or error.key)
    if dataclasses.is_dataclass(schema):
        keys = set(fields(schema)) | ({"method/pruner", "method/policy"} if "method" in fields(schema) else set())
    else:
        parent = error.parent_node
        keys = {str(name) for name in parent} if parent is not None and hasattr(parent, "__iter__") else set()
    return unknown(key, keys)


def _wrong_value(error: ValidationError) -> str | None:
    name = re.sub(r"\[\d+\]$", "", str(error.full_key))  # an invalid list entry is reported for the whole list
    schema, key = error.object_type, name.rpartition(".")[2]
    if not dataclasses.is_dataclass(schema):
        parent = error.parent_node
        schema = OmegaConf.get_type(parent._get_parent()) if isinstance(parent, ListConfig) else None
    if dataclasses.is_dataclass(schema) and key in fields(schema):
        return refusal(schema, key, name, error.value)
    return f"{name} has a wrong value: {flat(INTERNALS.sub('', str(error)))}" if name else None
