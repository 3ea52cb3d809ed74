"""hydra/launcher=shared: the jobs of a multirun, one after another as Hydra's basic launcher runs them, behind one pass through the model
in which all of them answer their questions together. Each job then finds its answers and keeps its own folder, config and records.

Hydra looks for launchers in this package and in no other; what runs together, and how, is in ``blink_exp.evaluation.shared_runs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn


class SharedLauncher(BasicLauncher):
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.config is not None
        loader: Any = self.hydra_context.config_loader
        if "share" in self.config and len(job_overrides) > 1:  # sweep.py has points, other scripts only jobs
            from blink_exp.studies.multirun import run_jobs

            run_jobs([loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides])
        return super().launch(job_overrides, initial_job_idx)
