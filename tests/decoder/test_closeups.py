"""Close-ups: expanded tokens from the image's own pixels, the same alone, in batches, shared and under generate()."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.shared_execution import LAYERS, taken, together
from support.viewing import config

from blink_exp.backbone.canvas import ImageRegions, region_box
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.core.sequence import Drop, Expand
from blink_exp.decoder import segments
from blink_exp.decoder.attach import attach
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.decoder.closeups import Wanted, closeup_states
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import answers
from blink_exp.evaluation.cost import measure_cost
from blink_exp.integrations import requests
from blink_exp.methods.blink import BlinkPolicy, configure
from blink_exp.methods.hero import Hero
from blink_exp.settings.compose import composed
from blink_exp.viewer.run import view

POLICIES = {
    "eager": {"tau_expand": 0.3, "tau_drop": 0.4},
    "append": {"on_reexpand": "append", "tau_expand": 0.4},
    "inherit": {"inherit_positions": True, "tau_expand": 0.4},
    "cycle": {"resolution": "cycle"},
    "3 x 3": {"p": 3, "tau_expand": 0.3, "tau_drop": 0.2},
}


def closeup(**words) -> Method:
    return Method(BlinkPolicy(layers=LAYERS, **words), closeup=True, name="blink_closeup")


@pytest.fixture
def tower(scale):
    """Numbers of views of the tower's passes."""
    passes: list[int] = []
    hook = scale.model.model.vision_tower.register_forward_hook(lambda module, args, out: passes.append(len(out.last_hidden_state)))
    scale.forget()
    yield passes
    hook.remove()
    scale.forget()


def alone(backbone, method, samples, benchmark):
    """(answer, decisions) of each sample, through generate()."""
    with attach(backbone.model, method) as attached:
        if attached is not None:
            attached.samples = [s.id for s in samples]
        images = {s.image_id: s.image() for s in samples}
        prompts = [(s.image_id, benchmark.prompt(s)) for s in samples]
        texts, _ = answers(backbone, method, attached, images, prompts, benchmark.max_new_tokens)
        records = attached.records if attached is not None else []
    return [(text, taken([r for r in records if r.row == b])) for b, text in enumerate(texts)]


@torch.no_grad()
@pytest.mark.parametrize(("p", "region"), [(2, 3), (3, 1), (4, 10)])
def test_the_states_are_those_that_the_stock_model_gives_the_region_as_an_image(scale, p, region):
    """Against Hugging Face's own forward on the region, cut by hand, at two layers, asked for in either order."""
    image = MosaicMME().samples()[0].image()
    side = image.width
    crop = image.crop((region % p * side // p, region // p * side // p, (region % p + 1) * side // p, (region // p + 1) * side // p))
    batch = scale.processor(images=crop, text=scale.prompt("what shape is it?"), return_tensors="pt")
    hidden = scale.model(**batch, output_hidden_states=True).hidden_states
    visual = batch["input_ids"][0] == scale.model.config.image_token_id
    wanted = [Wanted(ImageRegions(scale, "image", image), p, region)]
    for layers in ((12, 16), (16, 3)):  # behind what is stored, and before it
        scale.forget()
        for layer in layers:
            states = closeup_states(wanted, layer, layers)["image", p, region]
            assert (states - hidden[layer][0, visual]).abs().max() < 1e-4


@torch.no_grad()
def test_a_layer_that_was_not_announced_is_run_again_without_the_tower(scale, tower):
    wanted = [Wanted(ImageRegions(scale, "image", MosaicMME().samples()[0].image()), 2, 0)]
    right = closeup_states(wanted, 12, (12,))["image", 2, 0].clone()
    scale.closeups.clear()
    closeup_states(wanted, 16, (16,))
    assert (closeup_states(wanted, 12, (16,))["image", 2, 0] - right).abs().max() < 1e-5
    assert tower == [1, 1]  # once each time


@pytest.mark.slow
def test_points_together_answer_as_alone_and_encode_a_region_once(scale, tower):
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:3]
    methods = {"none": Method(), **{name: closeup(**words) for name, words in POLICIES.items()}}
    shared = together(scale, list(methods.values()), samples, benchmark, batch_size=2)
    looked = {
        (samples[n].image_id, methods[name].policy.p, step[3].region)
        for (n, p), (_, steps) in shared.items()
        for name in [list(methods)[p]]
        for step in steps
        if isinstance(step[3], Expand)
    }
    images = len({s.image_id for s in samples})
    assert sum(tower) == images + len(looked) and set(scale.closeups) == looked
    kinds = {type(step[3]) for _, steps in shared.values() for step in steps}
    assert {Expand, Drop} <= kinds
    for p, method in enumerate(methods.values()):
        scale.forget()
        assert alone(scale, method, samples, benchmark) == [shared[n, p] for n in range(len(samples))]
        assert alone(scale, method, samples[:1], benchmark) == [shared[0, p]]


def test_a_tight_cache_changes_no_answer(scale, tower, monkeypatch):
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:4]
    method = closeup(tau_expand=0.3)
    wanted = together(scale, [method], samples, benchmark)
    encoded = sum(tower)
    scale.forget()
    monkeypatch.setattr(type(scale), "tower_bytes", 1)
    assert together(scale, [method], samples, benchmark) == wanted
    assert not scale.closeups and sum(tower) > 2 * encoded  # nothing was kept, so it is made again at every layer


