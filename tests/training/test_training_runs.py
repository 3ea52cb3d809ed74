"""Training at published size: what a run goes on from, what it exports, what devices it wants, and what it costs on paper."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support import scripts
from support.models import random_llava
from support.scripts import ROOT
from torch.utils.flop_counter import FlopCounterMode

from blink_exp.decoder import visual_states
from blink_exp.errors import UserError
from blink_exp.flops import CPU_ATTENTION
from blink_exp.tokensr import arithmetic, checkpoint, modules
from blink_exp.training import distributed, export, resume


def test_what_may_differ_from_the_training_that_is_gone_on_with():
    before = {
        "trainer": {"devices": 2},
        "optim": {"lr": 1e-4},
        "data": {"workers": 0, "seed": 1},
        "seed": 0,
        "model": {"device": "cuda"},
        "output": None,
    }
    same = {
        "trainer": {"devices": 1},
        "optim": {"lr": 1e-4},
        "data": {"workers": 8, "seed": 1},
        "seed": 0,
        "model": {"device": "cpu"},
        "output": "x",
    }
    assert resume.differences(same, before) == []
    assert resume.differences(same | {"optim": {"lr": 2}, "seed": 1}, before) == ["optim.lr=0.0001", "seed=0"]
    assert resume.differences(same | {"data": {"workers": 0}}, before) == ["data.seed=1"]
    one, many = (same | {"trainer": {"strategy": name}} for name in ("auto", "ddp"))
    assert resume.differences(one, many) == resume.differences(many, one) == []
    assert resume.differences(same | {"trainer": {"strategy": "deepspeed_zero2"}}, one) == ["trainer.strategy=ddp"]
    assert resume.differences(same | {"new": {"a": 1}}, before) == ["no new.a"]
    assert resume.differences(same | {"loss": {}}, before | {"loss": {"weights": None}}) == ["loss.weights=null"]


def test_a_job_killed_between_two_checkpoints_has_the_older(tmp_path):
    assert resume.find(tmp_path) is None
    (tmp_path / "last.ckpt.old").mkdir()
    (tmp_path / "last.ckpt.part").mkdir()
    assert resume.find(tmp_path) == tmp_path / "last.ckpt.old"
    (tmp_path / "last.ckpt").write_bytes(b"")
    assert resume.find(tmp_path) == tmp_path / "last.ckpt"


def test_a_checkpoint_file_exports_to_modules_that_load(tmp_path, capsys):
    torch.manual_seed(0)
    trained = modules.build_all("residual_conv", 16, [3, 5])
    torch.nn.init.normal_(trained["5"].body[-1].weight)
    metadata = {"backbone": "b@1", "layers": [3, 5], "width": 16, "grid": [12, 12], "architecture": "residual_conv", "parts": 1}
    state = {f"amplifiers.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"state_dict": state, "blink_exp": metadata, "global_step": 7}, tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text("seed: 3\nmodel: {path: x}\n", encoding="utf-8")
    export.main([str(tmp_path), "--output", str(tmp_path / "out")])
    assert "2 modules of step 7 written to" in capsys.readouterr().out
    x = torch.randn(1, 16, 4, 4)
    for layer in (3, 5):
        assert torch.equal(checkpoint.load(tmp_path / "out", layer, "b@1", 16)(x), trained[str(layer)](x))
    written = json.loads((tmp_path / "out" / "layer_05.json").read_text(encoding="utf-8"))
    assert written["training"] == {"seed": 3, "steps": 7}
    assert written["grid"] == [12, 12]


@pytest.mark.parametrize("how", ["nothing", "cut off", "empty"])
def test_exporting_what_is_not_there_or_damaged_is_one_line(tmp_path, capsys, how):
    if how != "nothing":
        torch.save({"global_step": 1}, tmp_path / "last.ckpt")
        raw = (tmp_path / "last.ckpt").read_bytes()
        (tmp_path / "last.ckpt").write_bytes(raw[: len(raw) // 2] if how == "cut off" else b"")
    with pytest.raises(SystemExit) as end:
        export.main([str(tmp_path)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("holds no last.ckpt" if how == "nothing" else "is corrupt or cut off") in line


# ---- devices


def test_strategies_and_devices_that_are_not_there_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="trainer.strategy=deepspeed_zero3 is not known; did you mean"):
        distributed.strategy("deepspeed_zero3", "cpu")
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trainer.strategy=deepspeed_zero2 needs DeepSpeed, which is not installed; pip install deepspeed"):
        distributed.strategy("deepspeed_zero2", "gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    distributed.check_devices("cpu", 64)
    with pytest.raises(UserError, match="no GPU here that torch can use"):
        distributed.check_devices("gpu", "auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distributed.check_devices("gpu", 2)
    with pytest.raises(UserError, match="trainer.devices=8 is more than the 2 GPUs of this machine"):
        distributed.check_devices("gpu", 8)
    distributed.check_devices("gpu", [1])
    with pytest.raises(UserError, match="use numbers from 0 to 1"):
        distributed.check_devices("gpu", [2])


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them():
    """And not before they had time to say why; the list that Lightning's watcher looks at is emptied first."""
    stuck = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ending = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3); raise SystemExit(5)"])
    procs = [stuck, ending]
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=procs)))
    with pytest.raises(RuntimeError, match="mine"), distributed.terminate_children_on_failure(trainer, grace=5):
        raise RuntimeError("mine")
    assert procs == []
    assert (stuck.wait(5), ending.wait(5)) == (-9, 5)


