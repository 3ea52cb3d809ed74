"""Hydra's config loader with what this project adds: every config is checked before anything in it is called, and the jobs of a multirun
are composed one by one, so that a job whose overrides do not compose does not end the others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal import hydra as hydra_internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from blink_exp.errors import UserError
from blink_exp.settings.allowed import allow, by_hand, check_targets
from blink_exp.settings.check import REFUSED, check
from blink_exp.settings.messages import HYDRA_ERRORS, translated
from blink_exp.settings.roots import ROOTS
from blink_exp.settings.secrets import check_config
from blink_exp.settings.words import NOTHING, check_words

READ = ("predictions", "against", "resume")  # settings that name earlier runs
REMEMBERED = 4000  # jobs of a multirun whose configs are kept, at 0.25 MB each


class CheckedLoader(ConfigLoaderImpl):
    """Refuses configs that would call what settings may not call, or that hold a key. Hydra makes its callbacks, log handlers, launcher and
    sweeper of a config, and stores it, before the command has seen it."""

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        config = super().load_configuration(*args, **kwargs)
        check_targets(config)
        check_config(config)
        return config


class CommandLoader(CheckedLoader):
    """Refuses invalid settings of the command too, and a command with nothing to do, before its callbacks and the command itself import
    torch. ``root``: name of the command's root config."""

    root: ClassVar[str]

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        # without validation Hydra composes just to learn whether this is a multirun; not from the shell, the command composes a point
        if from_shell and validate_sweep_overrides:
            check_root(config, self.root)
            run = run_mode is RunMode.RUN
            check(copy.deepcopy(config), whole=run)
            needed, nothing = NOTHING.get(self.root, ((), ""))
            if needed and run and all(config.get(key) is None for key in needed):
                raise UserError(nothing)
            if run:
                check_read(config)
        return config


def check_root(config: DictConfig, root: str) -> None:
    """Raises UserError for the config of --config-name if it has the settings of another command than ``root``."""
    schema = OmegaConf.get_type(config)
    if not (isinstance(schema, type) and issubclass(schema, ROOTS[root])):
        raise UserError(
            f"--config-name names a config without the settings of {root}; leave it away, or have it begin with defaults: [{root}]"
        )


def check_read(config: DictConfig) -> None:
    """Raises UserError where a run whose files the command reads is not there."""
    for key in READ:
        named = config.get(key) or []
        for path in [named] if isinstance(named, str) else named:
            if not any(sign in path for sign in "*?[") and not Path(path).exists():
                raise UserError(f"{key}={path} is not there; give a run's folder")


def check_all_configs(root: str | None) -> None:
    """Makes Hydra compose with a loader of this module from here on. ``root``: root config of the command, whose invalid values it refuses;
    None for a command that only shows its settings."""
    if root is not None:
        CommandLoader.root = root
    hydra_internals.ConfigLoaderImpl = CheckedLoader if root is None else CommandLoader  # type: ignore[attr-defined]


class JobLoader(CheckedLoader):
    """Hydra's config loader, used by every sweeper and launcher, in this process or another. A job whose overrides do not compose gets
    the config of the overrides that all jobs share, with the error at ``REFUSED``. ``check`` raises it, so the job fails like any other.

    Hydra composes a job when it checks the batch, a launcher when it groups jobs and when it runs them: the first config is copied, as a
    composition takes 25 times as long. ``root``: name of the root config."""

    def __init__(self, loader: ConfigLoaderImpl, root: str):
        super().__init__(loader.config_search_path)
        self.root, self.allowed = root, by_hand()
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"composed": {}}  # a launcher's process composes its own jobs

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        words = tuple(sweep_overrides)
        config = self.composed.get(words)
        if config is None:
            config = self._compose(master_config, sweep_overrides)
            if len(self.composed) < REMEMBERED:
                self.composed[words] = config
        return copy.deepcopy(config)

    def _compose(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        allow(self.allowed)  # a launcher's process may lack the variables of this one
        try:
            check_words(sweep_overrides, self.root)
            return super().load_sweep_config(master_config, sweep_overrides)
        except (UserError, *HYDRA_ERRORS) as error:
            reason = translated(error)
        config = super().load_sweep_config(master_config, one_valued(master_config.hydra.overrides.task))
        with open_dict(config):
            config[REFUSED] = reason
            config.hydra.overrides.task = list(sweep_overrides)
            config.hydra.sweep.subdir = "${hydra.job.num}"  # the user's may depend on the invalid value
        return config


def one_valued(words: Sequence[str]) -> list[str]:
    """The overrides of ``words`` with a single value, in order."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    return [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]


def compose_each_job(root: str) -> None:
    """Makes the starting multirun compose its jobs with ``JobLoader``."""
    hydra: Any = GlobalHydra.instance().hydra
    hydra.config_loader = JobLoader(hydra.config_loader, root)
