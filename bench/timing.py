"""Ways of doing one thing, timed side by side in one process.

A machine that is shared, or that changes its clock, is now fast and now slow. So the ways take turns (A B A B ...), each run of one is
set against the run of the other beside it, and what counts is the median of these ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any, NamedTuple

import torch

from blink_exp.errors import UserError

Clock = Callable[[], float]
Work = Callable[[], Any]


class Compared(NamedTuple):
    """``first``, ``second``: median seconds of each; ``ratio``: the median of first / second, pair by pair; ``spread``: half the range
    of the middle half of these ratios, in parts of ``ratio``."""

    first: float
    second: float
    ratio: float
    spread: float


def now() -> float:
    """Seconds, behind all work that a GPU has been given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clock_of(name: str, device: str = "cpu") -> Clock:
    """``wall``: seconds as they pass; ``cpu``: seconds that this process's threads worked, which neighbours on a busy machine change less.
    Raises UserError for another word, and for ``cpu`` where a GPU does the work."""
    if name not in ("wall", "cpu"):
        raise UserError(f"clock={name} is not known; use one of: cpu, wall")
    if name == "cpu" and device != "cpu":
        raise UserError(f"clock=cpu would not see the work of device={device}; use clock=wall")
    return now if name == "wall" else time.process_time


def seconds(work: Work, clock: Clock = now) -> float:
    begun = clock()
    work()
    return clock() - begun


def rounds(works: dict[str, Work], repeats: int = 5, *, warm: int = 1, clock: Clock = now) -> dict[str, list[float]]:
    """Seconds of each of ``works``, ``repeats`` rounds of all of them, after ``warm`` rounds that do not count. Every other round runs
    backwards, so that none always runs in another's wake."""
    if repeats < 1:
        raise ValueError(f"repeats={repeats} times nothing; use 1 or more")
    durations: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warm, repeats):
        for name in list(works) if number % 2 == 0 else reversed(works):
            took = seconds(works[name], clock)
            if number >= 0:
                durations[name].append(took)
    return durations


def compared(first: Rows[float], second: Rows[float]) -> Compared:
    """Two lists of ``rounds``, round by round."""
    ratios = [a / max(b, 1e-12) for a, b in zip(first, second, strict=True)]
    ratio = statistics.median(ratios)
    middle = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratio] * 3
    spread = (middle[2] - middle[0]) / 2 / max(ratio, 1e-12)
    return Compared(statistics.median(first), statistics.median(second), ratio, spread)


def interleaved(first: Work, second: Work, repeats: int = 5, *, warm: int = 1, clock: Clock = now) -> Compared:
    """Two ways in turn; see ``Compared``."""
    durations = rounds({"first": first, "second": second}, repeats, warm=warm, clock=clock)
    return compared(durations["first"], durations["second"])


def median_seconds(work: Work, repeats: int = 5, *, warm: int = 1, clock: Clock = now) -> float:
    """Of one way alone, where there is nothing to set it against."""
    return statistics.median(rounds({"work": work}, repeats, warm=warm, clock=clock)["work"])
