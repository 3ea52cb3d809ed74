"""Composes and checks conf/ without a command line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import UserError
from blink_exp.settings.allowed import without_allowed
from blink_exp.settings.check import check
from blink_exp.settings.folders import CONF
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.values import plain, typed
from blink_exp.settings.words import NOTHING_CHOSEN, quoted


def composed(root: str, words: Sequence[str]) -> Any:
    """The typed settings of conf/<root>.yaml with the overrides ``words``. Raises UserError for invalid and missing settings."""
    return typed(config(root, words))


def composed_plain(root: str, words: Sequence[str]) -> PlainSettings:
    """Like ``composed``, as plain Python; missing mandatory settings are "???"."""
    cfg = config(root, words)
    check(cfg, whole=False)
    return plain(cfg)


def config(root: str, words: Sequence[str]) -> DictConfig:
    """Like ``composed``, as an unchecked Hydra config."""
    inside = GlobalHydra.instance().is_initialized()  # under hydra.main, Hydra is initialized already
    words = words if inside else without_allowed(words)
    try:
        with contextlib.nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(root, overrides=[word for word in quoted(words) if word not in NOTHING_CHOSEN])
    except HYDRA_ERRORS as error:
        raise UserError(translated(error)) from error


def method_preset(name: str, settings: Any) -> PlainSettings:
    """The method of preset ``name``, its interpolations resolved with ``settings``."""
    groups = {key: value for key, value in dataclasses.asdict(settings).items() if not isinstance(value, str)}
    method = OmegaConf.to_container(config("evaluate", [f"method={name}"]).method)
    resolved: PlainSettings = plain(OmegaConf.create(groups | {"method": method}))["method"]
    return resolved
