"""Every method through evaluate's own path on the scale models: composed from its config, in batches as alone, the model left as it was."""

from __future__ import annotations

import functools

import pytest
import torch
from PIL import Image
from support.methods import METHODS, method_of
from support.models import model_inputs

from blink_exp.benchmarks.base import Sample, spread
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.decoder.attach import attach
from blink_exp.evaluation.evaluator import evaluate

# Visual tokens of 144 that enter the LLM at retention_ratio=0.25; None: as many as the image has outliers
BEFORE_LLM = (
    *("fastervlm", "globalcom2", "hero", "hired", "random", "uniform", "downsample"),
    *("visionzip", "divprune", "cdpruner", "vispruner"),
)
ENTER = dict.fromkeys(("blink_hero", "pair", *BEFORE_LLM), 36) | {
    "prumerge_plus": None,
    "two_views": 288,
    "vicrop": 288,
}


@functools.cache
def prompt(scale) -> dict[str, torch.Tensor]:
    sample = MosaicMME().samples()[0]
    return model_inputs(scale, [sample.image()], [sample.question])


@torch.no_grad()
def logits(scale) -> torch.Tensor:
    return scale.model(**prompt(scale)).logits


@pytest.fixture(scope="module")
def stock(scale) -> torch.Tensor:
    """What the model says before the first method is attached to it, and must say behind each."""
    return logits(scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_from_its_config(name, scale, stock):
    method = method_of(name, scale)
    assert method.name == {"pair": "hero+fastv"}.get(name, name)
    samples = chosen_mme()
    together, skipped = evaluate(scale, method, MosaicMME(), batch_size=8, samples=samples)
    quarter = slice(METHODS.index(name) % 4, None, 4)  # so that every question is asked alone by a quarter of the methods
    alone, _ = evaluate(scale, method, MosaicMME(), batch_size=1, samples=samples[quarter])
    assert not skipped
    rounded = [[{k: v for k, v in r.items() if k != "layers"} for r in rows] for rows in (together[quarter], alone)]
    assert rounded[0] == rounded[1]
    assert torch.equal(logits(scale), stock)
    entering = {r["visual_tokens"] for r in together}
    wanted = ENTER.get(name, 144)
    if wanted is not None:
        assert entering == {wanted}
    else:
        assert max(entering) < 144
    if name == "fastv":
        assert {step["visual_tokens"] for r in together for step in r["layers"]} == {36}
    if name == "dart":
        assert {step["visual_tokens"] for r in together for step in r["layers"]} == {4 + 8 * 4}
    if name == "pyramiddrop":
        counts = [[step["visual_tokens"] for step in r["layers"]] for r in together]
        assert {tuple(row) for row in counts} == {(39, 19, 9)}  # from layers 5, 9 and 14 on, 0.27, 0.14 and 0.07 of 144
    if name == "sparsevlm":
        counts = [[step["visual_tokens"] for step in r["layers"]] for r in together]
        assert all(144 > a > b > c > 0 for a, b, c in counts)


@functools.cache
def chosen_mme() -> list[Sample]:
    """Eight questions of as many lengths as a benchmark has; every other one is of another length too."""
    samples = spread(MosaicMME().samples(), 8)
    assert len({len(s.question.split()) for s in samples[::2]}) > 2  # so rows of a batch are padded
    return samples


@functools.cache
def chosen_hr() -> list[Sample]:
    """One question on an image of each of five sizes."""
    sizes = {sample.image().size: sample for sample in MosaicHR(images=20).samples()[::10]}
    return list(sizes.values())[:5]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_llava_next_in_a_batch_and_alone(name, scale_next):
    """Images of several aspect ratios in one batch, each with its own number of tiles."""
    method = method_of(name, scale_next)
    together, skipped = evaluate(scale_next, method, MosaicHR(), batch_size=5, samples=chosen_hr())
    third = slice(METHODS.index(name) % 3, None, 3)  # so that every size is asked alone by a third of the methods
    alone, _ = evaluate(scale_next, method, MosaicHR(), batch_size=1, samples=chosen_hr()[third])
    assert not skipped
    assert len(together) == 5
    assert len({r["newline_tokens"] for r in together}) > 1 or name in ("hired", "globalcom2", "prumerge_plus", "crop")
    rounded = [[{k: v for k, v in r.items() if k != "layers"} for r in rows] for rows in (together[third], alone)]
    assert rounded[0] == rounded[1]


@pytest.mark.parametrize("name", ["none", "hero", "blink_hero"])
def test_an_image_of_one_pixel_and_one_of_twenty_to_one(name, scale_next):
    method = method_of(name, scale_next)
    images = {"dot": Image.new("RGB", (1, 1), "red"), "strip": Image.new("RGB", (400, 20), "blue")}
    asked = [("dot", "what color is the circle?"), ("strip", "how many red circles are there?")]
    with attach(scale_next.model, method) as attached, torch.no_grad():
        visual = scale_next.visual(images, asked, method.pruner, method.restore_dropped)
        if attached is not None:
            attached.images = [[v.base_map] for v in visual]
        answers = scale_next.generate([v.features for v in visual], [question for _, question in asked], 4)
    assert len(answers) == 2
    assert all(len(v.features) > 0 for v in visual)
