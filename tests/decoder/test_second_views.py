"""A second view in front of the text: the same as two images of the stock model, alone, in batches and shared."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from support.methods import method_of
from support.refusals import refusal

from blink_exp.backbone.canvas import region_box
from blink_exp.backbone.pictures import prepare_image
from blink_exp.benchmarks.base import spread
from blink_exp.benchmarks.easyvqa import EasyVQA
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.core.method import Method
from blink_exp.decoder.answers import PointQuestion, answer, visual_tokens
from blink_exp.decoder.second_views import Asking, attended
from blink_exp.evaluation.answering import answers
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods import two_views, vicrop
from blink_exp.methods.blink import BlinkPolicy, blink


def configured(backbone, region="most_salient", alone=False, **words) -> Method:
    return two_views.configure(backbone, **({"region": region, "p": 2, "layer": 12, "relative": True, "seed": 0, "alone": alone} | words))


def every(backbone) -> dict[str, Method]:
    chosen = {f"{region}, alone" if alone else region: (region, alone) for region in two_views.REGIONS for alone in (False, True)}
    return {name: configured(backbone, *words) for name, words in chosen.items()} | {
        "3 x 3": configured(backbone, "annotated", p=3),
        "vicrop": vicrop.configure(backbone, layer=14, relative=True),
        "none": Method(),
    }


@pytest.fixture(scope="module")
def samples():
    return spread(MosaicOpen(images=40).samples(), 12)


def asked(samples) -> tuple[dict, list[Asking]]:
    return {s.image_id: s.image() for s in samples}, [Asking(s.image_id, s.question, s.id, s.regions) for s in samples]


def test_two_views_are_two_images_of_the_stock_model(scale, samples):
    images, askings = asked(samples[:1])
    image, question = images[askings[0].image], askings[0].question
    (visual,) = visual_tokens(scale, configured(scale, "annotated"), images, askings)
    quadrant = image.crop(region_box(visual.second.region, 2, *image.size))
    token = scale.processor.image_token
    text = scale.prompt(question).replace(token, f"{token}\n{token}")
    batch = scale.processor(images=[image, quadrant], text=[text], return_tensors="pt")
    with torch.no_grad():
        wanted = scale.model(**batch).logits[0, -1]
        ahead, behind = scale.around([question])[0]
        embed = scale.model.get_input_embeddings()
        embeds = torch.cat([embed(ahead), visual.features, embed(behind)])[None]
        torch.testing.assert_close(scale.model(inputs_embeds=embeds).logits[0, -1], wanted, rtol=1e-4, atol=1e-4)
        (alone,) = visual_tokens(scale, configured(scale, "annotated", alone=True), images, askings)
        torch.testing.assert_close(alone.features, scale.features({"q": quadrant})["q"], rtol=1e-4, atol=1e-4)


def test_the_annotated_region_is_where_the_object_is_and_the_wrong_one_is_not(scale, samples):
    images, askings = asked(samples)
    for region, shows in (("annotated", True), ("wrong", False)):
        for asking, visual in zip(askings, visual_tokens(scale, configured(scale, region), images, askings), strict=True):
            left, top, right, bottom = visual.second.box
            x, y = (asking.regions[0][0] + asking.regions[0][2]) / 2, (asking.regions[0][1] + asking.regions[0][3]) / 2
            assert (left <= x <= right and top <= y <= bottom) == shows


@pytest.mark.slow
def test_alone_in_batches_and_shared_the_answers_are_the_same(scale, samples):
    methods = every(scale)
    images, askings = asked(samples)
    scale.forget()
    requests = [PointQuestion(a.image, a.question, a.sample, tuple(range(len(methods))), a.regions) for a in askings]
    together = answer(scale, list(methods.values()), images, requests, 4, 5)
    answered = {}
    for p, (name, method) in enumerate(methods.items()):
        scale.forget()
        texts, visual = answers(scale, method, None, images, askings, 4)  # Hugging Face's generate(), one padded batch
        scale.forget()
        single = [answers(scale, method, None, {a.image: images[a.image]}, [a], 4)[0][0] for a in askings[::3]]
        shared = [together[n, p] for n in range(len(askings))]
        assert [one.text for one in shared] == texts and texts[::3] == single, name
        assert [one.visual.second for one in shared] == [v.second for v in visual], name
        answered[name] = texts
    assert len({tuple(texts) for texts in answered.values()}) > 4  # so the test above tests something
    right = {name: sum(text == s.answer for text, s in zip(texts, samples, strict=True)) for name, texts in answered.items()}
    assert right["annotated, alone"] > right["wrong, alone"]


def test_a_part_is_encoded_once_for_all_questions_and_methods_and_the_cache_is_bounded(scale, samples, monkeypatch):
    images, askings = asked(samples)
    views = []
    hook = scale.model.model.vision_tower.register_forward_hook(lambda module, args, out: views.append(len(out.last_hidden_state)))
    try:
        scale.forget()
        everybody = [configured(scale, "annotated"), configured(scale, "annotated", alone=True)]
        for method in everybody * 2:
            shown = {(a.image, v.second.box) for a, v in zip(askings, visual_tokens(scale, method, images, askings), strict=True)}
        assert sum(views) == len(images) + len(shown)
    finally:
        hook.remove()
    one = 144 * scale.width * 4
    assert scale.images_bytes == one * sum(views)
    monkeypatch.setattr(scale, "cache_bytes", 2 * one)
    visual_tokens(scale, configured(scale, "random"), images, askings)
    assert len(scale.second_views) <= 2
    scale.forget()
    assert scale.images_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("p", [2, 12])
def test_the_scan_is_that_of_blink_and_holds_its_budget(scale, samples, p, monkeypatch):
    images, askings = asked(samples)
    watching = blink(BlinkPolicy((12,), tau_expand=1.0, tau_drop=0.0, p=p))
    wanted = answer(scale, [watching], images, [PointQuestion(a.image, a.question, a.sample, (0,)) for a in askings], 1, 32)
    wide = attended(scale, 12, p, images, askings)
    monkeypatch.setattr(scale, "shared_bytes", 1)
    scale.forget()
    narrow = attended(scale, 12, p, images, askings)
    for n, scores in enumerate(wide):
        assert len(scores) == p * p
        assert scores == pytest.approx(wanted[n, 0].decisions[0].scan.patch_scores, abs=1e-5)
        assert scores == pytest.approx(narrow[n], abs=1e-5)


@pytest.mark.slow
def test_records_say_what_was_shown_and_prepared_images_show_the_same(scale, samples):
    method = configured(scale, "random")
    records, skipped = evaluate(scale, method, MosaicOpen(images=40), 4, samples=samples[:6])
    assert not skipped
    for record in records:
        region = record["second_view"]["region"]
        row, column = divmod(region, 2)
        assert record["second_view"]["box"] == [column / 2, row / 2, column / 2 + 0.5, row / 2 + 0.5]
        assert (record["visual_tokens"], record["newline_tokens"]) == (288, 1)
    images, askings = asked(samples[:6])
    prepared = {key: prepare_image(image, scale.processor.image_processor, canvas=True) for key, image in images.items()}
    scale.forget()
    assert answers(scale, method, None, prepared, askings, 4)[0] == [record["prediction"] for record in records]


def test_of_llava_next_the_part_has_its_thumbnail_only(scale_next):
    image = Image.new("RGB", (200, 90))
    image.paste((255, 0, 0), (100, 45, 200, 90))
    asking = Asking("a", "what is red?", "s", ((0.6, 0.6, 0.9, 0.9),))
    (stock,) = visual_tokens(scale_next, Method(), {"a": image}, [asking])
    (both,) = visual_tokens(scale_next, configured(scale_next, "annotated"), {"a": image}, [asking])
    (alone,) = visual_tokens(scale_next, configured(scale_next, "annotated", alone=True), {"a": image}, [asking])
    assert both.second.region == 3 and both.second.box == (0.5, 0.5, 1.0, 1.0)
    assert len(both.features) == len(stock.features) + 1 + 144 and both.newlines == stock.newlines + 1
    assert torch.equal(both.features[: len(stock.features)], stock.features) and torch.equal(both.features[-144:], alone.features)
    assert torch.equal(both.base_map.cells[: len(stock.source)], stock.base_map.cells) and int((both.base_map.cells >= 0).sum()) == 144
    assert len(alone.features) == 144 and int((alone.base_map.cells >= 0).sum()) == 0


def test_an_image_that_is_no_square_is_cut_where_the_tower_sees_it(scale):
    """The tower sees the square in the middle: an object there lies in another quadrant of it than of the image."""
    image = Image.new("RGB", (192, 96), "white")
    image.paste((255, 0, 0), (104, 52, 140, 92))
    box = (104 / 192, 52 / 96, 140 / 192, 92 / 96)
    (visual,) = visual_tokens(scale, configured(scale, "annotated"), {"a": image}, [Asking("a", "?", "s", (box,))])
    assert visual.second.region == 3 and visual.second.box == (0.5, 0.5, 0.75, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annotated", "most_salient", "vicrop"])
def test_the_cost_meter_counts_the_scan_and_the_second_view(scale, samples, name):
    method = every(scale)[name]
    _, (asking,) = asked(samples[:1])
    cost, stock = (measure_cost(scale, m, [(samples[0].image(), asking)]) for m in (method, Method()))
    assert cost["prefill_flops_counted"] == pytest.approx(cost["prefill_flops_formula"], rel=0.02)
    assert cost["tokens_by_layer"] == [n + 145 for n in stock["tokens_by_layer"]]
    assert cost["visual_tokens"] == 288 and cost["visual_tokens_nominal"] == 144
    assert cost["encode_seconds"] > 0


@pytest.mark.slow
def test_a_scan_costs_more_than_none(scale, samples):
    _, (asking,) = asked(samples[:1])
    flops = [
        measure_cost(scale, m, [(samples[0].image(), asking)])["prefill_flops_formula"]
        for m in (Method(), configured(scale, "annotated"), configured(scale), every(scale)["vicrop"])
    ]
    assert flops == sorted(flops) and len({*flops}) == 4


def test_a_benchmark_without_regions_is_refused_where_they_are_needed(scale):
    message = "method=two_views shows a region by the annotation, and benchmark=easyvqa says nowhere where the answer is to be seen;"
    samples = spread(EasyVQA().samples(), 4)
    assert refusal(lambda: evaluate(scale, configured(scale, "wrong"), EasyVQA(), samples=samples)).startswith(message)
    records, _ = evaluate(scale, configured(scale), EasyVQA(), samples=samples)
    assert len(records) == len(samples) and all("second_view" in r for r in records)


def test_questions_about_what_is_not_there_draw_a_region(scale):
    samples = [s for s in MosaicMME().samples() if not s.regions][:2] + [s for s in MosaicMME().samples() if s.regions][:1]
    assert len(samples) == 3
    records, skipped = evaluate(scale, configured(scale, "annotated"), MosaicMME(), samples=samples)
    assert not skipped and all(r["second_view"]["region"] in range(4) for r in records)


def test_a_model_spread_over_devices_reads_no_attention_but_shows_drawn_regions(scale, samples, monkeypatch):
    images, askings = asked(samples[:2])
    monkeypatch.setattr(scale.model, "hf_device_map", {"a": 0, "b": 1}, raising=False)
    assert "model.device_map has put on 2 devices" in refusal(lambda: visual_tokens(scale, configured(scale), images, askings))
    assert len(visual_tokens(scale, configured(scale, "random"), images, askings)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"layer": 32}, "layer=32 is outside the backbone's 32 layers; use 0 to 31"),
        ({"p": 5}, "grid.p=5 does not divide the 12 x 12 visual tokens"),
        ({"region": "best"}, "method.region=best is not known"),
    ],
)
def test_bad_settings_are_one_line(scale, words, message):
    assert refusal(lambda: configured(scale, **words)).startswith(message)


def test_presets_make_these_methods(scale):
    assert method_of("two_views", scale) == configured(scale)
    assert method_of("crop", scale) == configured(scale, alone=True)
    assert method_of("vicrop", scale) == vicrop.configure(scale, layer=14, relative=True)
    assert method_of("vicrop", scale).second_view.side == 96 and method_of("vicrop", scale).second_view.p == 12
