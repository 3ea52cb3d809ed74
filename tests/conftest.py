"""The environment of all tests, and the scale models that ship, loaded once."""

from __future__ import annotations

import gc
import logging
import os
import re

os.environ["OMP_NUM_THREADS"] = "1"  # tests run in parallel processes; torch's threads on top would only get in each other's way
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask the network; hub libraries read this when they are imported

import hypothesis
import pytest

import blink_exp.settings.roots  # noqa: F401  # tells Hydra the schemas, for tests that compose by themselves

# The same examples in every run, so that a change that breaks nothing never fails; HYPOTHESIS_PROFILE=default looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Imports without garbage collections, and none of what they made is looked at again: a sixth of their time, a tenth of a test's."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


LOGGING = ("transformers", "pytorch_lightning", "lightning.pytorch", "lightning_fabric", "deepspeed", "hydra", "wandb")
OUTDATED = re.compile(r"deprecat|will be removed (in|from)|is removed in", re.IGNORECASE)


class Deprecations(logging.Handler):
    """Keeps what libraries log about names that they will give up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if OUTDATED.search(text := record.getMessage()):
            self.messages.append(f"{record.name}: {text}")


@pytest.fixture(autouse=True)
def no_deprecations():
    """Some packages log their deprecations where others warn (pyproject.toml): both are errors here."""
    listener, loggers = Deprecations(), [logging.getLogger(name) for name in LOGGING]
    for logger in loggers:
        logger.addHandler(listener)
    yield listener
    for logger in loggers:
        logger.removeHandler(listener)
    assert listener.messages == [], "deprecated by upstream: use what the message names"


@pytest.fixture(scope="session")
def scale():
    """The scale model that ships with the project."""
    from blink_exp.backbone.load import load

    return load("scale", "scale-llava-1.5", clip="scale")


@pytest.fixture(scope="session")
def scale_next():
    """The scale model of LLaVA-NeXT. Not through ``load``'s cache, which holds one model only."""
    from blink_exp.backbone.load import load

    return load.__wrapped__("scale_next", "scale-llava-next", clip="scale")
