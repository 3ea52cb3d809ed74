"""The launchers of conf/hydra/launcher that need another package: which one, and whether it is there."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from blink_exp.errors import UserError
from blink_exp.settings.check import format_value
from blink_exp.settings.doors import install

SIZE = "group_size"  # setting of every launcher of ours


@dataclass(frozen=True)
class Engine:
    """``launcher``: the package's launcher, which runs a group of jobs as one; ``extra``: of pyproject.toml, that brings the package."""

    launcher: str
    package: str
    extra: str
    needs: tuple[str, ...] = ()  # programs that must be there


ENGINES = {  # by the class of ours in hydra_plugins/blink_exp_shared/launcher.py
    "JoblibGroups": Engine("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "hydra-joblib-launcher", "joblib"),
    "RayGroups": Engine("hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", "hydra-ray-launcher", "ray"),
    "SlurmGroups": Engine(
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        "hydra-submitit-launcher",
        "slurm",
        ("sbatch", "srun", "squeue"),
    ),
    "LocalGroups": Engine("hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", "hydra-submitit-launcher", "slurm"),
}
NUMBERS = {  # {setting of a launcher: its least value}
    **{"n_jobs": -(2**16), "array_parallelism": 1, "cpus_per_task": 1, "gpus_per_node": 0, "nodes": 1, "tasks_per_node": 1},
    **{"timeout_min": 1, "max_num_timeout": 0, "signal_delay_s": 0},
}
ALWAYS = ("array_parallelism", "max_num_timeout")  # of these the ones that must be given
PRESETS = ("joblib", "ray", "submitit_local", "submitit_slurm")


def check_launcher(launcher: Mapping[str, object]) -> None:
    """Raises UserError if the package of a launcher is not installed, or its groups have no size. ``launcher``: hydra.launcher."""
    engine = ENGINES.get(str(launcher["_target_"]).rpartition(".")[2])
    if engine is not None:
        try:
            importlib.metadata.version(engine.package)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"hydra/launcher needs {engine.package}, which is not installed; {install(engine.extra)}") from None
        for program in engine.needs:
            if shutil.which(program) is None:
                raise UserError(f"hydra/launcher=submitit_slurm needs Slurm, and {program} is not here; use submitit_local or joblib")
        for name, least in NUMBERS.items():
            number = launcher.get(name, least)
            if number is None and name not in ALWAYS:
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                null = "" if name in ALWAYS else ", or null"
                raise UserError(f"hydra.launcher.{name} must be a whole number of at least {least}{null}, got {format_value(number)}")
        if launcher.get("n_jobs") == 0:
            raise UserError("hydra.launcher.n_jobs=0 runs nothing; use 1 or more, or -1 for as many as there are CPUs")
    size = launcher.get(SIZE)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"hydra.launcher.{SIZE} must be a whole number of at least 1, or null, got {format_value(size)}")


class Lost(dict[int, Any]):
    """The returns of a group whose process ended before it had any. ``why``: the reason, for its jobs."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why


def forget_packaged_presets() -> None:
    """Removes the packages' own configs from Hydra's store. Hydra would check ours, of the same names, against them, and refuse what they
    do not have."""
    stored = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in PRESETS:
        stored.pop(f"{name}.yaml", None)
