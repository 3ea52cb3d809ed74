"""What a logger takes and refuses, before any work."""

from __future__ import annotations

import pytest
from support.refusals import refusal

from blink_exp import tracking

WANDB = {"_target_": "blink_exp.tracking.loggers.Wandb", "project": "p", "entity": None, "mode": "offline", "rows": 1, "images": 1}

MLFLOW = {"_target_": "blink_exp.tracking.loggers.MLflow", "project": "p", "uri": None, "rows": 1, "images": 1}


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        (WANDB | {"project": "my/project"}, "logger.project=my/project is refused by W&B (cannot contain"),
        (WANDB | {"project": "x" * 129}, "is refused by W&B (exceeded 128 characters)"),
        (WANDB | {"project": ""}, "logger.project must be the name of a project, got nothing"),
        (WANDB | {"project": None}, "logger.project must be the name of a project, got null"),
        (WANDB | {"entity": "a team"}, "logger.entity=a team is no user or team of W&B"),
        (WANDB | {"mode": "onlin"}, "logger.mode must be one of online, offline, disabled, got onlin; did you mean online"),
        (WANDB | {"images": -1}, "logger.images must be a whole number of at least 0, got -1"),
        (MLFLOW | {"project": " "}, "logger.project must be the name of an experiment"),
        (MLFLOW | {"project": "x" * 501}, "is no name of an experiment; use 1 to 500 characters"),
        (MLFLOW | {"uri": "localhost:5000"}, "logger.uri=localhost:5000 is no address of MLflow"),
        (MLFLOW | {"uri": "sqlite"}, "logger.uri=sqlite is no address of MLflow"),
        (
            {"_target_": "blink_exp.tracking.loggers.TensorBoard", "rows": "many", "images": 1},
            "logger.rows must be a whole number of at least 0, got many",
        ),
    ],
)
def test_what_a_logger_would_refuse_is_said_before_any_work(logger, message):
    assert message in refusal(lambda: tracking.check(logger))


@pytest.mark.parametrize(
    "logger",
    [
        WANDB | {"project": "a b.c-d_e", "entity": "team-1"},
        MLFLOW | {"uri": "http://host:5000"},
        MLFLOW | {"uri": "databricks"},
        MLFLOW | {"uri": "sqlite:////all/runs.db", "project": "a/b"},
    ],
)
def test_what_a_logger_takes_is_taken(logger):
    tracking.check(logger)