# ---- arithmetic


def test_the_paper_s_module_and_its_bytes():
    # App. A: 5x5 4096 -> 2048, 3x3 2048 -> 1024, 1x1 1024 -> 4096, with biases
    assert arithmetic.module_parameters(4096) == 232_791_040
    assert arithmetic.bytes_a_parameter("ddp", 8) == 18
    assert arithmetic.bytes_a_parameter("deepspeed_zero1", 2) == 12  # 2 + 2 + (4 + 4 + 8) / 2
    assert arithmetic.bytes_a_parameter("deepspeed_zero2", 2) == 11  # 2 + 2 / 2 + 8
    assert arithmetic.bytes_a_parameter("deepspeed_zero2", 8) == 4.25
    assert arithmetic.memory("deepspeed_zero2", 2, 7)["trained"] == pytest.approx(17.92, abs=0.01)


def test_flops_are_those_that_torch_counts():
    """On a small model, against torch's own counter; LayerNorms, softmax and the like are no matrix products and not counted."""
    width, tokens = 16, 36
    shape = arithmetic.Shape(width=width, mlp=32, tokens=tokens)
    built = modules.conv(width)
    with FlopCounterMode(display=False) as counter:
        built(torch.randn(1, width, 6, 6)).sum().backward()
    assert counter.get_total_flops() == arithmetic.module_flops(shape)


def test_a_pass_has_the_flops_that_torch_counts():
    model = random_llava(layers=4, width=32, side=6, attn="eager")
    shape = arithmetic.Shape(width=32, mlp=64, tokens=36, before=2, vision_width=16, vision_layers=0)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.no_grad():
        visual_states.visual_states(model.model.language_model, torch.randn(1, 38, 32), 36, [1, 3])
    assert counter.get_total_flops() == pytest.approx(arithmetic.pass_flops(3, shape) - 2 * 36 * (16 * 32 + 32 * 32), rel=0.01)


def test_the_tables_of_the_docs_are_the_computed_ones():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert "\n".join(arithmetic.memory_table()) in text
    assert "\n".join(arithmetic.time_table(378_797, 125e12)) in text


# ---- several processes without DeepSpeed


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_what_one_does(tmp_path):
    """DDP in float32, the second process started by the first: the same modules as one process makes, written once. Catches gradients
    that are summed, a sampler that gives both the same pairs, and held-out pairs counted twice."""
    words = [
        "train.py",
        "trainer.log_every_n_steps=1",
        "layers.indices=[1]",
        "data.train_size=12",
        "data.held_out_size=5",
        "data.global_batch=4",
    ]
    many = ["trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=1"]
    for name, more in (("one", []), ("two", many)):
        done = scripts.run([*words, *more, f"hydra.run.dir={tmp_path / name}"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("modules written to") == 1
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert (two["devices"], two["parts_of_a_step"]) == (2, 2)
    assert two["layers"]["1"]["samples"] == one["layers"]["1"]["samples"] == 5
    for value in ("interpolation", "tokensr"):
        assert two["layers"]["1"][value] == pytest.approx(one["layers"]["1"][value], rel=1e-4)
    a, b = (load_file(tmp_path / name / "tokensr" / "layer_01.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)
