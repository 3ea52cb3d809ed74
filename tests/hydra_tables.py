"""The tables of conf/table, composed as sweep.py composes them, for tests."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml
from hydra import compose

from blink_exp.experiments import tables

CONF = Path(__file__).resolve().parent.parent / "conf"
TABLES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((CONF / "table").glob("*.yaml")) if p.stem != "parity"}
HERO = {name: table for name, table in TABLES.items() if table["paper"] == "hero"}
POINTS = [(name, point["label"]) for name, table in HERO.items() for point in table["points"]]


def point_of(name: str, label: str) -> dict:
    return next(p for p in TABLES[name]["points"] if p["label"] == label)


@functools.lru_cache  # configs are read here, never changed
def composed(name: str, label: str, own: tuple[str, ...] = ()):
    return compose("sweep", overrides=[*tables.words(TABLES[name], point_of(name, label)), *own])
