"""The model that ships: what its card claims, on a part of the held-out data, and Blink's laws on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.models import model_inputs

from blink_exp.backbone.load import load
from blink_exp.backbone.shipped import SHIPPED
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.decoder.attach import attach
from blink_exp.decoder.visual_states import image_states
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods.blink import BlinkPolicy, blink, layer_range
from blink_exp.methods.none import none
from blink_exp.scale_model import build_models, card, packing, train_llava
from blink_exp.scale_model.expansion import ExpandedForward
from blink_exp.scale_model.recipe import pixels
from blink_exp.scenes import questions
from blink_exp.scenes.scenes import random_scene
from blink_exp.tokensr import checkpoint


def test_it_has_llava_s_depth_and_fits_its_budget(scale):
    config = scale.model.config
    assert config.vision_config.num_hidden_layers == 24
    assert config.text_config.num_hidden_layers == 32
    assert scale.grid == (12, 12)
    sizes = {p: p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()}
    assert sum(sizes.values()) <= 24_000_000
    others = ("next", "reader", "no_look_loss")
    assert sum(size for path, size in sizes.items() if not any(name in str(path) for name in others)) <= 12_000_000


def test_all_that_ships_is_float16():
    """A rebuild that leaves TokenSR's modules as train.py writes them would not fit."""
    for path in SHIPPED.rglob("*.safetensors"):
        assert {weight.dtype for weight in load_file(path).values()} == {torch.float16}, path


def test_the_reader_s_first_layers_are_those_of_the_model_that_knows_all_scales(scale):
    """So what its tokens hold is what theirs do; the layers that read them, and the module that ships for it, are its own."""
    reader = load("scale_reader")
    assert reader.depth == 8 and reader.name == "scale-llava-1.5-reader" and reader.width == scale.width
    for i in range(8):
        same = torch.equal(reader.llm.layers[i].self_attn.q_proj.weight, scale.llm.layers[4 * i].self_attn.q_proj.weight)
        assert same == (i < 3)
    assert torch.equal(reader.model.model.multi_modal_projector.linear_2.weight, scale.model.model.multi_modal_projector.linear_2.weight)
    assert checkpoint.load(reader.tokensr, 3, reader.identity, reader.width)
    recorded = checkpoint.metadata(reader.tokensr, 3).training
    assert recorded["loss"]["weights"]["answer"] == 1 and recorded["begun_with"]["loss"]["weights"]["mse"] == 1


def test_the_variant_without_the_look_loss_has_the_same_eyes_and_an_llm_of_its_own(scale):
    other = load("scale_no_look_loss")
    assert other.name == "scale-llava-1.5-no-look-loss" and other.depth == scale.depth == 32
    for name, weight in scale.model.model.vision_tower.state_dict().items():
        assert torch.equal(other.model.model.vision_tower.state_dict()[name], weight), name
    assert not torch.equal(other.llm.layers[12].self_attn.q_proj.weight, scale.llm.layers[12].self_attn.q_proj.weight)
    for layer in range(12, 19):
        assert checkpoint.load(other.tokensr, layer, other.identity, other.width)


@pytest.fixture(scope="module", params=["scale", "scale_no_look_loss"])
def bars(request):
    """Each of the two that the bars of the card are for."""
    return load(request.param)


@pytest.mark.slow
def test_easyvqa_on_every_tenth_image(bars):
    records, skipped = evaluate(bars, none(), EasyVQA(), batch_size=64, limit=240)
    assert not skipped
    assert sum(r["correct"] for r in records) / len(records) >= 0.97  # the bar is 95 on all, the card says 99.7


