"""What training at published size reads and in which order: LLaVA's instruction data, batches over many devices, going on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from support import scripts
from support.instruction_data import FOLDERS, instruction_data, picture

from blink_exp.errors import UserError
from blink_exp.training import canvases, data, llava_665k
from blink_exp.training.batches import GlobalBatches, rescale, share_out

# ---- the instruction data


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_come_one_by_one_whatever_is_read_at_once(tmp_path, chunk, indent):
    """Catches a row, a string with brackets or an escape that is torn where one piece ends and the next begins."""
    rows = [
        {"id": "a", "image": "x/y.jpg", "conversations": [{"value": 'two ]}, "three" \\ \u00e9 \u4e2d'}]},
        {"id": 2, "n": [1, [2, {}]]},
        {},
    ]
    path = tmp_path / "rows.json"
    path.write_text("\n " + json.dumps(rows, indent=indent) + "\n", encoding="utf-8")
    assert list(llava_665k.rows(path, chunk)) == rows
    path.write_text("[]", encoding="utf-8")
    assert list(llava_665k.rows(path, chunk)) == []


def test_a_file_that_ends_early_is_never_taken_for_a_short_one(tmp_path):
    path, whole = tmp_path / "rows.json", json.dumps([{"id": 1, "image": "a.jpg"}, {"id": 2}])
    for end in range(len(whole)):
        path.write_text(whole[:end], encoding="utf-8")
        with pytest.raises(UserError, match="damaged or cut off|no JSON list"):
            list(llava_665k.rows(path))
    path.write_text(json.dumps({"id": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="no JSON list"):
        list(llava_665k.rows(path))
    with pytest.raises(UserError, match=r"data.json=.*nowhere.json is not there"):
        list(llava_665k.rows(tmp_path / "nowhere.json"))


def test_images_are_counted_once_and_looked_up_by_listing(tmp_path, monkeypatch):
    """By hand: 6 folders x (4 images + 1 named again) + 2 text rows = 32 rows, 30 with an image, 24 distinct, 6 runs saved; OCR-VQA lacks
    one and has one under another suffix."""
    path, images = instruction_data(tmp_path)
    listed, scandir = [], os.scandir
    monkeypatch.setattr(llava_665k.os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: pytest.fail("asked for an image") if images in self.parents else exists(self))
    listing = llava_665k.find(path, images)
    assert sorted(listed) == sorted(str(images / folder) for folder in FOLDERS)
    assert listing.summary == {
        "rows": 32, "with_image": 30, "distinct_images": 24, "runs_saved": 6, "renamed": 1, "missing": {"ocr_vqa/images": 1},
    }  # fmt: skip
    assert listing.names[:2] == ["coco/train2017/000000.jpg", "coco/train2017/000001.jpg"]
    assert "ocr_vqa/images/000001.png" in listing.names
    assert len(listing.names) == len(set(listing.names)) == 23
    assert "1 images are missing (ocr_vqa/images 1)" in str(listing)


def test_instruction_data_that_is_not_usable_says_why(tmp_path):
    path, images = instruction_data(tmp_path, each=2)
    for row, message in (
        ({"image": "/etc/x.jpg"}, "none of the 1 images .* are left out, first /etc/x.jpg leads out of the data's folder"),
        ({"image": "a/../../x.jpg"}, "are left out, first a/../../x.jpg leads out of the data's folder; image_loading.outside=true"),
        ({"image": "https://x/a.jpg"}, "are left out, first https://x/a.jpg is a URL, and nothing is downloaded"),
        ({"image": ["a.jpg"]}, "must be a path below"),
        ("coco/a.jpg", "row 1 of .* is no {...} but 'coco/a.jpg'"),
        ({"image": "sam/a.jpg"}, "holds none of the 1 images"),
    ):
        path.write_text(json.dumps([row]), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            llava_665k.find(path, images)
    with pytest.raises(UserError, match=r"data.images=.*none is not a folder"):
        llava_665k.find(path, tmp_path / "none")


def test_images_that_lead_out_of_the_folder_are_left_out_and_named(tmp_path):
    """By itself, by a link, or by a folder that is one; what a link inside leads to is an image as any other."""
    path, images = instruction_data(tmp_path, each=2)
    away = tmp_path / "away"
    away.mkdir()
    Image.new("RGB", (8, 8)).save(away / "a.png")
    (images / "link.png").symlink_to(away / "a.png")
    (images / "own.jpg").symlink_to("coco/train2017/000000.jpg")
    (images / "away").symlink_to(away)
    names = ["../away/a.png", str(away / "a.png"), "link.png", "away/a.png"]
    path.write_text(json.dumps([{"image": name} for name in [*names, "own.jpg", "gone.jpg"]]), encoding="utf-8")
    listing = llava_665k.find(path, images)
    assert listing.names == ["own.jpg"] and sorted(listing.refused) == sorted(names) and listing.missing == {".": 1}
    assert listing.summary["refused"] == 4 and listing.summary["distinct_images"] == 6
    assert "4 images are URLs or lead out of data.images and are left out, first ../away/a.png" in str(listing)
    everything = llava_665k.find(path, images, outside=True)
    assert everything.names == [*names, "own.jpg"] and not everything.refused
    made = data.LlavaData(Thumbnail(), json=str(path), images=str(images), held_out_share=0.5, image_loading={"outside": True})
    files = canvases.Files(images, everything.names, False, made.image_loading)
    assert {files(i).size for i in range(4)} == {(8, 8)} and not files.unreadable.any()
    with pytest.raises(UserError, match="4 images in a row cannot be read"):
        canvases.Files(images, names, False)(0)


def test_an_image_that_is_missing_moves_no_other():
    names = [f"coco/{i}.jpg" for i in range(4000)]
    train, held = canvases.hold_out(names, 0.1, seed=0)
    assert set(train) | set(held) == set(names)
    assert not set(train) & set(held)
    assert 320 <= len(held) <= 480  # 400 expected, 4 standard deviations of 19
    fewer_train, fewer_held = canvases.hold_out([n for n in reversed(names) if n not in (train[5], held[3])], 0.1, seed=0)
    assert fewer_train == train[:5] + train[6:]
    assert fewer_held == held[:3] + held[4:]
    assert canvases.hold_out(names, 0.1, seed=1)[1] != held
    assert train != sorted(train)


# ---- files


@pytest.fixture
def five(tmp_path) -> canvases.Files:
    """Five files, the third and fourth broken in different ways."""
    for i in range(5):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:50])
    (tmp_path / "3.png").write_text("no image", encoding="utf-8")
    return canvases.Files(tmp_path, [f"{i}.png" for i in range(5)], pad=True)


def red(image: Image.Image) -> int:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel[0]


def test_an_unreadable_image_is_replaced_by_the_next_and_counted(five):
    assert [red(five(i)) for i in range(6)] == [0, 7, 28, 28, 28, 0]  # 7 i is the red of picture i
    assert five.unreadable.tolist() == [0, 0, 1, 1, 0]
    five.names = five.names[2:4]
    with pytest.raises(UserError, match=r"2 images in a row cannot be read, first .*2.png"):
        five(0)


def module(root: Path, **more) -> data.PairedCrops:
    path, images = root / "llava_v1_5_mix665k.json", root / "images"
    size = {"train_size": 16, "held_out_share": 0.1} | more
    made = data.LlavaData(Thumbnail(), json=str(path), images=str(images), pad=True, **size)
    return made


class Thumbnail:
    """(3, 8, 8) pixels; can go to worker processes."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1)


