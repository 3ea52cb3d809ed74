"""A package that is not part of this tree adds a method, a TokenSR architecture, a loss and presets for them by its entry points alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import packages

from blink_exp import plugins
from blink_exp.errors import UserError
from blink_exp.plugins import Registry

PARTS = """
import torch
from torch import nn
from torch.nn import functional as F
from blink_exp.core.method import Method, TokenPolicy
from blink_exp.core.sequence import Retain


class FirstHalf(TokenPolicy):
    layers = (0,)

    def raters(self, visual, text):
        return torch.ones(len(text), dtype=torch.bool)

    def decide(self, layer, scan):
        return Retain(tuple(range(len(scan.token_scores) // 2)))

    def kept(self, visual):
        return [visual // 2]


def first_half(backbone, *, name: str) -> Method:
    return Method(FirstHalf(), name=name)


def linear(width: int) -> nn.Module:
    return nn.Conv2d(width, width, 1)


def smooth(student, teacher):
    return F.smooth_l1_loss(student.float(), teacher.float())
"""
FILES = {
    "addon/__init__.py": "",
    "addon/parts.py": PARTS,
    "addon/conf/method/first_half.yaml": "_target_: addon.parts.first_half\nname: half\n",
    "addon/conf/tokensr/linear.yaml": "architecture: linear\npath: null\n",
    "addon/conf/loss/smooth.yaml": "weights: {smooth: 1.0}\n",
    "addon-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: addon\nVersion: 1.0\n",
    "addon-1.0.dist-info/entry_points.txt": (
        "[blink_exp.conf]\naddon = addon.conf\n[blink_exp.architectures]\nlinear = addon.parts:linear\n"
        "[blink_exp.losses]\nsmooth = addon.parts:smooth\nbroken = addon.nowhere:broken\n"
    ),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_package_adds_a_method_an_architecture_a_loss_and_presets(folder):
    run, answers, used = folder / "run", folder / "answers", folder / "used"
    commands = [
        ["train.py", "--help"],
        ["train.py", "loss=smoth"],
        ["train.py", "loss.weights.smoooth=1"],
        ["train.py", "loss.weights.broken=1"],
        ["evaluate.py", "method=first_hal"],
        ["evaluate.py", "tokensr.architecture=linaer", "layer=1"],
        ["train.py", "tokensr=linear", "loss=smooth", "layer=1", "data.train_size=8", "data.held_out_size=2", f"hydra.run.dir={run}"],
        ["evaluate.py", "method=first_half", "limit=2", "cost=0", f"hydra.run.dir={answers}"],
        ["evaluate.py", "tokensr=linear", f"tokensr.path={run / 'tokensr'}", "layer=1", "limit=2", "cost=0", f"hydra.run.dir={used}"],
    ]
    commands = [[*words, f"store={folder / 'points'}"] if words[0] == "evaluate.py" else words for words in commands]
    done = packages.run(commands, folder / "site")
    assert packages.codes(done) == [0, *[2] * 5, *[0] * 3], done.stdout + done.stderr
    for group, preset in (("method", "first_half"), ("tokensr", "linear"), ("loss", "smooth")):
        lines = done.stdout.splitlines()
        (index,) = [n for n, line in enumerate(lines) if line.split()[:1] == [group] and line.startswith("  ")]
        assert preset in lines[index + 1].replace(",", " ").split()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "loss=smoth is not a preset; did you mean smooth" in errors[0]
    assert "loss.weights.smoooth is not a setting; did you mean smooth" in errors[1]
    assert "broken of the installed package addon cannot be imported" in errors[2]
    assert "method=first_hal is not a preset; did you mean first_half" in errors[3]
    assert "tokensr.architecture=linaer is not known; did you mean linear" in errors[4]
    trained = json.loads((run / "tokensr" / "layer_01.json").read_text(encoding="utf-8"))
    assert trained["architecture"] == "linear" and trained["training"]["loss"]["weights"]["smooth"] == 1
    halves = [json.loads(line) for line in (answers / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["layers"][0]["visual_tokens"] for record in halves] == [72, 72]
    assert json.loads((used / "metrics.json").read_text(encoding="utf-8"))["samples"] == 2


def test_a_package_cannot_take_the_place_of_a_function_of_the_project(folder, monkeypatch):
    def linear(width: int) -> str:
        return "ours"

    monkeypatch.syspath_prepend(str(folder / "site"))
    plugins.installed.cache_clear()
    try:
        registry = Registry(plugins.ARCHITECTURES, linear)
        assert list(registry) == ["linear"] and registry["linear"](1) == "ours"
        losses: Registry = Registry(plugins.LOSSES)
        assert sorted(losses) == ["broken", "smooth"] and "smooth" in losses and "other" not in losses
        with pytest.raises(UserError, match="broken of the installed package addon cannot be imported"):
            losses["broken"]
    finally:
        plugins.installed.cache_clear()
