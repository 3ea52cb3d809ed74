"""The feature cache: what it gives is what the backbone gives for each pair, nothing is run twice, and its settings keep caches apart."""

from __future__ import annotations

import pickle

import pytest
from support.features import LAYERS, Pixels, Shrink, caches, equal, files, folder, module, wanted
from support.instruction_data import instruction_data

from blink_exp.errors import UserError
from blink_exp.training import capture, data, feature_cache
from blink_exp.training.capture import cut, shards


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of a few pairs, so that there are many: 20 tokens x 3 x 3 layers x 4 bytes = 720 bytes a pair in float32."""
    monkeypatch.setattr(capture, "SHARD", 3000)


@pytest.mark.parametrize("quadrants", ["one", "all"])
def test_every_item_is_what_the_backbone_gives_for_it(tmp_path, quadrants):
    """Nine images, 50 pairs: images come back, so that rows are shared. Catches a row of the neighbour, a file that begins one row early,
    and quadrants or splits that are mixed up. Distinct (image, quadrant) and images are counted by hand from ``pair``."""
    folder(tmp_path, images=11)
    made, frozen = module(tmp_path, quadrants=quadrants, train_size=50, cache_dtype="float32"), Pixels(LAYERS)
    stored = frozen.ready(made)
    shown = {split: {getattr(made, split).pair(i) for i in range(len(getattr(made, split)))} for split in ("train", "held_out")}
    assert frozen.crops == sum(len(pairs) for pairs in shown.values())
    assert frozen.fulls == sum(len({image for image, _ in pairs}) for pairs in shown.values())
    assert frozen.crops < 54 and len(files(tmp_path)) > 5
    for split, items in (("train", [49, 0, 7, 7, 31]), ("train", list(range(50))), ("held_out", [3, 1])):
        assert equal(stored[split][items], wanted(frozen, made, split, items))


def test_half_the_bytes_and_one_rounding(tmp_path):
    folder(tmp_path)
    made, frozen = module(tmp_path), Pixels(LAYERS)
    features, exact = frozen.ready(made)["train"][[0, 5]], wanted(frozen, made, "train", [0, 5])
    assert equal(features, feature_cache.Features(*(x.bfloat16().float() for x in exact)))
    assert not equal(features, exact)


def test_groups_keep_an_image_together():
    assert cut([0, 1, 2, 3, 4, 5, 6, 7, 8], 4) == [0, 4, 8, 9]  # one quadrant each: the batches of training
    assert cut([0, 0, 0, 0, 1, 1, 1, 1], 4) == [0, 4, 8]
    assert cut([0, 0, 0, 1, 1, 1, 2], 5) == [0, 3, 7]
    assert cut([0, 0, 0, 0, 1, 1, 1, 1], 1) == [0, 4, 8]  # never fewer than an image
    assert cut([7], 8) == [0, 1]
    assert shards(list(range(20)), 4, 720, 3000) == [0, 4, 8, 12, 16, 20]  # 2,880 bytes a batch, 3,000 a file
    assert shards(list(range(20)), 4, 100, 3000) == [0, 20]
    assert shards(list(range(10)), 4, 10_000, 3000) == [0, 4, 8, 10]  # a batch is never torn apart


def test_another_epoch_another_run_and_workers_read_the_same(tmp_path, capsys):
    folder(tmp_path)
    made, frozen = module(tmp_path, cache_dtype="float32"), Pixels(LAYERS)
    made.stored = frozen.ready(made)
    again = Pixels(LAYERS)
    made.stored = again.ready(made)
    assert again.batches == 0
    assert "features are read from" in capsys.readouterr().out
    made.workers = 2
    for _ in range(2):
        batches = list(made.train_dataloader())
        assert [len(b.patch) for b in batches] == [4] * 5
        assert equal(batches[2], wanted(frozen, made, "train", [8, 9, 10, 11]))
    (held,) = made.val_dataloader()
    assert equal(held, wanted(frozen, made, "held_out", [0, 1, 2, 3]))
    assert len(pickle.dumps(made.stored["train"])) < 6000  # 14,400 bytes of features are not sent to a worker
    assert equal(pickle.loads(pickle.dumps(made.stored["train"]))[[9]], wanted(frozen, made, "train", [9]))


def test_other_settings_have_a_cache_of_their_own(tmp_path):
    folder(tmp_path)
    others = [{"seed": 1}, {"pad": True}, {"quadrants": "all"}, {"cache_dtype": "float32"}, {"train_size": 16}]
    for more in ({}, *others, {"image_loading": {"alpha": "drop"}}):
        Pixels(LAYERS).ready(module(tmp_path, **more))
    Pixels([4]).ready(module(tmp_path))
    assert len(caches(tmp_path)) == 8
    again = Pixels(LAYERS)
    again.ready(module(tmp_path))
    assert again.batches == 0


def test_other_scenes_have_a_cache_of_their_own(tmp_path):
    """Also scenes that happen to look alike, as here by lists that draw the same sizes."""
    settings = [{}, {"sizes": [4, 5]}, {"sizes": [4]}, {"sizes": [4, 4]}, {"sizes": [4], "small": True}]
    counts = []
    for more in (*settings, *settings):
        made = data.SceneData(Shrink(), train_size=4, held_out_size=2, global_batch=2, cache_path=str(tmp_path / "cache"), **more)
        made.setup()
        frozen = Pixels(LAYERS)
        frozen.ready(made)
        counts.append(frozen.batches)
    assert len(caches(tmp_path)) == len(settings)
    assert all(counts[: len(settings)]) and not any(counts[len(settings) :])


def test_fewer_layers_read_the_cache_of_more(tmp_path):
    folder(tmp_path)
    made = module(tmp_path, cache_dtype="float32")
    Pixels(LAYERS).ready(made)
    fewer = Pixels([8, 3])
    stored = fewer.ready(made)
    assert fewer.batches == 0
    assert equal(stored["train"][[2, 19]], wanted(fewer, made, "train", [2, 19]))


def test_pairs_that_change_from_draw_to_draw_are_refused(tmp_path):
    folder(tmp_path)
    with pytest.raises(UserError, match="would freeze pairs that change from draw to draw"):
        Pixels(LAYERS).ready(module(tmp_path, transform=Shrink(noise=True)))
    for more, message in (
        ({"cache_dtype": "int8"}, "data.cache_dtype=int8 is not known; .*bfloat16"),
        ({"cache_path": str(tmp_path / "images" / "00.png")}, "data.cache_path=.*00.png is a file"),
        ({"cache_path": ""}, "data.cache_path is empty"),
        ({"quadrants": "two"}, "data.quadrants=two is not known"),
    ):
        with pytest.raises(UserError, match=message):
            module(tmp_path, **more)


def test_unreadable_images_are_reported_by_runs_that_only_read(tmp_path):
    path, images = instruction_data(tmp_path)
    lost = []
    for _ in range(2):
        settings = {"train_size": None, "held_out_share": 0.1, "cache_path": str(tmp_path / "cache"), "global_batch": 4}
        made = data.LlavaData(Shrink(), json=str(path), images=str(images), **settings)
        made.setup()
        frozen = Pixels(LAYERS)
        frozen.ready(made)
        lost.append([str(files.path(int(i))) for files in made.files for i in files.unreadable.nonzero()[:, 0]])
    assert frozen.batches == 0
    assert lost == [[str(images / "vg/VG_100K/000003.jpg")]] * 2
