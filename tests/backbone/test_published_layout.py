"""Published checkpoints through ``load``: folders in their layout at small width, their prompts, pixels and token counts."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from support import published
from support.models import model_inputs

from blink_exp.backbone.load import load
from blink_exp.backbone.published import NAMES
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.cli import CONF
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import ViewGeometry, all_tokens, pack
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import evaluate

QUESTION = "Is there a red circle?"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A function from a backbone's name to (its folder, its weights by the hub's key names); each is made once."""
    made = {}

    def get(name):
        if name not in made:
            path = tmp_path_factory.mktemp("published") / name
            made[name] = (path, published.write_folder(name, path))
        return made[name]

    return get


@pytest.fixture(scope="session")
def backbone(folder):
    """A function from a backbone's name to it, loaded as its config in conf/model says but from the folder, on the CPU in float32."""
    made = {}

    def get(name):
        if name not in made:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("evaluate", [f"model={name}", "model.device=cpu", "model.dtype=float32"]).model
            settings = {key: value for key, value in cfg.items() if key != "_target_"}
            made[name] = load.__wrapped__(**{**settings, "path": str(folder(name)[0]), "clip": None})
        return made[name]

    return get


@pytest.fixture(scope="session")
def plain(folder):
    """LLaVA-1.5-7B as its files alone say: cropped, without system text."""
    return load.__wrapped__(str(folder("llava_1_5_7b")[0]))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", published.SMALL)
def test_every_weight_arrives_under_the_hub_s_key_names(name, folder, backbone):
    _, saved = folder(name)
    model = backbone(name).model
    loaded = {published.hub_name(key): weight for key, weight in model.state_dict().items()}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key].float()) for key in saved)
    text = published.published_json(name)["text_config"]
    assert len(model.model.language_model.layers) == text["num_hidden_layers"] == (40 if "13b" in name else 32)
    assert len(model.model.vision_tower.encoder.layers) == 24
    config = model.config.text_config
    assert config.num_attention_heads // config.num_key_value_heads == (4 if "mistral" in name else 1)
    theta = 1_000_000.0 if "mistral" in name else 10_000.0
    width = config.hidden_size // config.num_attention_heads
    assert model.model.language_model.rotary_emb.inv_freq[1].item() == pytest.approx(theta ** (-2 / width))


def test_prompts_are_those_of_the_published_evaluation(folder, backbone, plain):
    asked = f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert backbone("llava_1_5_7b").prompt(QUESTION) == f"{SYSTEM} {asked}"
    assert backbone("llava_next_7b").prompt(QUESTION) == f"{SYSTEM} {asked}"
    assert plain.prompt(QUESTION) == asked
    assert backbone("llava_next_mistral_7b").prompt(QUESTION) == f"[INST] <image>\n{QUESTION} [/INST]"
    with pytest.raises(UserError, match="model.system_prompt=vicuna_v1 is not what the chat template of .* was made for"):
        load.__wrapped__(str(folder("llava_next_mistral_7b")[0]), system_prompt="vicuna_v1")


def test_what_changes_scores_is_named(folder, backbone):
    named = {"dtype": "float32", "device": "cpu", "attn_implementation": "sdpa", "quantization": None, "revision": None}
    assert backbone("llava_1_5_7b").settings == named | {"pad": True, "system_prompt": "vicuna_v1"}
    assert backbone("llava_next_mistral_7b").settings == named | {"pad": False, "system_prompt": "none"}
    plain = load.__wrapped__(str(folder("llava_1_5_7b")[0]), dtype="bfloat16", attn_implementation="eager")
    assert plain.settings == named | {"dtype": "bfloat16", "attn_implementation": "eager", "pad": False, "system_prompt": "none"}
    assert plain.identity.split("@")[1] == backbone("llava_1_5_7b").identity.split("@")[1]


def test_weights_that_are_packed_are_identified_by_their_files(backbone):
    for name in ("llava_1_5_7b", "llava_next_mistral_7b"):
        known = backbone(name)
        packed = type(known)(known.name, None, None, quantization="4bit", files=known.files)  # the model is not asked
        assert packed.identity == known.identity


