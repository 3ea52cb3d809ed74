"""A feature cache that is torn, stale, half made, or made by several at once: seen, said in a line, and made whole."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
from support.features import LAYERS, Pixels, Shrink, equal, files, folder, module, only, wanted
from support.instruction_data import picture
from torch.utils.data import DataLoader

from blink_exp.errors import UserError
from blink_exp.training import capture
from blink_exp.training.capture import Ranks


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of four pairs, so that there are six: 20 tokens x 3 x 3 layers x 4 bytes = 720 bytes a pair in float32."""
    monkeypatch.setattr(capture, "SHARD", 3000)


@pytest.mark.parametrize("how", ["cut off", "a flipped bit", "empty", "another's", "gone", "swapped", "no plan", "torn plan"])
def test_a_damaged_file_is_seen_and_only_it_is_made_anew(tmp_path, capsys, how):
    folder(tmp_path)
    made, frozen = module(tmp_path, cache_dtype="float32"), Pixels(LAYERS)
    frozen.ready(made)
    first, second = files(tmp_path)[1], files(tmp_path)[2]
    raw, pairs = first.read_bytes(), 4
    if how == "cut off":
        first.write_bytes(raw[:-100])
    elif how == "a flipped bit":
        first.write_bytes(raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:])
    elif how == "empty":
        first.write_bytes(b"")
    elif how == "another's":
        folder(tmp_path / "b")
        Pixels(LAYERS).ready(module(tmp_path / "b", cache_dtype="float32", seed=1))
        shutil.copy(files(tmp_path / "b")[1], first)
    elif how == "gone":
        first.unlink()
    elif how == "swapped":
        first.write_bytes(second.read_bytes())
    elif how == "no plan":
        (only(tmp_path) / "cache.json").unlink()
        pairs = 0
    else:
        (only(tmp_path) / "cache.json").write_text('{"settings": [', encoding="utf-8")
        pairs = 0
    capsys.readouterr()
    again = Pixels(LAYERS)
    stored = again.ready(made)
    assert again.crops == pairs
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (3 if pairs else 1)  # what is done, how far it is, and that it is done
    assert not pairs or lines[1].startswith(f"features: {pairs} of {pairs} (100 %)")
    if how in ("cut off", "a flipped bit", "empty", "another's", "swapped"):
        assert "1 of 6 files of features in" in lines[0] and "damaged" in lines[0]
    elif how == "gone":
        assert "gone on with behind 5 of 6 files" in lines[0]
    assert equal(stored["train"][list(range(20))], wanted(frozen, made, "train", list(range(20))))


@pytest.mark.parametrize("what", ["weights", "files", "pixels", "preprocessing", "opening"])
def test_a_stale_cache_is_named_and_made_anew(tmp_path, capsys, what):
    """Each is changed where the settings stay the same; a cache that is keyed by settings alone would be read."""
    folder(tmp_path)
    frozen, made = Pixels(LAYERS), module(tmp_path, cache_dtype="float32")
    frozen.ready(made)
    before = only(tmp_path)
    other = Pixels(LAYERS, seed=1 if what == "weights" else 0)
    if what == "files":  # the same length, as many images, another colour that none of the looked-at pairs shows
        path = made.files[0].path(3)
        picture(path, int(path.stem) + 30)
        Path(path).write_bytes(path.read_bytes())
        known = json.loads((before / "cache.json").read_text(encoding="utf-8"))["contents"]
        assert capture.plan_contents(frozen.backbone, LAYERS, made, "")[1]["pixels"] == known["pixels"]
    elif what == "pixels":
        made = module(tmp_path, cache_dtype="float32", transform=Brighter())
    elif what == "preprocessing":
        made.train.transform = made.held_out.transform = made.transform = Renamed()
    elif what == "opening":
        other.backbone.prompt = lambda question: f"A chat. USER: {question}"
    capsys.readouterr()
    stored = other.ready(made)
    assert only(tmp_path) == before
    assert other.crops > 20
    assert f"are stale (another {what})" in capsys.readouterr().out.splitlines()[0]
    assert equal(stored["train"][[3, 4]], wanted(frozen, made, "train", [3, 4]))


class Brighter(Shrink):
    def __call__(self, image):
        return super().__call__(image) + 1


