"""The check of licences and vulnerabilities (tools/audit.py) finds what it is for, and fails nothing for want of a network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from email.message import Message
from types import SimpleNamespace

import pytest
import yaml
from support.scripts import ROOT

SPEC = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
assert SPEC is not None and SPEC.loader is not None
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)
ACCEPTED = yaml.safe_load((ROOT / "tools" / "audit.yaml").read_text(encoding="utf-8"))


def package(**about: str) -> SimpleNamespace:
    message = Message()
    for key, value in about.items():
        message[key.replace("_", "-")] = value
    return SimpleNamespace(name="some.package", version="1", metadata=message)


@pytest.mark.parametrize(
    "about",
    [
        {"License_Expression": "Apache-2.0 AND MIT"},
        {"License_Expression": "MIT OR GPL-3.0"},
        {"Classifier": "License :: OSI Approved :: BSD License"},
        {"License": "Apache 2.0"},
    ],
)
def test_free_licences_pass(about):
    assert audit.unaccepted([package(**about)], ACCEPTED) == []


@pytest.mark.parametrize(
    "about",
    [{"License_Expression": "MIT AND GPL-3.0-only"}, {"License": "Proprietary"}, {}, {"Classifier": "License :: OSI Approved :: GPL"}],
)
def test_other_licences_are_named_unless_they_are_accepted(about):
    (line,) = audit.unaccepted([package(**about)], ACCEPTED)
    assert line.startswith("some.package 1: ")
    accepted = ACCEPTED | {"packages": {"some-package": {"licence": line.partition(": ")[2], "why": "x"}}}
    assert audit.unaccepted([package(**about)], accepted) == []


def test_what_is_installed_is_looked_at_with_what_it_requires():
    names = {d.name.lower() for d in audit.required("blink_exp")}
    assert {"torch", "transformers", "hydra-core", "antlr4-python3-runtime"} <= names and "blink_exp" not in names


@pytest.mark.parametrize("output", ["", "no json", json.dumps({"other": 1}), None])
def test_no_network_is_a_line_and_no_failure(output, monkeypatch, capsys):
    def run(*_, **__):
        if output is None:
            raise subprocess.TimeoutExpired("pip-audit", 1)
        return SimpleNamespace(stdout=output)

    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.vulnerabilities(ACCEPTED) is None
    assert "does not answer" in capsys.readouterr().out


def test_packages_that_the_service_does_not_know_are_counted(monkeypatch, capsys):
    """A mirror without the index's JSON pages knows none, which must not read as no vulnerability."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    answer = {"dependencies": [{"name": "p", "skip_reason": "not found"}, {"name": "q", "version": "1", "vulns": []}]}
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=json.dumps(answer)))
    assert audit.vulnerabilities({"vulnerabilities": {}}) == []
    assert "pip-audit could not look up 1 of 2 packages, first p" in capsys.readouterr().out
    del answer["dependencies"][1]
    assert audit.vulnerabilities({"vulnerabilities": {}}) is None
    assert "pip-audit could look up no package" in capsys.readouterr().out


def test_vulnerabilities_are_named_unless_they_are_accepted(monkeypatch):
    answer = {"dependencies": [{"name": "p", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}]}
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=json.dumps(answer)))
    assert audit.vulnerabilities({"vulnerabilities": {}}) == ["p 1: PYSEC-1, mended in 2"]
    assert audit.vulnerabilities({"vulnerabilities": {"PYSEC-1": "not reached"}}) == []