@pytest.mark.slow
def test_two_by_two_scenes_and_the_blank_image(bars):
    accuracy = train_llava.held_out(bars.model, bars.processor.tokenizer, 2, scenes=64)
    blank = train_llava.held_out(bars.model, bars.processor.tokenizer, 2, scenes=64, blank=True)
    assert accuracy["all"] >= 0.82  # the bar is 85 on 128 scenes; 640 questions have an error of 1.4
    assert min(accuracy[k] for k in ("color", "shape", "color_at", "conjunction", "existence")) >= 0.9  # what it can do, it does well
    assert blank["all"] <= 0.55


def test_packed_questions_are_each_what_a_single_prompt_is(scale):
    """The training's packing against the shipped processor and stock forward: same tokens, same positions, same logits."""
    rng = np.random.default_rng(0)
    scene = random_scene(rng, "test", 2)
    asked = questions.draw(rng, scene, questions.KINDS, 5)
    tokenizer = scale.processor.tokenizer
    packed = packing.pack(tokenizer, [[(q.text, q.answer) for q in asked]], rng, 0)
    views = pixels(scene.canvas, build_models.IMAGE_SIZE)[None, None]
    with torch.no_grad():
        logits = scale.model.lm_head(packing.hidden_of(scale.model, tokenizer, packing.view_features(scale.model, views), packed)[0])[0]
        for j, question in enumerate(asked):
            first = int(((packed.owner[0] == j) & (packed.labels[0] >= 0)).nonzero()[0])
            single = scale.model(**model_inputs(scale, [scene.canvas], [question.text])).logits[0, -1]
            assert (single - logits[first]).abs().max() < 1e-3


@pytest.mark.parametrize("close_up", [False, True])
def test_an_expanded_segment_in_training_is_the_one_of_inference(scale, close_up):
    """Packed questions behind a segment against the decoder: the same region, tokens and positions give the same logits. A close-up is what
    TokenSR's training takes as its teacher."""
    layer = 12
    rng = np.random.default_rng(0)
    scene = random_scene(rng, "test", 3)
    asked = questions.draw(rng, scene, questions.KINDS, 4)
    tokenizer = scale.processor.tokenizer
    packed = packing.pack(tokenizer, [[(q.text, q.answer) for q in asked]], rng, 0)
    views = [pixels(image, build_models.IMAGE_SIZE) for image in (scene.canvas, train_llava.quadrant(scene, 2))]
    visual = packing.view_features(scale.model, torch.stack(views)[None])
    with torch.no_grad():
        run = ExpandedForward(scale.model, tokenizer, visual[0], layer)
        if close_up:
            teacher = image_states(scale, views[1][None], [layer])[layer]
            assert (run.close_up(visual[1]) - teacher).abs().max() < 1e-4
            return
        for j, question in enumerate(asked):
            with attach(scale.model, blink(BlinkPolicy((layer,), 0.0, 0.0))) as attached:
                single = scale.model(**model_inputs(scale, [scene.canvas], [question.text])).logits[0, -1]
            (record,) = attached.records
            segment = run.interpolated(torch.tensor([record.decision.region]))
            hidden, (*looks,) = run.hidden(packed, segment, packed.last)
            first = int(((packed.owner[0] == j) & (packed.labels[0] >= 0)).nonzero()[0])
            assert (single - scale.model.lm_head(hidden)[0, first]).abs().max() < 1e-3
            plain = packing.hidden_of(scale.model, tokenizer, visual[:1], packed, packed.last)
            for here, there in zip(looks, plain[1], strict=True):  # layers 3 and 4 come before the segment
                assert (here - there).abs().max() < 1e-5
            assert (plain[0] - hidden).abs().max() > 1e-2


@pytest.mark.slow
def test_the_most_salient_patch_is_often_the_right_one(bars):
    profile = card.saliency_profile(bars, limit=120)
    taught = bars.name == "scale-llava-1.5"
    assert max(profile["hit"]) >= (0.85 if taught else 0.65)  # the card says 96 and 72.5 % on all; the bar is 70 %
    assert all(0.25 <= rho <= 1 for rho in profile["rho"])


