"""The text tower beside the backbone: whether it belongs to it, what it does with long text, and encoders that HERO cannot read."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from blink_exp.backbone.clip_text import load_clip, load_clip_text
from blink_exp.backbone.model import Backbone
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.errors import UserError


def saved(clip, tokenizer, folder):
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_clip_that_the_tower_was_made_from_is_taken_and_another_refused(scale, tmp_path):
    tokenizer = scale.processor.tokenizer
    own = load_clip_text(saved(load_clip(), tokenizer, tmp_path / "own"), scale)
    shipped = load_clip_text("scale", scale)
    pooled = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(own.project(pooled), shipped.project(pooled), atol=1e-6)
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
    found = text.embed_text(words)
    assert found.isfinite().all()
    assert torch.equal(found, load_clip_text("scale", scale).embed_text(words + "what is the blue shape?"))  # what is cut is not read
    assert not torch.allclose(found, text.embed_text("what is the blue shape? " * 30))


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