def test_the_tokens_around_an_image_are_llava_s(folder, backbone, tmp_path, capsys):
    ids = backbone("llava_1_5_7b").processor.tokenizer(backbone("llava_1_5_7b").prompt(QUESTION)).input_ids
    at = ids.index(32000)
    assert ids[0] == 1 and ids.count(1) == 1
    assert ids[at - 2 : at + 3] == [29901, 29871, 32000, 29871, 13]
    assert "warning" not in capsys.readouterr().err
    changed = copied(folder("llava_1_5_7b")[0], tmp_path / "changed")
    tokenizer = json.loads((changed / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] = tokenizer["normalizer"]["normalizers"][1]  # no prefix space behind special tokens: not legacy
    rewrite(changed / "tokenizer.json", json.dumps(tokenizer))
    load.__wrapped__(str(changed))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("warning: tokens [29901, 29871, 32000, 13, ")


def copied(source, target):
    """The folder again, as links to files that are not rewritten."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    return target


def rewrite(file, text):
    file.unlink()
    file.write_text(text, encoding="utf-8")


def squared(image: Image.Image) -> Image.Image:
    """LLaVA's expand-to-square, by hand."""
    side = max(image.size)
    out = Image.new("RGB", (side, side), (122, 116, 104))  # int(255 * mean) of each colour
    out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return out


def pixels_by_hand(square: Image.Image) -> torch.Tensor:
    small = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((small - mean) / std).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [(301, 100), (100, 301), (200, 200)])
def test_padded_pixels_are_the_original_s(size, backbone):
    padded, image = backbone("llava_1_5_7b"), photo(*size)
    wanted = pixels_by_hand(squared(image))
    assert torch.allclose(padded.transform(image), wanted, atol=1e-5)
    assert torch.allclose(model_inputs(padded, [image], [QUESTION])["pixel_values"][0], wanted, atol=1e-5)


def test_padding_reaches_the_features_and_without_it_two_thirds_of_a_wide_image_are_lost(backbone, plain):
    padded, cropped = backbone("llava_1_5_7b"), plain
    wide, other = photo(300, 100), photo(300, 100, seed=1)
    other.paste(wide.crop((90, 0, 210, 100)), (90, 0))  # another picture outside the middle
    assert torch.equal(cropped.transform(wide), cropped.transform(other))
    assert not torch.allclose(padded.transform(wide), padded.transform(other), atol=0.1)
    by_padding = padded.features({"wide": wide})["wide"]
    by_hand = cropped.features({"square": squared(wide)})["square"]
    assert by_padding.shape == (576, 64)
    assert torch.allclose(by_padding, by_hand, atol=1e-5)
    (a,), (b,) = (x.encodings({"i": image}, EncoderRequirements()).values() for x, image in ((padded, wide), (cropped, squared(wide))))
    assert torch.allclose(a.hidden, b.hidden, atol=1e-5)


def test_padding_is_not_for_llava_next(folder):
    with pytest.raises(UserError, match="model.pad=true is LLaVA-1.5's padding, but LLaVA-NeXT pads its tiles by itself"):
        load.__wrapped__(str(folder("llava_next_7b")[0]), pad=True)


COUNTS = {  # (width, height) of an image: its visual tokens
    **{(200, 200): 1176, (336, 336): 1176, (672, 336): 1752, (640, 360): 1948, (640, 427): 2144, (640, 480): 2340, (500, 375): 2340},
    **{(480, 640): 2352, (1024, 1024): 2928, (1000, 300): 2182, (300, 1000): 2232},
}


def test_llava_next_s_token_counts(backbone):
    known = backbone("llava_next_7b")
    for (width, height), wanted in COUNTS.items():
        views = ViewGeometry.of(known.model.config, (height, width))
        assert len(pack(views, all_tokens(views))) == wanted, (width, height)
        assert known.processor._get_num_multimodal_tokens([(height, width)])["num_image_tokens"] == [wanted]
    batch = model_inputs(known, [photo(1000, 300), photo(200, 200)], [QUESTION] * 2)
    assert (batch["input_ids"] == 32000).sum(1).tolist() == [2182, 1176]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_1_5_7b", "llava_next_mistral_7b"])
