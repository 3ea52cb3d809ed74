"""Composed configs, and the line that one changed setting ends in."""

from __future__ import annotations

import copy
import functools
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from blink_exp.errors import UserError
from blink_exp.settings.check import check
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.words import prepared
from support.scripts import ROOT

CONF = ROOT / "conf"
GIVEN = {
    "model=folder": ["model.path=x"],
    "data=folder": ["data.path=x"],
    "data=llava_665k": ["data.json=x", "data.images=y"],
}


@functools.cache
def composed(root: str, word: str) -> Any:
    """The config of a root with one override, and what it cannot do without. Shared: leave it as it was."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides=[w for w in (word, *GIVEN.get(word, [])) if w])


@functools.cache
def _presets(root: str, words: tuple[str, ...]) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides=list(words))


def config(root: str, *words: str) -> Any:
    """A config of one's own with these overrides, unchecked. Presets are composed once, which is what costs time, and values are set behind
    them, as Hydra does."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    groups = {override.input_line for override in parsed if (CONF / str(override.key_or_group)).is_dir()}
    cfg = copy.deepcopy(_presets(root, tuple(sorted(groups))))
    for override in parsed:
        if override.input_line not in groups:
            OmegaConf.update(cfg, str(override.key_or_group), override.value(), merge=True, force_add=override.is_add())
    return cfg


def leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted keys of the settings that hold values themselves, less what Hydra reads."""
    out = []
    for key in node:
        if str(key).startswith("_"):
            continue
        child = None if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key) else node[key]
        if OmegaConf.is_dict(child):
            out += leaves(child, f"{prefix}{key}.")
        else:
            out.append(f"{prefix}{key}")
    return out


def line_of(root: str, word: str, key: str, value: str) -> str | None:
    """The line that a setting of a root config ends in; None where the value is taken."""
    cfg = composed(root, word)
    branch = key.partition(".")[0]
    before = copy.deepcopy(cfg._get_node(branch))
    try:
        for written in prepared([f"{key}={value}"], root):
            override = OverridesParser.create().parse_override(written)
            OmegaConf.update(cfg, str(override.key_or_group), override.value(), merge=True)  # as Hydra does
        check(cfg)
    except UserError as error:
        return str(error)
    except HYDRA_ERRORS as error:
        return translated(error)
    finally:
        cfg[branch] = before
    return None
