"""Loads the experiments of conf/table and conf/figure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from blink_exp.documents.experiments import Experiment
from blink_exp.settings.folders import CONF
from blink_exp.settings.values import read_yaml

KINDS = ("table", "figure")


def experiments(kind: str) -> Iterator[Experiment]:
    """Every experiment of conf/table or conf/figure."""
    for path in sorted((CONF / kind).glob("*.yaml"), key=lambda p: natural(p.stem)):
        yield load_experiment(kind, path.stem)


def load_experiment(kind: str, name: str) -> Experiment:
    """The experiment in conf/<kind>/<name>.yaml."""
    return cast(Experiment, read_yaml(CONF / kind / f"{name}.yaml"))


def natural(name: str) -> list[Any]:
    """Sort key that puts table10 after table9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
