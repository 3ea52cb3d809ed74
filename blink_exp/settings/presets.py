"""The presets of a config group, wherever they are: conf/, --config-dir, hydra.searchpath, installed packages."""

from __future__ import annotations

import functools
from importlib.resources import files
from importlib.resources.abc import Traversable

from hydra.core.global_hydra import GlobalHydra

from blink_exp import plugins
from blink_exp.settings.folders import CONF


def presets(group: str) -> list[str]:
    """Sorted preset names of ``group``. Without a running Hydra, those of conf/ and of installed packages."""
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        return sorted(hydra.config_loader().get_group_options(group))
    return sorted({name for folder in folders() for name in of_folder(folder, group)})


def folders() -> list[Traversable]:
    """conf/ and the config folders of installed plugins; plugins that cannot be imported are skipped."""
    out: list[Traversable] = [CONF]
    for point in plugins.installed(plugins.CONF).values():
        try:
            out.append(files(point.value))
        except ImportError:
            continue
    return out


def of_folder(folder: Traversable, group: str) -> list[str]:
    below = functools.reduce(lambda path, name: path / name, group.split("/"), folder)
    return [file.name.removesuffix(".yaml") for file in below.iterdir() if file.name.endswith(".yaml")] if below.is_dir() else []