Brighter.__name__ = "Shrink"


class Renamed(Shrink): ...


def test_what_a_killed_run_made_is_gone_on_with(tmp_path, capsys):
    folder(tmp_path)
    made, frozen = module(tmp_path, cache_dtype="float32"), Killed(LAYERS)
    with pytest.raises(KeyboardInterrupt):
        frozen.ready(made)
    assert len(files(tmp_path)) == 2
    (only(tmp_path) / "train-00002.safetensors.123.part").write_bytes(b"torn")
    again = Pixels(LAYERS)
    stored = again.ready(made)
    assert again.crops == 24 - 8
    assert "gone on with behind 2 of 6 files" in capsys.readouterr().out
    assert equal(stored["train"][list(range(20))], wanted(frozen, made, "train", list(range(20))))
    assert not list(only(tmp_path).glob("*.part"))


class Killed(Pixels):
    def __call__(self, batch):
        if self.batches == 2:
            raise KeyboardInterrupt
        return super().__call__(batch)


def test_a_full_disk_is_one_line_and_leaves_no_torn_file(tmp_path, monkeypatch):
    folder(tmp_path)
    made, write = module(tmp_path), Path.write_bytes

    def full(path, raw):
        if "train-00003" in path.name:
            write(path, raw[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, raw)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(capture, "SHARD", 1500)
    with pytest.raises(UserError, match=r"the disk is full \(writing .*\); free some, choose another disk with data.cache_path") as error:
        Pixels(LAYERS).ready(made)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(p.name for p in only(tmp_path).iterdir()) == ["cache.json", *(f"train-0000{i}.safetensors" for i in range(3))]
    monkeypatch.undo()
    monkeypatch.setattr(capture.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 0, 100))
    nothing = Pixels(LAYERS)
    with pytest.raises(UserError, match=r"needs 0.0 MB in .*, but 0.0 MB is free"):
        nothing.ready(module(tmp_path, seed=3))
    assert nothing.batches == 0


class Together:
    """Stands for Lightning's strategy over threads."""

    def __init__(self, world: int):
        self.gate, self.value = threading.Barrier(world, timeout=20), None

    def barrier(self) -> None:
        self.gate.wait()

    def broadcast(self, value):
        if value is not None:
            self.value = value
        self.gate.wait()
        return self.value


def test_ranks_share_the_work_and_read_all_of_it(tmp_path):
    """Three ranks: each row is run by one of them. Catches files made twice, and a rank that reads before the others have written."""
    folder(tmp_path)
    world, features = 3, {}
    strategy, frozen = Together(world), [Pixels(LAYERS) for _ in range(world)]
    made = [module(tmp_path, cache_dtype="float32", batch_size=2, global_batch=6) for _ in range(world)]

    def work(rank: int) -> None:
        features[rank] = frozen[rank].ready(made[rank], Ranks(rank, world, strategy))

    run(work, world)
    assert sum(f.crops for f in frozen) == 24 and all(f.crops for f in frozen)
    for rank in range(world):
        assert equal(features[rank]["train"][list(range(20))], wanted(frozen[0], made[0], "train", list(range(20))))


def test_two_runs_that_start_together_make_one_cache(tmp_path):
    folder(tmp_path)
    frozen, features = [Pixels(LAYERS), Pixels(LAYERS)], {}
    made = [module(tmp_path), module(tmp_path)]

    def work(k: int) -> None:
        features[k] = frozen[k].ready(made[k])

    run(work, 2)
    assert sorted(f.crops for f in frozen) == [0, 24]
    assert equal(features[0]["train"][[5, 6]], features[1]["train"][[5, 6]])


def run(work, count: int) -> None:
    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_cache_that_another_run_makes_anew_meanwhile_is_not_read_as_ours(tmp_path):
    folder(tmp_path)
    made, frozen = module(tmp_path), Pixels(LAYERS)
    stored = frozen.ready(made)["train"]
    exact = stored[[0, 9]]
    late = pickle.loads(pickle.dumps(stored))
    Pixels(LAYERS, seed=1).ready(made)
    assert equal(stored[[0, 9]], exact)  # what was opened stays
    with pytest.raises(UserError, match="made anew by another run"):
        next(iter(DataLoader(late, batch_size=None, sampler=[[0]])))
