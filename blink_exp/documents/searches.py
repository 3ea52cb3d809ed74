"""The result of a search for settings."""

from __future__ import annotations

from typing import Any, TypedDict

from blink_exp.documents.runs import PairedTest, Provenance


class SearchPart(TypedDict):
    """A setting on one part of the benchmark. ``worth``: the score less the price of its tokens; ``tokens``: visual tokens a layer."""

    score: Any
    stderr: float | None
    worth: float
    samples: int
    skipped: int
    tokens: float | None
    folder: str


class SearchSetting(TypedDict):
    point: str
    command: str
    validation: SearchPart
    test: SearchPart


class SearchDocument(Provenance, total=False):
    """tuning.json. ``settings``: that which was chosen, ``best``, and ``default``; ``difference``: best less default, on the test part."""

    benchmark: str
    protocol: str
    backbone: str
    objective: str
    token_price: float
    settings: dict[str, SearchSetting]
    difference: PairedTest | None
    points: int
    failed: int
