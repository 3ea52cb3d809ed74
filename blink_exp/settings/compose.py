"""conf/ composed and checked, for whoever needs settings without a script of the command line around it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from blink_exp.errors import UserError
from blink_exp.settings.check import check
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.presets import CONF
from blink_exp.settings.values import plain, typed
from blink_exp.settings.words import NOTHING_CHOSEN, quoted


def composed(root: str, words: Sequence[str]) -> Any:
    """The settings of conf/<root>.yaml with the overrides ``words``, as its command has them. Raises UserError for wrong and missing
    ones."""
    return typed(config(root, words))


def composed_plain(root: str, words: Sequence[str]) -> dict[str, Any]:
    """The same as plain Python, with "???" for settings that must be given and are not."""
    cfg = config(root, words)
    check(cfg, whole=False)
    return plain(cfg)


def config(root: str, words: Sequence[str]) -> DictConfig:
    """The same as Hydra composes it, unchecked."""
    inside = GlobalHydra.instance().is_initialized()  # under hydra.main, which allows no second
    try:
        with contextlib.nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(root, overrides=[word for word in quoted(words) if word not in NOTHING_CHOSEN])
    except HYDRA_ERRORS as error:
        raise UserError(translated(error)) from error


def method_preset(name: str, settings: Any) -> dict[str, Any]:
    """The method of preset ``name``; the values that it takes from other groups are those of ``settings``."""
    groups = {key: value for key, value in dataclasses.asdict(settings).items() if not isinstance(value, str)}
    method = OmegaConf.to_container(config("evaluate", [f"method={name}"]).method)
    resolved: dict[str, Any] = plain(OmegaConf.create(groups | {"method": method}))["method"]
    return resolved