def batches(made: data.PairedCrops, rank=0, world=1) -> list[tuple[torch.Tensor, ...]]:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world, is_global_zero=rank == 0, strategy=strategy)
    made.setup()
    return [tuple(part) for part in made.train_dataloader()]


def test_workers_change_nothing_and_what_they_could_not_read_is_known(tmp_path):
    instruction_data(tmp_path, each=4)
    plain, worked = module(tmp_path), module(tmp_path, workers=2)
    a, b = batches(plain), batches(worked)
    assert len(a) == len(b) == 2
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(i, j) for i, j in zip(x, y, strict=True))
    cut = str(tmp_path / "images/vg/VG_100K/000003.jpg")
    in_training = [files for files in plain.files if cut in [str(files.path(i)) for i in range(len(files.names))]]
    if in_training[0] is plain.files[1]:
        pytest.fail("the fixture's broken image is held out; choose another seed")
    assert plain.unreadable_everywhere() == worked.unreadable_everywhere() == [cut]


@pytest.mark.parametrize("world", [2, 4])
def test_devices_share_out_the_very_pairs_of_one_device(tmp_path, world):
    instruction_data(tmp_path)
    whole = batches(module(tmp_path))
    shares = [batches(module(tmp_path, batch_size=1), rank, world) for rank in range(world)]
    for step, wanted in enumerate(whole):
        parts = 8 // world
        got = [shares[rank][step * parts + part] for part in range(parts) for rank in range(world)]
        for k in range(3):
            assert torch.equal(torch.cat([g[k] for g in got]), wanted[k])


def test_every_image_is_used_once_where_no_size_is_given(tmp_path):
    instruction_data(tmp_path)
    made = module(tmp_path, train_size=None, held_out_size=None)
    made.setup()
    assert len(made.train) + len(made.held_out) == 23
    assert made.summary["trained_on"] == len(made.train)
    seen = sorted(str(files.path(i)) for files in made.files for i in range(len(files.names)))
    assert len(set(seen)) == 23


def test_going_on_with_other_images_is_refused(tmp_path):
    instruction_data(tmp_path)
    made = module(tmp_path)
    made.setup()
    state = made.state_dict()
    made.load_state_dict(state)
    (tmp_path / "images/gqa/images/000001.jpg").unlink()
    again = module(tmp_path)
    again.setup()
    with pytest.raises(UserError, match="not those that the checkpoint was trained on"):
        again.load_state_dict(state)