@torch.no_grad()
def test_our_route_answers_as_the_stock_model_does(name, backbone):
    """Features made apart, and Blink whose threshold is never met, against pixels and ids through the stock forward."""
    from blink_exp.methods.blink import BlinkPolicy, blink

    known, image = backbone(name), photo(150, 100)
    inputs = model_inputs(known, [image], [QUESTION])
    stock = known.model(**inputs).logits[0, -1]
    tokens = known.model.generate(**inputs, max_new_tokens=2)
    text = known.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    (visual,) = known.visual({"a": image}, [("a", QUESTION)], None)
    assert known.generate([visual.features], [QUESTION], 2) == [text]
    with attach(known.model, blink(BlinkPolicy((12, 13), 1.0, 0.0))) as run:
        logits = known.model(**inputs).logits[0, -1]
        assert {r.scan.layer for r in run.records} == {12, 13}
    assert torch.allclose(logits, stock, atol=1e-4 * float(stock.abs().max()))


class OneQuestion(MosaicMME):
    def samples(self):
        return super().samples()[:1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("llava_1_5_7b", []), ("llava_next_mistral_7b", ["hero_alpha=no_text"])])
def test_blink_and_hero_on_one_question(name, words, backbone):
    known, benchmark = backbone(name), OneQuestion()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        methods = [compose("evaluate", [f"method={m}", *words]).method for m in ("blink_interp", "hero")]
    blink, hero = (instantiate(method, _partial_=True, _convert_="all")(known) for method in methods)
    image = benchmark.samples()[0].image()
    views = ViewGeometry.of(known.model.config, (image.height, image.width))
    (looked,), _ = evaluate(known, blink, benchmark, batch_size=1)
    assert [step["layer"] for step in looked["layers"]] == list(range(12, 19))
    assert all(0.25 <= step["rho"] <= 1 for step in looked["layers"])
    assert looked["visual_tokens"] == int(views.valid.sum())
    (dropped,), _ = evaluate(known, hero, benchmark, batch_size=1)
    budget = int(views.count * 576 * 0.2)  # tiles round down, each for itself
    assert budget - views.tiles <= dropped["visual_tokens"] <= budget


def test_a_checkpoint_s_own_sampling_is_left_out(backbone):
    for name in ("llava_1_5_7b", "llava_next_7b"):
        config = backbone(name).model.generation_config
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 32001)
        assert not config.do_sample and config.temperature in (None, 1.0) and config.top_p in (None, 1.0)


def test_what_an_older_folder_leaves_out_is_taken_from_the_config(folder, tmp_path):
    old = copied(folder("llava_1_5_7b")[0], tmp_path / "old")
    (old / "processor_config.json").unlink()
    batch = model_inputs(load.__wrapped__(str(old)), [photo(50, 50)], [QUESTION])
    assert (batch["input_ids"] == 32000).sum().item() == 576


def test_every_published_backbone_has_a_config_of_its_own():
    known = set(inspect.signature(load.__wrapped__).parameters)
    ids = set()
    for name in NAMES:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            model = compose("evaluate", [f"model={name}"]).model
        assert set(model) - {"_target_"} == known
        assert model.path.startswith("llava-hf/") and model.path.endswith("-hf")
        assert ("v1.6" in model.path, "13b" in model.path, "mistral" in model.path) == ("next" in name, "13b" in name, "mistral" in name)
        assert (model.pad, model.system_prompt) == ("1_5" in name, "none" if "mistral" in name else "vicuna_v1")
        ids.add(model.path)
    assert len(ids) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_1_5_7b", "llava_next_mistral_7b"])
def test_the_shape_check_at_small_width(name):
    """What docs/backbones.md has users run at full size."""
    from blink_exp.scale_model import shape_check

    config = published.published_config(name, **published.SMALL[name])
    lines = list(shape_check.check(shape_check.random_backbone(name, config, "cpu")))
    whole, count = ((1176, 64), 345 - 2) if "next" in name else ((576, 64), 115)
    assert f"of {whole}" in lines[1]
    assert lines[-1].startswith(f"prompt with Blink: {whole[0]} visual tokens + 576 expanded")
    assert count <= int(lines[1].split("(")[1].split(",")[0]) <= count + 2 + 24  # with LLaVA-NeXT's 24 newlines