@pytest.mark.slow
def test_a_batch_of_16_equals_16_single_runs_and_the_cache_changes_nothing(scale):
    method = blink(
        BlinkPolicy(layer_range(12, 18), 0.45, 0.4),
        torch.nn.ModuleDict({str(layer): checkpoint.load(scale.tokensr, layer, scale.identity, scale.width) for layer in range(12, 19)}),
    )
    together, _ = evaluate(scale, method, MosaicMME(), batch_size=16, limit=16)
    alone, _ = evaluate(scale, method, MosaicMME(), batch_size=1, limit=16)
    assert together == alone
    samples = MosaicMME().samples()[:4]
    batch = model_inputs(scale, [s.image() for s in samples], [s.question for s in samples])
    with attach(scale.model, method), torch.no_grad():
        sequences = [scale.model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*sequences)


def test_answers_from_cached_features_are_those_of_the_processor_and_pixels(scale):
    samples = MosaicMME().samples()[:6]
    images = {s.image_id: s.image() for s in samples}
    once, again = scale.features(images), scale.features(images)
    assert all(once[k] is again[k] for k in images)
    features = [once[s.image_id] for s in samples]
    batch = model_inputs(scale, [s.image() for s in samples], [s.question for s in samples])
    tokens = scale.model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    wanted = [t.strip() for t in scale.processor.batch_decode(tokens, skip_special_tokens=True)]
    assert scale.generate(features, [s.question for s in samples], 4) == wanted


@pytest.mark.slow
def test_thresholds_never_met_change_no_prediction(scale):
    never = blink(BlinkPolicy(layer_range(12, 18), 1.0, 0.0))
    a, _ = evaluate(scale, never, MosaicMME(), batch_size=16, limit=64)
    b, _ = evaluate(scale, none(), MosaicMME(), batch_size=16, limit=64)
    assert [r["prediction"] for r in a] == [r["prediction"] for r in b]
    batch = model_inputs(scale, [s.image() for s in MosaicMME().samples()[:8]], [s.question for s in MosaicMME().samples()[:8]])
    with torch.no_grad():
        stock = scale.model(**batch).logits[:, -1]
        with attach(scale.model, never):
            assert (scale.model(**batch).logits[:, -1] - stock).abs().max() < 1e-4


def test_shipped_modules_beat_interpolation_at_every_layer():
    """By what their training wrote down, on 256 held-out pairs."""
    for layer in range(11, 21):
        metadata = json.loads((SHIPPED / "tokensr" / f"layer_{layer}.json").read_text(encoding="utf-8"))
        assert metadata["training"]["held_out"]["gain"] > 0.05, layer


def test_deepening_changes_no_output():
    tokenizer = build_models.build_tokenizer(["what color is the circle? red"] * 3, vocab_size=300)
    small = build_models.build_llava(tokenizer, layers=2).eval()
    deep = build_models.deepen(small, 3).eval()
    assert len(deep.model.language_model.layers) == 6
    ids = torch.tensor([[5, 9, 77, 20]])
    with torch.no_grad():
        assert torch.equal(small(input_ids=ids).logits, deep(input_ids=ids).logits)


@pytest.mark.slow
def test_clip_shares_its_tower_with_llava_and_knows_single_images(scale):
    from blink_exp.backbone.clip_text import load_clip
    from blink_exp.scale_model.train_clip import zero_shot

    clip = load_clip()
    ours, theirs = clip.vision_model.state_dict(), scale.model.model.vision_tower.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    accuracy = zero_shot(clip, scale.processor.tokenizer, build_models.IMAGE_SIZE, limit=128)
    assert accuracy["shape"] > 0.9
    assert accuracy["color"] > 0.9


@pytest.mark.parametrize("text", ["what color is the circle?", "Völlig unbekannt: 42 ∑"])
def test_the_tokenizer_reads_anything_and_gives_it_back(scale, text):
    tokenizer = scale.processor.tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
