"""Checkpoints that are not whole: each fault is one line with its cure, and is found before weights are read."""

from __future__ import annotations

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import published

from blink_exp.backbone import memory, weights
from blink_exp.backbone.load import load
from blink_exp.errors import UserError

NAME = "llava_1_5_7b"
HUB = "llava-hf/tiny-llava-hf"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / NAME
    published.write_folder(NAME, folder)
    assert sorted(f.name for f in folder.glob("*.safetensors")) == SHARDS
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def last_byte(folder):
    cut(folder / SHARDS[1], (folder / SHARDS[1]).stat().st_size - 1)


def to_bin(folder):
    for name in [*SHARDS, weights.INDEX]:
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def no_weights(folder):
    to_bin(folder)
    (folder / "pytorch_model.bin").unlink()


FAULTS = {
    "a missing shard": (
        lambda f: (f / SHARDS[1]).unlink(),
        f"is half downloaded: 1 of 3 files are missing, first {SHARDS[1]}; download it again",
    ),
    "no index": (lambda f: (f / weights.INDEX).unlink(), f"holds parts of the weights but no {weights.INDEX}; download it again"),
    "one byte short": (last_byte, f"{SHARDS[1]} has"),
    "cut in the header": (lambda f: cut(f / SHARDS[0], 100), f"{SHARDS[0]} is cut off or no safetensors file (100 bytes)"),
    "empty": (lambda f: cut(f / SHARDS[0], 0), f"{SHARDS[0]} is cut off or no safetensors file (0 bytes)"),
    "a pointer": (
        lambda f: (f / SHARDS[2]).write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8"),
        "is a git-lfs pointer, not weights",
    ),
    "bin only": (to_bin, "holds no *.safetensors; only this format is loaded, as it cannot run code"),
    "nothing": (no_weights, "holds no *.safetensors; download the weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault, folder):
    weights.check_complete(folder, str(folder))
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError) as caught:
        weights.check_complete(folder, str(folder))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"model.path={folder}") and "\n" not in str(caught.value)


def other_config(**changed):
    def spoil(folder):
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changed
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}), encoding="utf-8")

    return spoil


def no_projector(folder):
    for name in SHARDS:
        state = load_file(folder / name)
        save_file({k: v for k, v in state.items() if "projector.linear_1" not in k}, folder / name, metadata={"format": "pt"})


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def other_image_token(folder):
    text = (folder / "processor_config.json").read_text(encoding="utf-8")
    (folder / "processor_config.json").write_text(text.replace("<image>", "<pad>"), encoding="utf-8")


REFUSED = {
    "no config": (remove("config.json"), "holds no config.json; give a folder in Hugging Face layout, or a hub id"),
    "no JSON": (lambda f: cut(f / "config.json", 20), "has a config.json that is no JSON"),
    "another model": (other_config(model_type="qwen2_vl"), "holds a model of type qwen2_vl; use a LLaVA-1.5 or LLaVA-NeXT"),
    "the original layout": (other_config(text_config=None), "holds a LLaVA in the original repository's layout"),
    "a shard": (remove(SHARDS[0]), "is half downloaded: 1 of 3 files are missing"),
    "some weights": (no_projector, "lacks 2 weights of its model, first model.multi_modal_projector.linear_1.bias"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "has no processor and tokenizer that load"),
    "no template": (remove("chat_template.json"), "has no chat template (chat_template.jinja or .json)"),
    "another image token": (other_image_token, "has <pad> as token 32001 but its config says 32000"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_load_refuses(fault, folder, monkeypatch):
    monkeypatch.setattr(memory, "check", lambda *settings: None)
    spoil, message = REFUSED[fault]
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load.__wrapped__(str(folder))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def cache(whole, tmp_path, monkeypatch):
    """A hub cache that holds HUB's main branch, and no network. Returns the folder of its files."""
    from huggingface_hub import constants

    held = tmp_path / "hub" / f"models--{HUB.replace('/', '--')}"
    (held / "refs").mkdir(parents=True)
    (held / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    shutil.copytree(whole, held / "snapshots" / COMMIT)
    for where in (constants, huggingface_hub.file_download, huggingface_hub._snapshot_download):
        monkeypatch.setattr(where, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return held / "snapshots" / COMMIT


def test_a_hub_id_loads_from_the_cache_and_names_its_commit(cache):
    known = load.__wrapped__(HUB, revision="main")
    assert known.settings["revision"] == COMMIT
    assert known.name == HUB
    saved = load_file(cache / SHARDS[0])
    assert torch.equal(
        known.model.state_dict()["model.language_model.embed_tokens.weight"], saved["language_model.model.embed_tokens.weight"].float()
    )


def test_a_hub_id_that_is_not_whole_or_not_there(cache):
    with pytest.raises(
        UserError, match=r"model.path=\S+ \(model.revision=old\) is not in the cache, and the hub is offline; run: hf download"
    ):
        load.__wrapped__(HUB, revision="old")
    with pytest.raises(UserError, match=r"model.path=nobody/nothing is not in the cache, and the hub is offline"):
        load.__wrapped__("nobody/nothing")
    (cache / SHARDS[2]).unlink()
    with pytest.raises(UserError, match=f"is half downloaded: 1 of 3 files are missing, first {SHARDS[2]}; run: hf download {HUB}"):
        load.__wrapped__(HUB)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", r"model.path=a/b \(model.revision=v2\) is gated; accept its terms on its page, then log in"),
        ("RevisionNotFoundError", "model.revision=v2 is not in a/b; use a branch, tag or commit of it"),
        ("RepositoryNotFoundError", "is not on the hub, or needs access; check the name"),
        ("RemoteEntryNotFoundError", "holds no config.json"),
        ("HfHubHTTPError", r"could not be downloaded \(said the hub\); try again, or give a folder"),
    ],
)
def test_what_the_hub_says_is_one_line(error, message, monkeypatch):
    kind = getattr(huggingface_hub.errors, error)
    raised = kind.__new__(kind)
    raised.args = ("said the hub\nat length",)
    monkeypatch.setattr(kind, "__str__", lambda self: "said the hub\nat length")

    def refuse(*words, **settings):
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=message) as caught:
        load.__wrapped__("a/b", revision="v2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere", "/no/where/at/all", "a/b/c", "a/", "a/b c"])
def test_what_can_be_no_hub_id(path):
    with pytest.raises(UserError, match="neither a folder nor a"):
        load.__wrapped__(path)
