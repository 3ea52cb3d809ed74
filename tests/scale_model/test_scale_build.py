"""The command that builds the scale models: its devices, models for studies, and the modules that go with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from blink_exp.backbone.shipped import SHIPPED
from blink_exp.errors import UserError
from blink_exp.scale_model import build, export, train_llava
from blink_exp.scale_model.recipe import device_of
from blink_exp.tokensr import checkpoint, modules

CPU = torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cpu") == CPU
    assert device_of("cuda") == torch.device("cuda:0")
    assert device_of("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "mps", "gpu", ""):
        with pytest.raises(UserError) as caught:
            device_of(name)
        assert str(caught.value) == f"device={name} is not on this machine; use one of: cpu, cuda:0, cuda:1"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--device", "cuda"], "device=cuda is not on this machine; use one of: cpu"),
        (["--workers", "-1"], "--workers -1 is no number of processes; use 0 or more"),
        (["--recipe", "one_scale"], f"--recipe one_scale is for studies; use --assets other than {SHIPPED}"),
    ],
)
def test_build_says_in_one_line_what_it_cannot_do(words, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("build", "build_study"):
        monkeypatch.setattr(build, name, lambda *_: pytest.fail("it began to build"))
    monkeypatch.setattr(sys, "argv", ["build", "--work", str(tmp_path), *words])
    with pytest.raises(SystemExit) as ended:
        build.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


@pytest.mark.slow
def test_a_study_s_model_is_built_alone_on_the_shipped_tower(monkeypatch, tmp_path):
    monkeypatch.setitem(train_llava.RECIPES, "tried", (train_llava.Phase(5, 3, (1.0, 0, 0, 0), 1e-3, batch=2, asked=2),))
    monkeypatch.setattr(train_llava, "held_out", lambda *_: {})
    build.build_study("tried", tmp_path / "work", tmp_path / "assets", seed=0, most=1)
    assert [p.name for p in (tmp_path / "assets").iterdir()] == ["llava"]
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["tried"]  # apart from the checkpoints of what ships
    built, shipped = (load_file(folder / "llava" / "model.safetensors") for folder in (tmp_path / "assets", SHIPPED))
    tower = {k for k in shipped if "vision_tower" in k}
    assert tower and all(torch.equal(built[k], shipped[k]) for k in tower)
    config = json.loads((tmp_path / "assets" / "llava" / "config.json").read_text(encoding="utf-8"))
    assert config["text_config"]["num_hidden_layers"] == 5


@pytest.mark.slow
def test_a_reader_takes_over_the_shipped_layers_in_front_and_trains_the_others(monkeypatch, tmp_path):
    phase = train_llava.Phase(8, 1, (0, 1.0, 0, 0), 1e-3, batch=2, asked=2, look=0.3, expanded=1.0)
    monkeypatch.setitem(train_llava.RECIPES, "one_scale_reader", (phase,))
    monkeypatch.setattr(train_llava, "held_out", lambda *_: {})
    build.build_study("one_scale_reader", tmp_path / "work", tmp_path / "assets", seed=0)
    built, shipped = (load_file(folder / "llava" / "model.safetensors") for folder in (tmp_path / "assets", SHIPPED))
    for name, weight in shipped.items():
        layer = re.fullmatch(r"(language_model\.model\.layers\.)(\d+)(\..*)", name)
        if layer is None:
            assert (
                torch.equal(built[name], weight) or name.startswith("language_model.lm_head") or name == "language_model.model.norm.weight"
            )
        elif int(layer[2]) % 4 == 0:
            number = int(layer[2]) // 4
            unchanged = torch.equal(built[f"{layer[1]}{number}{layer[3]}"], weight)
            assert unchanged == (number < train_llava.EXPANDED_AT), name


def test_no_look_loss_has_the_recipe_of_what_ships_but_for_the_loss_and_a_phase_more():
    phases = train_llava.RECIPES["no_look_loss"]
    assert all(phase.look == 0 for phase in phases) and any(phase.look for phase in train_llava.PHASES)
    more = [phase for phase in phases if phase not in [replace(p, look=0.0) for p in train_llava.PHASES]]
    assert len(phases) == len(train_llava.PHASES) + 1 and len(more) == 1 and more[0].layers == 8


def test_modules_are_halved_and_keep_what_is_recorded_of_them(tmp_path):
    of = checkpoint.ModuleMetadata("a@1", 12, 8, (4, 4), "conv", {"seed": 3})
    module = modules.build("conv", 8)
    checkpoint.save_all([(module, of)], tmp_path)
    before = (tmp_path / "layer_12.json").read_bytes()
    export.halve(tmp_path)
    halved = load_file(tmp_path / "layer_12.safetensors")
    assert all(torch.equal(halved[name], weight.half()) for name, weight in module.state_dict().items())
    assert (tmp_path / "layer_12.json").read_bytes() == before


@pytest.mark.parametrize("device, index", [("cpu", None), ("cuda:1", 1), ("mps", 0)])
def test_tokensr_trains_on_the_device_at_the_cpu_s_settings(device, index, monkeypatch, tmp_path):
    """train.py's words, composed as Hydra does: only where it trains is another, not how."""
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda words, **how: ran.append((words, how)))
    build.train_tokensr("name", tmp_path, tmp_path / "out", "12-13", 4, 16, torch.device(device))
    ((words, how),) = ran
    assert words[1] == "train.py"
    assert how["env"]["NVIDIA_TF32_OVERRIDE"] == "0"
    root = build.Path(build.__file__).parent.parent.parent
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg, stock = compose("train", words[2:]), compose("train")
    changed = {k for k in cfg.trainer if cfg.trainer[k] != stock.trainer[k]}
    assert cfg.model.device == device
    assert changed == {"max_epochs"} | (set() if index is None else {"accelerator", "devices"})
    assert index is None or (cfg.trainer.accelerator, list(cfg.trainer.devices)) == ("gpu", [index])
