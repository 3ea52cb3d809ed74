"""Memory that a backbone needs, against sums by hand and the published parameter counts; settings that cannot be."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from support.scripts import ROOT

from blink_exp.backbone import memory
from blink_exp.backbone.load import load
from blink_exp.backbone.published import published_config
from blink_exp.errors import UserError

LLM_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # matrices of the 32 layers
ALL_7B = 7_063_427_072  # as the model's page counts it


@pytest.fixture(scope="module")
def config():
    return published_config("llava_1_5_7b")


def test_the_published_7b(config):
    estimate = memory.estimate(config, "float16")
    assert estimate.parameters == ALL_7B
    assert estimate.weights == 2 * ALL_7B
    assert estimate.cache == (576 + 512) * 524_288  # half a MiB a token (HERO, Table VIII)
    assert memory.estimate(config, "float32").total == 2 * estimate.total
    rest = 2 * (ALL_7B - LLM_7B)  # CLIP, projector, embeddings and head stay as they are
    assert memory.estimate(config, "float16", "8bit").weights == LLM_7B + rest
    assert memory.estimate(config, "float16", "4bit").weights == LLM_7B // 2 + LLM_7B // 16 + rest


def test_grouped_heads_and_tiles():
    estimate = memory.estimate(published_config("llava_next_mistral_7b"), "bfloat16")
    assert estimate.cache == (2928 + 512) * 524_288 // 4  # 8 key heads of 32
    assert round(estimate.parameters / 1e9, 2) == 7.57
    assert round(memory.estimate(published_config("llava_next_13b"), "bfloat16").parameters / 1e9, 2) == 13.35


def refusal(config, **settings) -> str:
    with pytest.raises(UserError) as caught:
        memory.check(config, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_little_is_said_with_what_would_fit(config, monkeypatch):
    room = {"cpu": 20 * 10**9, "cuda:0": 10 * 10**9}
    monkeypatch.setattr(memory, "free", room.get)
    memory.check(config, "bfloat16", "cpu")
    assert refusal(config, dtype="float32", device="cpu") == (
        "model.dtype=float32 needs 28.3 GB for the weights and 1.1 GB for a prompt, but cpu has 20.0 GB free;"
        " use model.dtype=bfloat16 (14.7 GB)"
    )
    assert refusal(config, dtype="bfloat16", device="cuda:0").endswith(
        "cuda:0 has 10.0 GB free; use model.quantization=8bit (8.2 GB) or model.quantization=4bit (5.4 GB) or model.device_map=auto"
    )
    memory.check(config, "bfloat16", "cuda:0", "4bit")
    room["cpu"] = 10**9
    assert "use a smaller model or a device with more memory" in refusal(config, dtype="bfloat16", device="cpu")
    room["cuda:0"] = 40 * 10**9
    assert "takes 14.1 GB through main memory on the way to cuda:0, but 1.0 GB is free" in refusal(config, dtype="float16", device="cuda:0")
    room["cpu"] = None
    memory.check(config, "float32", "cpu")  # who cannot know does not refuse


def test_the_limit_is_exact_and_a_map_adds_up_what_it_may_use(config, monkeypatch):
    need = memory.estimate(config, "bfloat16").total
    monkeypatch.setattr(memory, "free", lambda device: need)
    memory.check(config, "bfloat16", "cpu")
    monkeypatch.setattr(memory, "free", lambda device: need - 1)
    refusal(config, dtype="bfloat16", device="cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(memory, "free", lambda device: need // 2 + 1 if device != "cpu" else 0)
    memory.check(config, "bfloat16", "cuda", device_map="auto")
    monkeypatch.setattr(memory, "free", lambda device: need // 3 + 1)
    memory.check(config, "bfloat16", "cuda", device_map="auto")  # two GPUs and main memory
    monkeypatch.setattr(memory, "free", lambda device: need // 8)
    assert "cuda:0 + cuda:1 + cpu has" in refusal(config, dtype="bfloat16", device="cuda", device_map="auto")
    # What is quantised cannot be put into main memory.
    assert "cuda:0 + cuda:1 has" in refusal(config, dtype="bfloat16", device="cuda", quantization="8bit", device_map="auto")


def test_main_memory_is_what_the_machine_or_its_container_has_left():
    size = memory.free("cpu")
    assert size is None or 0 <= size < 2**50


def test_what_is_shared_by_default(monkeypatch):
    monkeypatch.setattr(memory, "free", {"cpu": 50 * 10**9, "cuda:0": 50 * 10**9}.get)
    assert (memory.shared_bytes(None, "cpu"), memory.shared_bytes(None, "cuda:0")) == (2**30, 5 * 10**9)
    assert memory.shared_bytes(0.5, "cpu") == 5 * 10**8
    monkeypatch.setattr(memory, "free", lambda device: 6 * 10**9)
    assert memory.shared_bytes(None, "cpu") == 6 * 10**8


def test_load_says_it_before_weights_are_read(tmp_path, monkeypatch):
    from support import published

    published.write_folder("llava_1_5_7b", tmp_path / "small")
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    for shard in (tmp_path / "small").glob("*.safetensors"):
        shard.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"model.dtype=float16 needs .* for the weights .* but cpu has 0.0 GB free"):
        load.__wrapped__(str(tmp_path / "small"), dtype="float16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float23"}, "model.dtype=float23 is not known; did you mean float32"),
        ({"dtype": None}, "model.dtype=None is not known"),
        ({"attn_implementation": "flash"}, "model.attn_implementation=flash is not known; did you mean flash_attention_2"),
        ({"quantization": "3bit"}, "model.quantization=3bit is not known; did you mean"),
        ({"device_map": "cuda"}, "model.device_map=cuda is not known"),
        ({"device": "gpu"}, "model.device=gpu is no device; use cpu, cuda or cuda:0"),
        ({"device": "cuda:99"}, r"model.device=cuda:99 is not there, torch sees \d+ GPUs; use"),
        ({"quantization": "4bit"}, "model.quantization=4bit needs a GPU, but model.device=cpu; use model.quantization=null"),
        ({"system_prompt": "vicuna"}, "model.system_prompt=vicuna is not known; did you mean vicuna_v1"),
        ({"pad": True, "path": "scale_next"}, "model.pad=true is LLaVA-1.5's padding"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load.__wrapped__(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "library"), [("device_map", "auto", "accelerate"), ("attn_implementation", "flash_attention_2", "flash_attn")]
)
def test_a_missing_library_is_named(setting, value, library):
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(UserError, match=f"model.{setting}={value} needs {library}, which is not installed; run: pip install"):
        load.__wrapped__(**{setting: value})


def test_the_table_in_the_docs_is_the_one_that_is_computed():

    docs = ROOT / "docs" / "backbones.md"
    assert memory.table() in docs.read_text(encoding="utf-8")


def test_a_batch_too_large_for_what_is_left_is_said_with_the_largest_that_fits(monkeypatch):
    """LLaVA-1.5-7B: 576 + 512 tokens of half a MiB a prompt, 0.57 GB; 5.5 GB hold nine of them."""
    config = published_config("llava_1_5_7b")
    monkeypatch.setattr(memory, "free", lambda device: int(5.5e9))
    memory.check_batch(config, "float16", "cuda:0", 9)
    with pytest.raises(UserError, match=r"batch_size=10 needs 5.7 GB for keys and values, but cuda:0 has 5.5 GB free; use batch_size=9"):
        memory.check_batch(config, "float16", "cuda:0", 10)
    monkeypatch.setattr(memory, "free", lambda device: None)
    memory.check_batch(config, "float16", "cuda:0", 10_000)
