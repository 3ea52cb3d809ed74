"""Configs of a multirun's jobs: composed once each, and every caller gets its own copy."""

from __future__ import annotations

import pickle

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from omegaconf import open_dict

from blink_exp.settings import job_loader
from blink_exp.settings.check import REFUSED
from blink_exp.settings.job_loader import JobLoader
from blink_exp.settings.presets import CONF


@pytest.fixture
def loader():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield JobLoader(GlobalHydra.instance().hydra.config_loader, "sweep")


@pytest.fixture
def master(loader):
    return compose("sweep", overrides=["limit=3"], return_hydra_config=True)


@pytest.fixture
def compositions(monkeypatch):
    """The overrides of each composition that Hydra makes."""
    made = []
    original = ConfigLoaderImpl.load_configuration

    def counted(self, *args, **kwargs):
        made.append(tuple(kwargs["overrides"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    return made


def test_a_job_is_composed_once_and_no_caller_changes_the_config_of_another(loader, master, compositions):
    first = loader.load_sweep_config(master, ["limit=3", "layer=12"])
    with open_dict(first):  # as a launcher does
        first.hydra.job.num, first.layer = 7, 13
    second = loader.load_sweep_config(master, ["limit=3", "layer=12"])
    other = loader.load_sweep_config(master, ["limit=3", "layer=15"])
    assert (second.layer, other.layer) == (12, 15)
    assert second.hydra.job.get("num") != 7
    assert [made[-1] for made in compositions] == ["layer=12", "layer=15"]


def test_a_job_that_does_not_compose_has_its_error_each_time(loader, master, compositions):
    errors = {str(loader.load_sweep_config(master, ["layer=12", "method=blnk"])[REFUSED]) for _ in range(3)}
    assert len(errors) == 1 and "blnk" in errors.pop()
    assert len(compositions) == 1 + 1  # the job's overrides, and those that all jobs share


def test_a_process_of_a_launcher_gets_the_loader_without_configs(loader, master):
    before = len(pickle.dumps(loader))
    loader.load_sweep_config(master, ["layer=12"])
    assert len(pickle.dumps(loader)) == before


def test_what_is_not_kept_is_composed_again(loader, master, compositions, monkeypatch):
    monkeypatch.setattr(job_loader, "REMEMBERED", 1)
    for words in (["layer=12"], ["layer=15"], ["layer=12"], ["layer=15"]):
        assert loader.load_sweep_config(master, words).layer == int(words[0][-2:])
    assert [made[-1] for made in compositions] == ["layer=12", "layer=15", "layer=15"]
