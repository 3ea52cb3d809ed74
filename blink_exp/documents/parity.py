"""The comparison of measured with published scores."""

from __future__ import annotations

from typing import Any, Required, TypedDict


class ParityPoint(TypedDict, total=False):
    """A row of conf/parity.yaml. ``id``: in the reference data; ``rows``: of the whole split; ``only``: {model: further overrides};
    ``compares``: False where a measured number cannot be set beside the printed ones, for the reason ``why``."""

    label: Required[str]
    id: Required[str]
    score: Required[str]
    rows: Required[int]
    overrides: Required[list[str]]
    only: dict[str, list[str]]
    compares: bool
    why: str


class ParityVerdict(TypedDict, total=False):
    """``measured``: None where the run failed or is scored elsewhere; ``difference``: from the first source, or the center of the band."""

    measured: Required[float | None]
    stderr: Any  # of ``measured``; without it the run's own, by score
    difference: float | None
    verdict: Required[str]


class ParityRow(ParityVerdict, total=False):
    """A benchmark of parity.json: its ``PointRun`` with a verdict in place of its scores' errors. ``published``: by source."""

    id: str
    published: dict[str, float]
    point: str
    status: str
    error: str
    backbone: str
    samples: int
    skipped_samples: int


class ParityDocument(TypedDict):
    """parity.json. ``backbone``: None where nothing was measured."""

    title: str
    model: str
    backbone: str | None
    command: str
    rows: list[ParityRow]