@pytest.mark.parametrize("name", ["scale", "scale_next"])
def test_the_base_view_is_the_backbone_s_own(name, request):
    backbone = request.getfixturevalue(name)
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    assert torch.equal(canvases.BaseView(backbone.processor.image_processor)(image), backbone.transform(image))


# ---- batches


def test_a_step_is_shared_out_evenly_or_refused():
    assert share_out(8, 2) == (4, 1)  # the paper's two GPUs
    assert share_out(8, 1) == (8, 1)
    assert share_out(8, 1, 2) == (2, 4)
    assert share_out(8, 2, 4) == (4, 1)
    assert share_out(8, 8, 1) == (1, 1)
    with pytest.raises(UserError, match="cannot be shared out evenly over 3 devices; use 1, 2, 4, 8 devices or a multiple of 3"):
        share_out(8, 3)
    with pytest.raises(UserError, match="batch_size=3 does not divide the 4 pairs that each of 2 devices gets of .*; use 1, 2, 4"):
        share_out(8, 2, 3)
    for bad in ((0, 1), (-8, 2), (8, 16)):
        with pytest.raises(UserError, match="cannot be shared out"):
            share_out(*bad)
    for size in (0, -4, 16):
        with pytest.raises(UserError, match="does not divide"):
            share_out(8, 1, size)


@hypothesis.given(st.data())
def test_each_step_works_on_its_own_items_on_any_number_of_devices(draw):
    world, size, parts = (draw.draw(st.sampled_from([1, 2, 3, 8])) for _ in range(3))
    step, length = world * size * parts, draw.draw(st.integers(0, 200))
    start = draw.draw(st.integers(0, 20))
    ranks = [GlobalBatches(length, size, parts, rank, world, start) for rank in range(world)]
    first = [list(r) for r in ranks]
    second = [list(r) for r in ranks]
    steps = length // step
    assert all(len(r) == steps * parts for r in ranks)  # Lightning counts an epoch's batches, done ones included
    for passes, begin in ((first, start % steps if steps else 0), (second, 0)):
        for s in range(begin, steps):
            here = [passes[rank][(s - begin) * parts + part] for part in range(parts) for rank in range(world)]
            assert [i for batch in here for i in batch] == list(range(s * step, (s + 1) * step))
        assert all(len(p) == (steps - begin) * parts for p in passes)


def test_batches_are_recounted_for_another_number_of_devices():
    """Six steps were done by devices that took each in one part; two parts now: 12 batches, the last one still open."""
    progress = {
        name: {"ready": 6, "started": 6, "processed": 6, "completed": 5} for name in ("total", "current")
    } | {"is_last_batch": False}  # fmt: skip
    rescale(progress, before=1, now=2)
    wanted = {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert progress == {"total": wanted, "current": wanted, "is_last_batch": False}
    rescale(progress, before=2, now=1)
    assert progress["current"] == {"ready": 6, "started": 6, "processed": 6, "completed": 5}


# ---- the command


@pytest.mark.slow
def test_train_py_on_the_instruction_data_counts_and_goes_on_exactly(tmp_path):
    """A run over 6 steps whose checkpoint is that of step 4, and one that goes on from there with workers and in two parts a step: the same
    modules."""
    path, images = instruction_data(tmp_path)
    words = ["train.py", "data=llava_665k", f"data.json={path}", f"data.images={images}", "layers.indices=[1,2]", "data.train_size=24"]
    words += ["data.global_batch=4", "data.held_out_share=0.1", "trainer.callbacks.checkpoint.every_n_train_steps=4"]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    done = scripts.run([*words, "data.workers=0", f"hydra.run.dir={whole}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 rows, 30 name an image, 24 distinct images: each is run once, which saves 6 runs; 1 images are missing" in done.stdout
    metrics = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["images"]["missing"] == {"ocr_vqa/images": 1}
    assert metrics["images"]["unreadable"] == 1
    assert metrics["skipped_images"] == [str(images / "vg/VG_100K/000003.jpg")]
    on = ["data.workers=2", f"resume={whole}", "data.batch_size=2", "trainer.callbacks.checkpoint.every_n_train_steps=2"]
    done = scripts.run([*words, *on, f"hydra.run.dir={rest}"])
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((rest / "metrics.json").read_text(encoding="utf-8"))
    for layer in ("1", "2"):
        assert again["layers"][layer]["tokensr"] == pytest.approx(metrics["layers"][layer]["tokensr"], rel=1e-4)
        a, b = (load_file(run / "tokensr" / f"layer_{int(layer):02d}.safetensors") for run in (whole, rest))
        assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    # killed behind the last step, it only measures
    done = scripts.run([*words, f"hydra.run.dir={tmp_path / 'end'}", f"resume={rest}"])
    assert done.returncode == 0, done.stdout + done.stderr
    end = json.loads((tmp_path / "end" / "metrics.json").read_text(encoding="utf-8"))
    assert end["layers"]["2"]["tokensr"] == pytest.approx(again["layers"]["2"]["tokensr"], rel=1e-6)
