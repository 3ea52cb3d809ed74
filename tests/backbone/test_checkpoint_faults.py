"""Checkpoints whose files say what this project cannot run, or nonsense: one line at load, before weights are read, no wrong numbers."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import published

from blink_exp.backbone import supported, weights
from blink_exp.backbone.load import load
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError

ONE, NEXT = "llava_1_5_7b", "llava_next_7b"
GONE = object()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for name in (ONE, NEXT):
        published.write_folder(name, root / name)
    return root


@pytest.fixture
def spoilt(folders, tmp_path):
    """A function from a checkpoint's name, a file of it and a change of what its JSON holds, to a copy of the folder with that change."""

    def make(name, file, change):
        target = tmp_path / "checkpoint"
        target.mkdir()
        for held in (folders / name).iterdir():
            if held.name != file:
                (target / held.name).symlink_to(held)
        source = folders / name / file
        raw = json.loads(source.read_text(encoding="utf-8")) if source.suffix == ".json" else source.read_text(encoding="utf-8")
        changed = change(raw)
        text = changed if isinstance(changed, str) else json.dumps(changed)
        (target / file).write_text(text, encoding="utf-8")
        return target

    return make


def put(**values):
    """A change of the keys ``a__b`` (b inside a) to values; GONE takes one away."""

    def change(raw):
        for key, value in values.items():
            *outer, last = key.split("__")
            section = functools.reduce(lambda inside, k: inside[k], outer, raw)
            if value is GONE:
                del section[last]
            else:
                section[last] = value
        return raw

    return change


def refused(path, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load.__wrapped__(str(path), **settings)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"model.path={path}") and ";" in message
    return message


CONFIGS = [
    (
        {"vision_feature_select_strategy": "full"},
        "vision_feature_select_strategy=full, but clip_vision_model is supported with default only",
    ),
    ({"vision_feature_layer": -26}, "vision_feature_layer=-26, but the tower has hidden states -25 to 24"),
    ({"vision_feature_layer": 0}, "vision_feature_layer=0, but transformers takes 0 for no layer; the tower's embeddings are -25"),
    ({"vision_feature_layer": 25}, "vision_feature_layer=25, but"),
    ({"vision_feature_layer": []}, "vision_feature_layer=[], but"),
    ({"vision_feature_layer": [-2, 40]}, "vision_feature_layer=[-2, 40], but"),
    ({"vision_config__model_type": "siglip_vision_model"}, "is supported with full only: it has no CLS token"),
    ({"vision_config__model_type": "dinov2"}, "vision_config.model_type=dinov2, but supported are clip_vision_model and"),
    ({"vision_config__patch_size": 0}, "vision_config.patch_size=0, but it must be a whole number from 1 to"),
    ({"text_config__num_hidden_layers": 1_000_000}, "text_config.num_hidden_layers=1000000, but it must be a whole number from 1 to 1000"),
    ({"vision_config__patch_size": 400}, "vision_config.patch_size=400, but a patch must fit into image_size=336"),
    ({"vision_config__num_attention_heads": 7}, "multiple of"),
    ({"text_config__model_type": "gemma"}, "text_config.model_type=gemma, but supported are llama"),
    ({"text_config__num_key_value_heads": 3}, "text_config.num_key_value_heads=3, but num_attention_heads=4 must be a multiple"),
    ({"text_config__rms_norm_eps": -1e-5}, "text_config.rms_norm_eps=-1e-05, but"),
    ({"text_config__hidden_size": "x"}, "has no config.json that makes a config"),
    ({"text_config__hidden_act": "x"}, "has no config.json that makes a model"),
    ({"text_config": 3}, "text_config=3, but it must be an object"),
    ({"image_token_index": 40_000}, "image_token_index=40000, but it must be a token of the vocabulary, 0 to 32063"),
    ({"quantization_config": {"quant_method": "awq"}}, "weights that are stored quantised are not read"),
    ({"model_type": ["llava"]}, "holds a model of type ['llava']"),
]
NEXT_CONFIGS = [
    ({"image_grid_pinpoints": []}, "image_grid_pinpoints=[], but it must list [height, width] pairs"),
    ({"image_grid_pinpoints": [[336, 672, 1]]}, "image_grid_pinpoints=[[336, 672, 1]], but it must list"),
    ({"image_grid_pinpoints": [336, 672]}, "image_grid_pinpoints=[336, 672], but it must list"),
    ({"image_grid_pinpoints": [[336, 600]]}, "image_grid_pinpoints=[336, 600], but sides must be multiples of the tower's image_size=336"),
    ({"image_grid_pinpoints": [[3_360_000, 336]]}, "an image has at most 100 tiles of 336 pixels"),
    ({"vision_config__image_size": 224}, "but sides must be multiples of the tower's image_size=224"),
]


def label(value: object) -> str | None:
    """For a test's id: values as they are written; None, which is its number, for a function or an object, whose address changes."""
    text = repr(value)
    return None if " at 0x" in text else text