def test_where_no_decision_asks_nothing_is_encoded(scale, tower):
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:2]
    never = closeup(tau_expand=1.0, tau_drop=0.0)
    shared = together(scale, [never, Method()], samples, benchmark)
    assert sum(tower) == len({s.image_id for s in samples}) and not scale.closeups
    assert [shared[n, 0][0] for n in range(2)] == [shared[n, 1][0] for n in range(2)]


@torch.no_grad()
def test_expand_then_drop_restores_the_sequence_exactly(scale, monkeypatch):
    """Behind a drop the text stands behind the same keys and values as it would without; only its own states remember."""
    sample = MosaicMME().samples()[0]
    fronts = {}
    real = BranchDecoder.decide

    def decide(self, i, branches, text, deciding):
        out = real(self, i, branches, text, deciding)
        fronts[i] = [[s for s in b.front] for b in out[0]]
        return out

    monkeypatch.setattr(BranchDecoder, "decide", decide)
    alone(scale, closeup(resolution="cycle"), [sample], MosaicMME())
    lengths = [segments.length(front) for layer in LAYERS for front in fronts[layer]]
    assert lengths[0] == lengths[2] == lengths[1] + 144 and lengths[1] == lengths[3]
    assert fronts[LAYERS[1]][0][0] is fronts[LAYERS[3]][0][0] is fronts[LAYERS[0]][0][0]  # the prefix was never copied


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"do_sample": True, "temperature": 1.5}])
def test_several_images_beams_sampling_and_padding(scale, settings):
    """Cached generation equals recomputation, and each image's close-ups are its own."""
    first, second = (s.image() for s in MosaicMME().samples()[:9:8])
    texts = ["USER: <image>\nwhat shape is it? ASSISTANT:", "USER: <image>\n<image>\nis there a red circle in the image? ASSISTANT:"]
    batch = scale.processor(images=[first, second, first], text=texts, padding=True, return_tensors="pt")
    regions = scale.regions({"a": first, "b": second})
    sequences, logits = [], []
    for rows in ([["a"], ["b", "a"]], [["b"], ["a", "b"]]):
        with attach(scale.model, closeup(tau_expand=0.0)) as run:
            run.regions = [[regions[key] for key in row] for row in rows]
            for use_cache in (True, False) if not sequences else ():
                torch.manual_seed(3)
                sequences.append(scale.model.generate(**batch, max_new_tokens=3, use_cache=use_cache, **settings))
            logits.append(scale.model(**batch).logits[:, -1])
            assert {r.scan.image for r in run.records} == {0, 1}
    assert torch.equal(*sequences)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # wrong pixels would show


def test_without_pixels_one_line_says_what_to_set(scale):
    batch = scale.batch([torch.zeros(144, scale.width)], ["what shape is it?"])
    with attach(scale.model, closeup()), pytest.raises(UserError, match=r"set \.regions \(Backbone\.regions\)"):
        scale.model(**batch, pixel_values=torch.zeros(1, 3, *[scale.model.config.vision_config.image_size] * 2))


