"""TokenSR: shapes, losses, pairs that show the same place, training that resumes, checkpoints that refuse what they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from blink_exp.backbone.canvas import region_box, square_canvas
from blink_exp.errors import UserError
from blink_exp.scenes.scenes import load_tiles, small_tiles
from blink_exp.tokensr import checkpoint, modules
from blink_exp.tokensr.checkpoint import ModuleMetadata
from blink_exp.training import canvases, data, losses
from blink_exp.training.pairs import PairDataset


@pytest.mark.parametrize("name", modules.ARCHITECTURES)
@pytest.mark.parametrize("size", [(12, 12), (6, 6), (3, 5), (4, 4)])
def test_every_architecture_keeps_the_shape(name, size):
    x = torch.randn(2, 32, *size)
    assert modules.build(name, 32)(x).shape == x.shape


@pytest.mark.parametrize("name", ["residual_conv", "mlp", "depthwise", "pixel_shuffle", "interp"])
def test_residual_architectures_start_as_interpolation(name):
    x = torch.randn(2, 32, 7, 6)
    assert torch.equal(modules.build(name, 32)(x), x)


def test_kl_by_hand_has_the_paper_s_direction():
    teacher = torch.log(torch.tensor([[[0.5, 0.5]]]))
    student = torch.log(torch.tensor([[[0.25, 0.75]]]))
    wanted = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)  # sum over teacher of p log(p / q)
    assert losses.kl(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    assert losses.kl(student, teacher).item() != pytest.approx(losses.kl(teacher, student).item(), rel=1e-3)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_are_zero_on_equals_and_positive_elsewhere(name):
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    assert losses.LOSSES[name](x, x).item() == pytest.approx(0, abs=1e-6)
    assert losses.LOSSES[name](x, y) > 0.01


def test_a_weighted_sum_gives_the_temperature_to_the_losses_that_take_one_and_its_errors():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    both = losses.weighted({"kl": 2.0, "mse": 0.5, "cosine": 0.0}, temperature=3.0)(x, y)
    assert both.item() == pytest.approx(2 * losses.kl(x, y, 3.0).item() + 0.5 * losses.mse(x, y).item(), rel=1e-5)
    assert losses.kl(x, y, 3.0).item() != pytest.approx(losses.kl(x, y).item(), rel=0.01)
    with pytest.raises(UserError, match="weight 0"):
        losses.weighted({"kl": 0.0})
    with pytest.raises(UserError, match="did you mean"):
        losses.weighted({"cosin": 1.0})


def test_a_crop_shows_the_place_that_its_quadrant_names():
    canvas = Image.new("RGB", (64, 64))
    for q in range(4):
        canvas.paste((50 * q + 20, 0, 0), region_box(q, 2, 64, 64))
    pairs = PairDataset(lambda i: canvas, 40, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1), seed=0)
    seen = set()
    for full, crop, quadrant in pairs:
        r, c = divmod(quadrant, 2)
        assert torch.equal(full[:, r * 32 : (r + 1) * 32, c * 32 : (c + 1) * 32], crop)
        seen.add(quadrant)
    assert seen == {0, 1, 2, 3}
    assert pairs[7][2] == pairs[7][2]


def test_square_canvas_by_crop_and_by_padding():
    wide = Image.new("RGB", (100, 60), (255, 0, 0))
    assert square_canvas(wide).size == (60, 60)
    padded = square_canvas(wide, pad=True)
    assert padded.size == (100, 100)
    assert padded.getpixel((50, 0)) == (122, 116, 104)
    assert padded.getpixel((50, 50)) == (255, 0, 0)


def test_training_draws_train_images_and_holding_out_draws_test_images(monkeypatch):
    drawn, real = [], canvases.random_scene
    monkeypatch.setattr(canvases, "random_scene", lambda rng, split, n, **more: drawn.append(split) or real(rng, split, n, **more))
    module = data.SceneData(lambda image: torch.zeros(1), train_size=8, held_out_size=8)
    module.setup()
    _ = module.train[0], module.held_out[0]
    assert drawn == ["train", "test"]


@pytest.mark.parametrize("small", [False, True])
def test_scenes_to_train_on_have_the_sizes_and_objects_that_are_asked_for(small):
    """Train scenes hold pictures of the train split only, held-out scenes of the test split only, small ones where that is asked."""
    made = data.SceneData(lambda image: torch.zeros(1), sizes=[4, 5], small=small, train_size=16, held_out_size=16)
    for split, canvas in zip(("train", "test"), (part.canvases for part in made.splits()), strict=True):
        pool = {tile.pixels.tobytes() for tile in (small_tiles(split) if small else load_tiles(split))}
        sides = set()
        for i in range(16):
            pixels = np.asarray(canvas(i))
            n = len(pixels) // 64
            sides.add(n)
            cells = [pixels[r * 64 : (r + 1) * 64, c * 64 : (c + 1) * 64].tobytes() for r in range(n) for c in range(n)]
            assert len(set(cells)) == n * n and set(cells) <= pool
        assert sides == {4, 5}


def test_scenes_are_those_of_before_where_nothing_is_asked():
    made = data.SceneData(lambda image: torch.zeros(1), train_size=8, held_out_size=8)
    canvas = made.splits()[0].canvases
    digest = hashlib.sha256(b"".join(canvas(i).tobytes() for i in range(16))).hexdigest()
    assert digest[:16] == "ba7127dc0ef21306"


def test_broken_images_of_a_folder_are_counted_and_left_out(tmp_path):
    for i in range(5):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "text.jpg").write_text("not an image", encoding="utf-8")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    Image.new("RGB", (300, 1)).save(tmp_path / "line.png")  # cut to a square, it is one pixel; padded to one, it is an image
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    Image.new("1", (14000, 14000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    no_image = ["bomb.png", "cut.png", "fifo.png", "folder.png", "large.png", "line.png", "link.png", "one.png", "text.jpg"]
    module = data.FolderData(lambda image: torch.zeros(1), str(tmp_path), train_size=8, held_out_size=2)
    module.setup()
    assert sorted(Path(file).name for file in module.broken) == no_image
    assert sorted(p.name for p in canvases.folder_images(str(tmp_path), pad=True)[1]) == [name for name in no_image if name != "line.png"]
    assert len(list(module.train_dataloader())) == 1
    with pytest.raises(UserError, match="is not a folder"):
        canvases.folder_images(str(tmp_path / "nowhere"))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    module = modules.conv(16)
    checkpoint.save_all([(module, ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)
    again = checkpoint.load(tmp_path, 12, "b@1", 16)
    x = torch.randn(1, 16, 5, 5)
    assert torch.equal(module(x), again(x))
    assert not any(p.requires_grad for p in again.parameters())


def test_a_checkpoint_refuses_what_it_does_not_fit(tmp_path):
    path = checkpoint.save_all([(modules.conv(16), ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)[0]
    for layer, backbone, width, message in (
        (13, "b@1", 16, r"no TokenSR module for layer 13 .* \(it has layers 12-12\); train it: python train.py layer=13"),
        (12, "other@2", 16, "trained for backbone b@1, not other@2"),
        (12, "b@1", 32, "trained for width 16, not 32"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path, layer, backbone, width)
    renamed = tmp_path / "layer_14.safetensors"
    renamed.write_bytes(path.read_bytes())
    renamed.with_suffix(".json").write_text(path.with_suffix(".json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="trained for layer 12, not 14"):
        checkpoint.load(tmp_path, 14, "b@1", 16)


@pytest.mark.parametrize("how", ["cut off", "flipped header", "empty", "other tensors", "no json", "bad json"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, how):
    path = checkpoint.save_all([(modules.conv(16), ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)[0]
    raw = path.read_bytes()
    if how == "cut off":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "flipped header":
        path.write_bytes(b"\xff" * 16 + raw[16:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other tensors":
        checkpoint.save_all([(modules.mlp(16), ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)
    elif how == "no json":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text(json.dumps({"backbone": "b@1"}), encoding="utf-8")
    with pytest.raises(UserError, match="corrupt or cut off|lacks its|is damaged"):
        checkpoint.load(tmp_path, 12, "b@1", 16)


def test_files_beside_the_modules_and_whole_numbers_in_one_are_one_line(tmp_path):
    """A name without a layer is no layer; whole numbers would be converted, and be another module; a FIFO would block for ever."""
    (tmp_path / "layer_best.safetensors").touch()
    (tmp_path / "layer_²5.safetensors").touch()
    with pytest.raises(UserError, match=r"no TokenSR module for layer 12 in .* \(it has none\)"):
        checkpoint.load(tmp_path, 12, "b@1", 16)
    path = checkpoint.save_all([(modules.conv(16), ModuleMetadata("b@1", 12, 16, (12, 12), "conv"))], tmp_path)[0]
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: weight.to(torch.int32) for name, weight in weights.items()}, path)
    with pytest.raises(UserError, match="holds whole numbers in 0.bias"):
        checkpoint.load(tmp_path, 12, "b@1", 16)
    path.with_suffix(".json").unlink()
    os.mkfifo(path.with_suffix(".json"))
    assert checkpoint.architecture_of(tmp_path, 12) is None
    with pytest.raises(UserError, match="layer_12.json is damaged"):
        checkpoint.load(tmp_path, 12, "b@1", 16)