@pytest.mark.parametrize(
    ("name", "values", "message"), [(ONE, *case) for case in CONFIGS] + [(NEXT, *case) for case in NEXT_CONFIGS], ids=label
)
def test_a_config_that_cannot_run(name, values, message, spoilt):
    assert message in refused(spoilt(name, "config.json", put(**values)))


@pytest.mark.parametrize("raw", ["[]", "3", "null", '"llava"', "", "{", "[" * 100_000])
def test_a_config_that_is_no_object(raw, spoilt):
    assert "has a config.json that is no " in refused(spoilt(ONE, "config.json", lambda _: raw))


IMAGES = [
    (ONE, {"size": {"shortest_edge": 224}}, "has size={'shortest_edge': 224}, but the tower's vision_config.image_size is 336"),
    (ONE, {"crop_size": {"height": 224, "width": 224}}, "has crop_size={'height': 224, 'width': 224}, but the tower's"),
    (ONE, {"crop_size": {"height": 336, "width": 224}}, "has crop_size="),
    (ONE, {"size": GONE}, "has size="),
    (ONE, {"size": 1_000_000}, "has size="),
    (ONE, {"size": []}, "has no processor and tokenizer that load"),
    (ONE, {"do_resize": False}, "has do_resize=False, but"),
    (ONE, {"do_center_crop": False}, "but the model takes (1, 3, 336, 336)"),
    (ONE, {"do_normalize": False}, "has do_normalize=False, but"),
    (ONE, {"image_std": [0, 1, 1]}, "has image_std=[0, 1, 1], but it must be three numbers"),
    (ONE, {"image_mean": [122, 116, 104]}, "has image_mean=[122, 116, 104], but"),
    (ONE, {"rescale_factor": 1}, "has rescale_factor=1, but"),
    (ONE, {"resample": "x"}, "has resample=x, but it must be a filter of PIL"),
    (ONE, {"image_processor_type": 3}, "has no processor and tokenizer that load"),
    (NEXT, {"image_grid_pinpoints": [[336, 672]]}, "has image_grid_pinpoints=[[336, 672]], but config.json has [[336, 672], [672, 336]"),
    (NEXT, {"image_grid_pinpoints": []}, "preprocessor_config.json has image_grid_pinpoints=[], but it must list"),
    (NEXT, {"size": {"height": 448, "width": 448}}, "has size={'height': 448, 'width': 448}, but"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values", "message"), IMAGES, ids=label)
def test_an_image_processor_that_is_not_the_tower_s(name, values, message, spoilt):
    assert message in refused(spoilt(name, "preprocessor_config.json", put(**values)))


def test_the_file_that_is_named_is_the_one_that_is_there(tmp_path):
    assert supported.images_file("llava-hf/some-id") == "preprocessor_config.json"
    (tmp_path / "processor_config.json").touch()
    assert supported.images_file(str(tmp_path)) == "processor_config.json"
    (tmp_path / "preprocessor_config.json").touch()
    assert supported.images_file(str(tmp_path)) == "preprocessor_config.json"


TOKENS = [
    ("processor_config.json", put(image_token="<picture>"), "has <picture> as token "),
    ("processor_config.json", put(image_token=[]), "has no processor and tokenizer that load"),
    ("processor_config.json", put(processor_class="x"), "has a "),
    ("processor_config.json", lambda _: [1], "has no processor and tokenizer that load"),
    ("chat_template.json", put(chat_template="{% if %}"), "has no chat template and tokenizer that make a prompt"),
    ("chat_template.json", put(chat_template="USER: {{ messages[0]['content'][1]['text'] }}"), "has a prompt with 0 tokens <image>"),
    ("chat_template.json", put(chat_template="<image>"), "has a chat template that leaves out the question"),
    ("tokenizer.json", lambda raw: raw | {"added_tokens": []}, "has "),
    ("generation_config.json", put(eos_token_id=99_999), "has eos_token_id=99999, but it must be a token of the vocabulary, 0 to 32063"),
    ("generation_config.json", put(eos_token_id=["x"]), "eos_token_id"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "change", "message"), TOKENS, ids=label)
def test_tokens_and_prompts_that_are_not_the_model_s(file, change, message, spoilt):
    assert message in refused(spoilt(ONE, file, change))


def test_a_tokenizer_larger_than_the_model_is_named(spoilt):
    path = spoilt(ONE, "config.json", put(text_config__vocab_size=32_001))  # <pad> is 32001
    assert "has a tokenizer with token 32001, but the model's text_config.vocab_size is 32001" in refused(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", f"has an {weights.INDEX} that names no files"),
        ("[]", f"has an {weights.INDEX} that names no files"),
        ('{"weight_map": {"a": 3}}', f"{weights.INDEX} names 3, which is no file of the folder"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names ../a.safetensors, which is no file of the folder"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "1 of 1 files are missing, first model-9.safetensors"),
    ],
)
def test_an_index_that_is_broken(raw, message, spoilt):
    assert message in refused(spoilt(ONE, weights.INDEX, lambda _: raw))


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_fewer_layers_than_the_weights_have_are_noticed(part, spoilt):
    path = spoilt(ONE, "config.json", put(**{f"{part}__num_hidden_layers": 23}))
    message = refused(path)
    assert "weights of layers that its config.json leaves out, first " in message and "layers.23." in message


def test_a_weight_of_another_shape_is_named_on_one_line(folders, spoilt, capfd):
    path = spoilt(ONE, "config.json", lambda raw: raw)
    name = next(f.name for f in path.glob("*.safetensors") if any("linear_1.bias" in key for key in load_file(f)))
    state = load_file(path / name)
    key = next(key for key in state if "linear_1.bias" in key)
    (path / name).unlink()
    save_file(state | {key: torch.zeros(5, dtype=torch.float16)}, path / name, metadata={"format": "pt"})
    message = refused(path)
    assert "linear_1.bias of shape (5,), but its config.json makes it (64,)" in message
    assert "MISMATCH" not in capfd.readouterr().err


@pytest.mark.parametrize("header", [b"[1, 2]", b'{"a": 3}', b'{"a": {"data_offsets": []}}', b'{"a": {"data_offsets": ["x", "y"]}}'])
def test_a_header_that_is_no_header(header, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert weights.shard_fault(file) == "has a header that cannot be read"


def test_several_layers_of_the_tower_are_read_as_the_stock_model_reads_them():
    """Their states side by side, without CLS; the tower's pass of our own against get_image_features."""
    from support.models import random_llava
    from transformers import LlavaForConditionalGeneration

    from blink_exp.backbone.encode import encode
    from blink_exp.core.encoding import EncoderRequirements
    from blink_exp.core.views import ViewGeometry

    config = random_llava().config
    config.vision_feature_layer = [-1, 0]
    model = LlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        encodings = encode(model, pixels, [ViewGeometry(6)] * 2, EncoderRequirements())
        wanted = model.get_image_features(pixel_values=pixels).pooler_output
        assert encodings[0].hidden.shape == (1, 36, 2 * 16)
        for one, stock in zip(encodings, wanted, strict=True):
            assert torch.allclose(model.model.multi_modal_projector(one.hidden[0]), stock, atol=1e-5)


@pytest.mark.parametrize("kind", supported.LLMS)
@pytest.mark.parametrize("tower", supported.TOWERS)
@torch.no_grad()
def test_what_is_supported_runs_as_the_stock_model_does(kind, tower):
    """Every decoder and tower: a scan whose threshold is never met against the stock forward, and the tower's pass of our own."""
    from support.models import IMAGE, prompts, random_llava
    from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

    from blink_exp.backbone.encode import encode
    from blink_exp.core.encoding import EncoderRequirements
    from blink_exp.core.views import ViewGeometry
    from blink_exp.methods.blink import BlinkPolicy, blink

    known = random_llava().config
    text = {k: v for k, v in known.text_config.to_dict().items() if k in ("vocab_size", "hidden_size", "intermediate_size", "pad_token_id")}
    heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "sliding_window": None}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 4,
    }
    config = LlavaConfig(
        vision_config=AutoConfig.for_model(tower, **sizes),
        text_config=AutoConfig.for_model(kind, **text, **heads),
        image_token_index=IMAGE,
        image_seq_length=36,
        vision_feature_select_strategy=supported.TOWERS[tower],
    )
    supported.check_config(config, "here")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    batch = prompts(model, [[8, 9], [10, 11, 12]])
    stock = model(**batch).logits[:, -1]
    with attach(model, blink(BlinkPolicy((1, 2), 1.0, 0.0))) as run:
        ours = model(**batch).logits[:, -1]
        assert len(run.records) == 4
    assert torch.allclose(ours, stock, atol=1e-4 * float(stock.abs().max()))
    for encoding, wanted in zip(
        encode(model, batch["pixel_values"], [ViewGeometry(6)] * 2, EncoderRequirements()),
        model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output,
        strict=True,
    ):
        assert torch.allclose(model.model.multi_modal_projector(encoding.hidden[0]), wanted, atol=1e-5)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; give the folder that holds it"):
        load.__wrapped__(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "meta"}, "model.device=meta is not supported; use cpu, cuda or cuda:0"),
        ({"device": "mps"}, "model.device=mps is not supported"),
        ({"device": "cpu:1"}, "model.device=cpu:1 is not supported"),
        ({"device": "cuda:-1"}, "model.device=cuda:-1 is no device"),
        ({"device": None}, "model.device=None is no device"),
        ({"device": 0}, "model.device=0 is no device"),
        ({"attn_implementation": "flash_attention_2"}, "model.attn_implementation=flash_attention_2 needs"),
        ({"system_prompt": "vicuna"}, "model.system_prompt=vicuna is not known; did you mean vicuna_v1"),
    ],
)
def test_a_setting_is_refused_before_any_file_is_looked_at(settings, message):
    with pytest.raises(UserError) as caught:
        load.__wrapped__("no/folder", **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
