"""nan and inf in modules, weights and logits; modules of another architecture; modules and checkpoints that take each other's place."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.refusals import refusal

from blink_exp.backbone import weights
from blink_exp.backbone.load import load
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.core.method import Method
from blink_exp.decoder import generated
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.errors import UserError
from blink_exp.finite import first_nonfinite
from blink_exp.methods.blink import tokensr_module
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed as settings_of
from blink_exp.tokensr import checkpoint, modules
from blink_exp.tokensr.checkpoint import ModuleMetadata
from blink_exp.training.rotation import Rotation, WholeFiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_first_tensor_with_nan_or_inf_is_named(dtype):
    good = [("whole", torch.tensor([2**62])), ("empty", torch.empty(0, dtype=dtype)), ("meta", torch.empty(3, dtype=dtype, device="meta"))]
    large = ("large", torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))  # the sum overflows, the numbers do not
    assert first_nonfinite([*good, large]) is None
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = torch.ones(9, dtype=dtype)
        bad[4] = value
        assert first_nonfinite([*good, large, ("bad", bad), ("worse", bad)]) == "bad"


# ---- modules


def saved(folder: Path, architecture: str = "conv", layer: int = 12, backbone: str = "b@1", width: int = 16) -> Path:
    return checkpoint.save_all(
        [(modules.build(architecture, width), ModuleMetadata(backbone, layer, width, (12, 12), architecture))], folder
    )[0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_module_that_is_not_finite_is_neither_loaded_nor_saved(tmp_path, value):
    path = saved(tmp_path)
    held = load_file(path)
    held["2.weight"][0, 0, 0, 0] = value
    save_file(held, path)
    assert "holds nan or inf in 2.weight; train it again" in refusal(lambda: checkpoint.load(tmp_path, 12, "b@1", 16))
    module = modules.build("conv", 16)
    module.load_state_dict(held)
    before = path.read_bytes()
    assert "nothing is written" in refusal(
        lambda: checkpoint.save_all([(module, ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)
    )
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_module_that_float16_cannot_hold(tmp_path):
    path = saved(tmp_path)
    save_file({k: v + 1e6 for k, v in load_file(path).items()}, path)
    fake = SimpleNamespace(identity="b@1", width=16, model=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float16))
    assert "leaves the range of model.dtype=float16" in refusal(lambda: tokensr_module(fake, tmp_path, 12))


@pytest.mark.parametrize("broken", ["write", "rename"])
@pytest.mark.parametrize("there", [False, True])
def test_all_files_of_all_modules_or_none(tmp_path, monkeypatch, broken, there):
    pairs = [(modules.build("mlp", 16), ModuleMetadata("b@1", layer, 16, (12, 12), "mlp", {"run": 2})) for layer in (3, 4)]
    if there:
        for layer in (3, 4):
            saved(tmp_path, layer=layer)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls, target = [], "fsync" if broken == "write" else "replace"
    real = getattr(os, target)

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        return real(*args)

    monkeypatch.setattr(os, target, failing)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_all(pairs, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.undo()
    checkpoint.save_all(pairs, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert json.loads((tmp_path / "layer_04.json").read_text(encoding="utf-8"))["training"] == {"run": 2}


# ---- architectures


def configured(backbone, *words: str) -> Method:
    return build(settings_of("evaluate", ["method=blink", *words]).method, backbone)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("tokensr=mlp",), "python train.py tokensr=mlp layers=12-18 output=FOLDER, then tokensr.path=FOLDER"),
        (
            ("tokensr=depthwise", "layer=13"),
            "python train.py tokensr=depthwise layer=13 output=FOLDER, then tokensr.path=FOLDER",
        ),
        (("tokensr=mlp", "layers.indices=[12,14]"), "tokensr=mlp layers.indices=[12,14] layers.relative=false output=FOLDER"),
        (("tokensr.architecture=pixel_shuffle", "thresholds=high_exp"), "tokensr=pixel_shuffle layers=12-18"),
    ],
)
def test_shipped_modules_are_not_passed_off_as_another_architecture(scale, words, command):
    line = refusal(lambda: configured(scale, *words))
    assert "scale-llava-1.5 ships with conv modules" in line and command in line


def test_modules_of_another_architecture_in_a_folder(scale, tmp_path):
    saved(tmp_path, "mlp", 12, scale.identity, scale.width)
    line = refusal(lambda: configured(scale, "layer=12", f"tokensr.path={tmp_path}"))
    assert f"tokensr=conv, but {tmp_path} holds mlp modules; use tokensr=mlp" in line
    assert configured(scale, "layer=12", "tokensr=mlp", f"tokensr.path={tmp_path}").amplifiers is not None
    assert "tokensr.path must be a path" in refusal(lambda: configured(scale, "layer=12", "tokensr.path="))
    assert "is not known; did you mean mlp" in refusal(lambda: configured(scale, "layer=12", "tokensr.architecture=mlpp"))


def test_what_uses_no_module_asks_for_none(scale):
    for words in (("tokensr=interp",), ("tokensr=mlp", "resolution.policy=copy"), ("tokensr=mlp", "method.amplify=false")):
        assert configured(scale, *words).amplifiers is None


# ---- the model


def test_a_model_whose_weights_are_not_finite_is_refused_by_the_tensor_s_name(tmp_path):
    shutil.copytree(SHIPPED / "llava", tmp_path / "model")
    file = next((tmp_path / "model").glob("*.safetensors"))
    held = load_file(file)
    name = next(k for k in held if k.endswith("layers.7.mlp.up_proj.weight"))
    held[name].flatten()[3] = torch.nan
    save_file(held, file, {"format": "pt"})
    line = refusal(lambda: load.__wrapped__(str(tmp_path / "model"), "broken"))
    assert f"model.path={tmp_path / 'model'}: weight" in line and "layers.7.mlp.up_proj.weight holds nan or inf" in line


def test_a_weight_that_leaves_float16_s_range_names_the_cure():
    model = torch.nn.Linear(2, 2).to(torch.float16)
    model.dtype = torch.float16  # type: ignore[assignment]
    weights.check_finite(model, "x")
    model.weight.data[0, 0] = torch.inf
    assert "model.path=x: weight weight holds nan or inf, or it leaves the range of model.dtype=float16; use bfloat16" in refusal(
        lambda: weights.check_finite(model, "x")
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_no_answers(scale, value):
    """By Hugging Face's generate() and over shared prefixes; one of all tokens is enough."""

    def spoil(module, args, out):
        out = out.clone()
        out[..., 5] = value
        return out

    images = {"a": Image.new("RGB", (96, 96), "red")}
    hook = scale.model.lm_head.register_forward_hook(spoil)
    try:
        features = scale.features(images)["a"]
        for act in (
            lambda: scale.generate([features], ["What is it?"], 2),
            lambda: answer(scale, [Method()], images, [PointQuestion("a", "What is it?", "s", (0,))], 2, 1),
        ):
            assert "logits that are nan or inf for 1 of 1 questions" in refusal(act)
    finally:
        hook.remove()


