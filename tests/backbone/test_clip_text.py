"""The text tower beside the backbone: whether it belongs to it, what it does with long text, and encoders that HERO cannot read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from blink_exp.backbone.clip_text import ClipText, load_clip, load_clip_text
from blink_exp.backbone.model import Backbone
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.errors import UserError


def saved(clip, tokenizer, folder):
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_the_clip_that_the_tower_was_made_from_is_taken_and_another_refused(scale, tmp_path):
    tokenizer = scale.processor.tokenizer
    encoder = load_clip_text(saved(load_clip(), tokenizer, tmp_path / "own"), scale)
    shipped = load_clip_text("scale", scale)
    pooled = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(encoder.project(pooled), shipped.project(pooled), atol=1e-6)
    torch.manual_seed(0)
    other = saved(CLIPModel(load_clip().config), tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="has another vision tower than scale-llava-1.5; give the CLIP that it was made from"):
        load_clip_text(other, scale)


@pytest.mark.parametrize(
    ("path", "message"),
    [(None, "give its folder or hub id, or set hero_alpha=no_text"), ("/nowhere/clip", "is neither a folder nor a hub id")],
)
def test_no_text_tower(path, message, scale):
    with pytest.raises(UserError, match=message):
        load_clip_text(path, scale)


def test_text_beyond_77_tokens_is_cut_and_still_pooled_at_its_end(scale):
    text = load_clip_text("scale", scale)
    words = "is there a red circle? " * 30
    assert len(scale.processor.tokenizer(words).input_ids) > 77
    embedding = text.embed_text(words)
    assert embedding.isfinite().all()
    assert torch.equal(embedding, load_clip_text("scale", scale).embed_text(words + "what is the blue shape?"))  # what is cut is not read
    assert not torch.allclose(embedding, text.embed_text("what is the blue shape? " * 30))


BEGIN, END, LENGTH = 48, 49, 7  # the two highest ids, as of CLIP


def tower_of_seven_positions(eos_token_id: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    config = CLIPTextConfig(vocab_size=50, max_position_embeddings=LENGTH, bos_token_id=BEGIN, eos_token_id=eos_token_id, **sizes)
    return CLIPTextModelWithProjection(config).eval()


def text_of_ids(tower: CLIPTextModelWithProjection) -> ClipText:
    """Its texts are numbers, which are their own ids."""
    clip = SimpleNamespace(
        config=SimpleNamespace(text_config=tower.config),
        device=tower.device,
        text_model=tower.text_model,
        text_projection=tower.text_projection,
        get_text_features=lambda input_ids: SimpleNamespace(pooler_output=tower(input_ids=input_ids).text_embeds),
    )
    return ClipText(clip, lambda text: SimpleNamespace(input_ids=[BEGIN, *map(int, text.split()), END]))


@pytest.mark.parametrize("words", [3, 5, 6, 12, 15, 19])
def test_a_long_text_in_pieces(words):
    """``cut`` against the published way: the sequence padded with id 0 and mask 0 to whole pieces, pooled at the highest id."""
    ids = [(5 * k) % 40 + 3 for k in range(words)]
    whole = [BEGIN, *ids, END]
    text = text_of_ids(tower_of_seven_positions(eos_token_id=END))
    legacy = tower_of_seven_positions(eos_token_id=2)
    pieces = -(-len(whole) // LENGTH)
    missing = pieces * LENGTH - len(whole)
    inputs = torch.tensor(whole + [0] * missing).view(-1, LENGTH)
    mask = torch.tensor([1] * len(whole) + [0] * missing).view(-1, LENGTH)
    with torch.no_grad():
        published = legacy(input_ids=inputs, attention_mask=mask).text_embeds
    spoken = " ".join(map(str, ids))
    assert torch.allclose(text.embed_pieces(spoken, "cut"), published, atol=1e-5)
    ends = text.embed_pieces(spoken, "ends")
    by_hand = [text.embed_text(" ".join(map(str, ids[i : i + LENGTH - 2]))) for i in range(0, words, LENGTH - 2)]
    assert torch.allclose(ends, torch.stack(by_hand), atol=1e-5)
    if pieces == 1:
        assert torch.equal(ends, text.embed_pieces(spoken, "cut"))
    else:
        other = text.embed_pieces(" ".join(["7"] * words), "cut")
        assert torch.allclose(other[0], text.embed_pieces(spoken, "cut")[0], atol=1e-5)  # the begin token says nothing of the text
        assert not torch.allclose(other[-1], text.embed_pieces(spoken, "cut")[-1], atol=1e-3) or words % LENGTH == LENGTH - 1
        assert not torch.allclose(text.embed_pieces(" ".join(["7"] * words), "ends")[0], ends[0], atol=1e-3)


def test_patches_in_the_joint_space_are_those_of_clip_s_own_pass(scale):
    """The visual projection of the last norm of the last but one layer's patches, of which CLIP itself projects CLS of the last."""
    image = Image.effect_noise((96, 96), 80).convert("RGB")
    encoding = scale.encodings({"noise": image}, EncoderRequirements(joint_patches=True, llm_features=True))["noise"]
    clip = load_clip()
    with torch.no_grad():
        states = clip.vision_model(scale.transform(image)[None], output_hidden_states=True).hidden_states[-2][:, 1:]
        wanted = clip.visual_projection(clip.vision_model.post_layernorm(states))
    assert torch.allclose(encoding.joint_patches, wanted, atol=1e-4)
    assert torch.allclose(encoding.llm_features[0], scale.features({"noise": image})["noise"], atol=1e-5)
    assert encoding.nbytes == sum(t.nbytes for t in (encoding.hidden, encoding.joint_patches, encoding.llm_features))


def test_a_siglip_encoder_has_no_cls_token_to_score_by(scale):
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=scale.model.config.text_config, vision_feature_select_strategy="full")
    config.text_config.num_hidden_layers, depth = 1, config.text_config.num_hidden_layers
    try:
        backbone = Backbone("siglip", LlavaForConditionalGeneration(config), None)
    finally:
        config.text_config.num_hidden_layers = depth
    with pytest.raises(UserError, match="SiglipVisionModel has no CLS token, which this method scores tokens by; use a CLIP encoder"):
        backbone.check(EncoderRequirements(attention=frozenset({1})))
    backbone.check(EncoderRequirements())  # controls look at nothing