@pytest.mark.slow
@pytest.mark.parametrize("words", [{"tau_expand": 0.0}, {"p": 3, "tau_expand": 0.0, "on_reexpand": "append"}])
def test_the_cost_meter_counts_tower_and_layers_of_each_close_up(scale, words):
    sample = MosaicMME().samples()[0]
    prompt = [(sample.image(), sample.question)]
    with_closeups = measure_cost(scale, closeup(**words), prompt)
    tokens_only = measure_cost(scale, Method(BlinkPolicy(layers=LAYERS, **words)), prompt)
    assert with_closeups["prefill_flops_counted"] == pytest.approx(with_closeups["prefill_flops_formula"], rel=0.02)
    assert with_closeups["prefill_flops_counted"] > 1.2 * tokens_only["prefill_flops_counted"]


@pytest.mark.slow
def test_llava_next_looks_at_the_stretched_image_and_hero_in_front_changes_nothing_of_it(scale_next):
    benchmark = MosaicHR()
    samples = benchmark.samples()[:3]
    method = closeup(tau_expand=0.3)
    pruned = replace(method, pruner=Hero(0.25, frozenset({6}), frozenset({22}), alpha=1.0))
    for one in (method, pruned):
        scale_next.forget()
        shared = together(scale_next, [one], samples, benchmark)
        assert any(isinstance(step[3], Expand) for _, steps in shared.values() for step in steps)
        for key, seen in scale_next.closeups.items():
            image = next(s.image() for s in samples if s.image_id == key[0])
            pixels = scale_next.transform(image.crop(region_box(key[2], key[1], *image.size)))
            fresh = closeup_states([Wanted(ImageRegions(scale_next, "fresh", image), key[1], key[2])], LAYERS[0], LAYERS)
            assert pixels.shape[0] == 3 and (fresh["fresh", key[1], key[2]] - seen.visual_at(LAYERS[0])).abs().max() < 1e-4
            break
        scale_next.forget()
        assert alone(scale_next, one, samples, benchmark) == [shared[n, 0] for n in range(3)]
    scale_next.forget()


def test_through_lmms_eval_s_door(scale):
    backbone, method = requests.build(requests.configure({"tokensr": "closeup", "thresholds": "always_expand", "model.dtype": "float32"}))
    assert method.closeup and method.name == "blink_closeup"
    benchmark = MosaicMME()
    samples = benchmark.samples()[:2]
    questions = [requests.Request(s.id, benchmark.prompt(s), lambda s=s: [s.image()], benchmark.max_new_tokens) for s in samples]
    texts = [response.text for response in requests.answer(backbone, method, questions, 2)]
    assert texts == [text for text, _ in alone(backbone, method, samples, benchmark)]


@pytest.mark.slow
def test_the_viewer_shows_the_close_up_and_reads_the_attention_of_the_text(tmp_path):
    sample = MosaicMME().samples()[0]
    pages = {}
    for tokensr in ("closeup", "conv"):
        folder = tmp_path / tokensr
        folder.mkdir()
        path = view(config(f"tokensr={tokensr}", "thresholds=always_expand", sample=sample.id), folder)
        pages[tokensr] = path.read_text(encoding="utf-8"), json.loads((folder / "view.json").read_text(encoding="utf-8"))
    layers = {name: page["layers"] for name, (_, page) in pages.items()}
    assert layers["closeup"][:12] == layers["conv"][:12]  # close-ups run through these layers as well, and leave no trace
    assert layers["closeup"][12]["shares"] != layers["conv"][12]["shares"]
    assert "closeup0" in (html := pages["closeup"][0]) or any(f"closeup{r}" in html for r in range(4))
    assert "under base closeup" not in pages["conv"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokensr.path=/tmp"], "tokensr=closeup has no modules to load"),
        (["resolution.interpolate=false"], "resolution.interpolate=false"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(scale, words, message):
    method = composed("evaluate", ["method=blink", "tokensr=closeup", *words]).method
    with pytest.raises(UserError, match=message):
        configure(scale, **{k: v for k, v in method.items() if k != "_target_"})
