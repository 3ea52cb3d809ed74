"""conf/ composed and checked, for whoever needs settings without a script of the command line around it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from blink_exp.errors import UserError
from blink_exp.settings.check import check
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.presets import CONF
from blink_exp.settings.words import NOTHING_CHOSEN, quoted


def composed(root: str, words: Sequence[str], whole: bool = True) -> DictConfig:
    """The settings of conf/<root>.yaml with the overrides ``words``, as its script has them. Raises UserError for wrong ones, and where
    ``whole`` for missing ones."""
    inside = GlobalHydra.instance().is_initialized()  # under hydra.main, which allows no second
    try:
        with contextlib.nullcontext() if inside else initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(root, overrides=[word for word in quoted(words) if word not in NOTHING_CHOSEN])
    except HYDRA_ERRORS as error:
        raise UserError(translated(error)) from error
    check(cfg, whole)
    return cfg