# ---- checkpoints


def test_a_checkpoint_takes_another_s_place_only_whole(tmp_path, monkeypatch):
    path, files = tmp_path / "last.ckpt", WholeFiles(Rotation())

    def step(of: Path) -> int:
        return torch.load(of, weights_only=True)["step"]

    files.save_checkpoint({"step": 1}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    files.save_checkpoint({"step": 2}, path)
    files.save_checkpoint({"step": 3}, path)
    assert (step(path), step(tmp_path / "last.ckpt.old")) == (3, 2)

    for failure in (OSError(errno.ENOSPC, "No space left on device"), SystemExit(143)):

        def save(state, file, failure=failure):
            file.write(b"half of it")
            raise failure

        monkeypatch.setattr(torch, "save", save)
        if isinstance(failure, OSError):
            line = refusal(lambda: files.save_checkpoint({"step": 4}, path))
            assert "the disk is full" in line and f"resume={tmp_path}" in line
        else:
            with pytest.raises(SystemExit):
                files.save_checkpoint({"step": 4}, path)
        assert step(path) == 3 and not list(tmp_path.glob("*.part"))
    monkeypatch.undo()


def test_a_disk_that_is_full_for_torch_s_own_writer(tmp_path, monkeypatch):
    """torch says only that it could not write; the reason is the disk's."""

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self): ...

    real = open
    monkeypatch.setattr(
        "builtins.open", lambda path, *a, **k: Full(real(path, *a, **k)) if str(path).endswith(".part") else real(path, *a, **k)
    )
    line = refusal(lambda: WholeFiles(Rotation()).save_checkpoint({"step": torch.ones(9)}, tmp_path / "last.ckpt"))
    monkeypatch.undo()
    assert "the disk is full" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_damaged_checkpoint_pushes_no_good_one_out(tmp_path, kind):
    path = tmp_path / "last.ckpt"

    def put(where: Path, text: str) -> None:
        if kind == "folder":
            where.mkdir()
            where /= "part"
        where.write_text(text, encoding="utf-8")

    def text(where: Path) -> str:
        return (where / "part" if kind == "folder" else where).read_text(encoding="utf-8")

    put(path, "damaged")
    put(tmp_path / "last.ckpt.old", "good")
    rotation = Rotation(sound=False)
    for new, old in (("1", "good"), ("2", "1"), ("3", "2")):
        rotation.clear(path)
        put(tmp_path / "last.ckpt.part", new)
        rotation.put(path)
        assert (text(path), text(tmp_path / "last.ckpt.old")) == (new, old)


def test_rows_that_fill_a_tile_are_not_counted_as_questions():
    model = SimpleNamespace(lm_head=lambda x: torch.full((len(x), 7), float("nan")))
    with pytest.raises(UserError, match="nan or inf for 1 of 1 questions"):
        generated._next(model, torch.zeros(4, 3), 1)
