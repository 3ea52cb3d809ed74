"""How torch's threads wait for one another. Imports nothing, as it comes before torch."""

from __future__ import annotations

import os

SPINS = "3000"  # rounds of waiting; libgomp's own are 300,000


def wait_briefly() -> None:
    """Has torch's threads wait for one another in a busy loop for microseconds only, then asleep, unless the user's environment says how.

    By default GNU OpenMP spins for milliseconds. Where another program keeps a core busy, every small operation then waits for that long:
    the demo took 6 times as long (docs/performance.md). Read by libgomp as it is loaded, so this comes before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
