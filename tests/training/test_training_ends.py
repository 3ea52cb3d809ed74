"""How a training ends that cannot go on: one line, the right exit code, and the last good checkpoint there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import scripts
from support.ends import until
from support.refusals import refusal
from support.training_runs import steps, train

from blink_exp.errors import UserError
from blink_exp.evaluation import locks
from blink_exp.training import resume, signals
from blink_exp.training.module import TokenSRTraining
from blink_exp.training.recipe import backbone_type


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of three steps, each with its checkpoint."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


# ---- nan and inf


def test_a_learning_rate_that_diverges_ends_with_step_and_layer_and_keeps_the_checkpoint(tmp_path):
    line = refusal(lambda: train(tmp_path / "run", "optim.lr=1e30", f"output={tmp_path / 'modules'}"))
    assert "stopped at step 2: the loss of layer 1 is" in line and "optim.lr (now 1e+30)" in line
    assert resume.read(tmp_path / "run" / "last.ckpt").step == 1
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("metrics.json"))


def test_a_held_out_loss_that_is_not_finite_writes_no_modules(tmp_path):
    line = refusal(lambda: train(tmp_path / "run", "optim.lr=1e30", "data.train_size=2", f"output={tmp_path / 'modules'}"))
    assert "the held-out loss of layer 1 is" in line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_step_too_large_for_the_optimizer_is_one_line(tmp_path):
    line = refusal(lambda: train(tmp_path / "run", "optim.lr=1e300", f"output={tmp_path / 'modules'}"))
    assert "the step is larger than the weights can hold; use a smaller optim.lr (now 1e+300)" in line
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("what", ["loss", "weight", "moment"])
def test_nothing_that_is_not_finite_takes_a_good_checkpoint_s_place(what):
    width = SimpleNamespace(width=16, grid=(8, 8), identity="random")
    module = TokenSRTraining(width, [3, 5])  # type: ignore[arg-type]
    module._trainer = SimpleNamespace(global_step=7, default_root_dir="run", accumulate_grad_batches=1)  # type: ignore[assignment]
    module._step_losses = [torch.ones(2)]
    state = {"optimizer_states": [{"state": {k: {"exp_avg": torch.ones(2)} for k, _ in enumerate(module.parameters())}}]}
    module.on_save_checkpoint(state)
    if what == "loss":
        module._step_losses[0][1] = torch.inf
    elif what == "weight":
        module.amplifiers["5"][0].weight.data[0, 0, 0, 0] = torch.nan  # type: ignore[index, union-attr]
    else:
        state["optimizer_states"][0]["state"][8]["exp_avg"][1] = torch.inf
    line = refusal(lambda: module.on_save_checkpoint(state))
    assert "step 7" in line and "layer 5" in line


# ---- signals


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("Ctrl-C", 130)])
@pytest.mark.parametrize("where", ["training_step", "validation_step", "setup"])
def test_a_stopped_training_says_how_to_go_on(tmp_path, monkeypatch, capsys, how, code, where):
    out, before = tmp_path / "run", [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    calls, real = [], getattr(TokenSRTraining, where)

    def stopped(self, *args, **kwargs):
        calls.append(where)
        if len(calls) == (3 if where == "training_step" else 1):
            if how == "Ctrl-C":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(TokenSRTraining, where, stopped)
    with pytest.raises(SystemExit) as end:
        train(out)
    assert end.value.code == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stopped by" in line]
    assert line.startswith(f"stopped by {how} at step { ({'training_step': 2, 'validation_step': 3, 'setup': 0}[where]) }; ")
    assert (f"resume={out}" in line) == (where != "setup")
    assert not (out / "metrics.json").exists() and not list(out.rglob("*.part"))
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    monkeypatch.undo()
    if where == "training_step":
        train(out, f"resume={out / 'last.ckpt'}")  # the file as well as the folder
        assert steps(out) == [0, 1, 2]


def test_other_exits_are_left_as_they_are(tmp_path):
    for code in (0, 1, 2):
        with pytest.raises(SystemExit) as end, signals.stoppable(tmp_path, lambda: 0, lambda: True):
            raise SystemExit(code)
        assert end.value.code == code


# ---- one training in a folder


def test_a_folder_in_use_is_refused_by_name_and_free_again_after(tmp_path, tmp_path_factory):
    logs = tmp_path_factory.mktemp("said")
    code = "import sys; sys.path.insert(0, '.')\nfrom blink_exp.evaluation.locks import claim\n"
    code += f"claim({str(tmp_path)!r}, 'output')\nprint('held', flush=True)\nsys.stdin.readline()\n"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        for setting, words in (("hydra.run.dir", ()), ("output", (f"output={tmp_path}",))):
            out = tmp_path if setting == "hydra.run.dir" else tmp_path / "run"
            assert f"{setting}={tmp_path} is in use by another run" in refusal(lambda out=out, words=words: train(out, *words))
        assert not list(tmp_path.rglob("last.ckpt")) and not list(tmp_path.rglob("config.yaml"))
        job = scripts.start(
            ["train.py", "-m", "layer=12", f"hydra.sweep.dir={tmp_path.parent}", f"hydra.sweep.subdir={tmp_path.name}"], str(logs)
        )
        waiting = f"waiting for {tmp_path}, which another run is working on"  # a job of a multirun; the others could not go on without it
        out = logs / "out"
        until(job, lambda: out.exists() and waiting in out.read_text(encoding="utf-8"))
        assert job.is_alive() and not list(tmp_path.rglob("last.ckpt"))
        job.kill()
        other.kill()  # the lock goes with the process
        other.wait()
        locks.claim(tmp_path, "output")
    finally:
        other.kill()
        other.wait()


# ---- going on


def test_a_run_goes_on_from_the_older_checkpoint_where_the_newer_is_damaged(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "metrics.json").unlink()
    assert [resume.read(out / name).step for name in resume.NAMES] == [3, 2]
    (out / "last.ckpt").write_bytes((out / "last.ckpt").read_bytes()[:1000])
    train(out)
    output = capsys.readouterr().out
    assert "last.ckpt is corrupt or cut off" in output and "going on from the one before, last.ckpt.old of step 2" in output
    assert steps(out) == [0, 1, 2]
    assert [resume.read(out / name).step for name in resume.NAMES] == [3, 2]  # the damaged one pushed nothing out
    (out / "last.ckpt").write_bytes(b"")
    (out / "last.ckpt.old").write_bytes(b"")
    line = refusal(lambda: train(out))
    assert "no older one is whole" in line and "remove" not in line


@pytest.mark.parametrize("what", ["a list", "other keys", "nan", "a hole", "text", "another architecture"])
def test_a_last_checkpoint_that_holds_something_else_is_one_line(whole, tmp_path, what):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "last.ckpt.old").unlink()
    path = out / "last.ckpt"
    state = torch.load(path, weights_only=True)
    raw = path.read_bytes()
    if what == "a list":
        torch.save([1, 2], path)
    elif what == "other keys":
        torch.save({"global_step": 3, "model": {}}, path)
    elif what == "nan":
        next(iter(state["state_dict"].values()))[0] = torch.nan
        torch.save(state, path)
    elif what == "a hole":
        path.write_bytes(raw[: len(raw) // 2] + bytes(4096) + raw[len(raw) // 2 + 4096 :])
    elif what == "text":
        path.write_text("hello", encoding="utf-8")
    else:
        state["blink_exp"]["architecture"] = "mlp"
        torch.save(state, path)
    line = refusal(lambda: train(tmp_path / "on", f"resume={out}"))
    assert {
        "a list": "holds something else",
        "other keys": "holds something else",
        "nan": "holds nan or inf",
        "another architecture": "trained for architecture mlp, not conv",
    }.get(what, "is corrupt or cut off") in line


def test_what_resume_may_name(whole, tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for name, message in (
        (tmp_path, "holds no last.ckpt"),
        (tmp_path / "nowhere", "holds no last.ckpt"),
        (tmp_path / "notes.txt", "is neither a run folder nor a last.ckpt"),
        ("", "resume must be a path, or null, got nothing"),
    ):
        assert message in refusal(lambda name=name: train(tmp_path / "run", f"resume={name}"))
    assert resume.checkpoint_location(whole / "last.ckpt.old") == (whole, ("last.ckpt.old",))


# ---- types


@pytest.mark.slow
def test_a_float16_backbone_trains_under_a_bfloat16_trainer(tmp_path, capsys):
    """As `trainer=paper model=llava_1_5_7b` has it, whose model is float16."""
    words = ("model.dtype=float16", "trainer.precision=bf16-mixed", "data.train_size=2")
    train(tmp_path / "run", *words)
    assert "the frozen backbone runs in bfloat16: trainer.precision=bf16-mixed" in capsys.readouterr().out
    assert '"dtype": "bfloat16"' in (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"trainer.precision=16-mixed with model.dtype=bfloat16 .*; use trainer.precision=bf16-mixed"):
        backbone_type("16-mixed", "bfloat16")
