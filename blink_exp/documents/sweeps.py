"""What Hydra records of a multirun (multirun.yaml) and of each of its jobs (.hydra/hydra.yaml): the keys that are read."""

from __future__ import annotations

from typing import Any, TypedDict


class RecordedJob(TypedDict, total=False):
    config_name: str
    num: int


class RecordedSweep(TypedDict, total=False):
    dir: str
    subdir: str


class RecordedSweeper(TypedDict, total=False):
    """``n_trials``: of a search; ``params``: {setting: what is swept}."""

    _target_: str
    params: dict[str, object] | None
    n_trials: int


class RecordedOverrides(TypedDict):
    """``task``: settings of the command; ``hydra``: of Hydra itself."""

    task: list[Any]
    hydra: list[Any]


class ConfigSource(TypedDict):
    path: str
    provider: str


class RecordedRuntime(TypedDict):
    """``choices``: {config group: preset}; ``cwd``: where the command was started."""

    choices: dict[str, str]
    config_sources: list[ConfigSource]
    cwd: str
    output_dir: str


class RecordedHydra(TypedDict):
    job: RecordedJob
    sweep: RecordedSweep
    sweeper: RecordedSweeper
    overrides: RecordedOverrides
    runtime: RecordedRuntime


class RecordedCommand(TypedDict, total=False):
    """Empty where the file is not there. Beside ``hydra`` the settings of the command."""

    hydra: RecordedHydra
