"""A method that says which grid of tiles an image is made into: the views, and runs that share an image with methods that do not."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from PIL import Image
from support.composing import config
from support.models import random_next

from blink_exp.backbone import pictures
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.encoding import EncoderRequirements, unions
from blink_exp.core.method import Method
from blink_exp.core.views import ViewGeometry
from blink_exp.evaluation.answering import Point, ask
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.figures import hero_kept
from blink_exp.integrations import requests
from blink_exp.settings.build import build
from blink_exp.viewer import page
from blink_exp.viewer.trace import trace

SQUARE = (2, 2)


def sizes() -> dict[str, Image.Image]:
    """Images of which the backbone itself makes 1 x 3, 3 x 1 and 2 x 2 tiles."""
    return {f"{w}x{h}": Image.effect_noise((w, h), 90).convert("RGB") for w, h in ((300, 90), (90, 300), (200, 180))}


def method(backbone, name: str, *words: str) -> Method:
    return build(config("evaluate", f"method={name}", "retention_ratio=0.25", *words).method, backbone)


@pytest.fixture(scope="module")
def samples():
    """One question each on the widest and on the tallest image: of neither the backbone makes 2 x 2 tiles."""
    by_shape = {sample.image().width / sample.image().height: sample for sample in MosaicHR(images=20).samples()[::10]}
    return [by_shape[max(by_shape)], by_shape[min(by_shape)]]


@pytest.mark.parametrize("name", ["300x90", "90x300", "200x180"])
def test_views_are_those_of_a_checkpoint_with_that_grid_alone(scale_next, name):
    processor, image = scale_next.processor.image_processor, sizes()[name]
    both = pictures.prepare_image(image, processor, tile_grids=(None, SQUARE))
    wanted = processor(images=image, image_grid_pinpoints=[[192, 192]], return_tensors="pt").pixel_values[0]
    assert torch.equal(both.views_in(SQUARE), wanted) and len(wanted) == 5
    pixels = processor(images=image, return_tensors="pt").pixel_values[0]
    assert torch.equal(both.views, pixels)
    assert torch.equal(both.views[0], wanted[0])  # the thumbnail is the same
    views = ViewGeometry.of(scale_next.model.config, (image.height, image.width), SQUARE)
    assert (views.rows, views.columns, views.count) == (2, 2, 5)
    assert ViewGeometry.of(scale_next.model.config, (image.height, image.width)).count == len(pixels)


def test_the_part_of_a_forced_grid_that_shows_the_image():
    views = ViewGeometry.of(random_next().config, (100, 400), SQUARE)  # 12 x 12 patches, of which the backbone's rule leaves 4 rows
    assert views.unpadded.shape == (4, 12)
    assert int(views.valid[1:].sum()) == views.unpadded.numel() < 4 * views.tokens


def test_an_image_that_was_not_prepared_so_is_not_taken_for_another(scale_next):
    prepared = pictures.prepare_image(sizes()["300x90"], scale_next.processor.image_processor)
    scale_next.forget()
    with pytest.raises(ValueError, match=r"prepared without its views in the grid of tiles \(2, 2\)"):
        scale_next.encodings({"a": prepared}, EncoderRequirements(tile_grid=SQUARE))


def test_one_pass_of_the_tower_for_each_grid():
    needs = [
        EncoderRequirements(attention=frozenset({3})),
        EncoderRequirements(cls=True, tile_grid=SQUARE),
        EncoderRequirements(text=True),
        EncoderRequirements(llm_features=True, joint_patches=True, tile_grid=SQUARE),
    ]
    assert unions(needs) == [
        EncoderRequirements(attention=frozenset({3}), text=True),
        EncoderRequirements(cls=True, llm_features=True, joint_patches=True, tile_grid=SQUARE),
    ]
    assert not unions([])
    assert not EncoderRequirements(cls=True).covers(EncoderRequirements(tile_grid=SQUARE))
    assert EncoderRequirements(cls=True, joint_patches=True).covers(EncoderRequirements(joint_patches=True))
    assert not EncoderRequirements(cls=True).covers(EncoderRequirements(llm_features=True))


def test_encodings_of_both_grids_stand_beside_each_other(scale_next):
    images = sizes()
    scale_next.forget()
    default, forced = (scale_next.encodings(images, EncoderRequirements(cls=True, tile_grid=grid)) for grid in (None, SQUARE))
    assert {key: e.views.count for key, e in forced.items()} == dict.fromkeys(images, 5)
    assert {key: len(e.hidden) for key, e in default.items()} == {"300x90": 4, "90x300": 4, "200x180": 5}
    assert all(torch.equal(default[key].hidden[0], forced[key].hidden[0]) for key in images)
    assert torch.equal(default["200x180"].hidden, forced["200x180"].hidden)  # there the backbone chooses the same
    again = scale_next.encodings(images, EncoderRequirements(tile_grid=SQUARE))
    assert all(again[key] is forced[key] for key in images)


def test_without_tiles_there_is_no_grid_to_choose(scale):
    sample = MosaicMME(images=1).samples()[0]
    scale.forget()
    default, forced = (scale.encodings({"a": sample.image()}, EncoderRequirements(tile_grid=grid))["a"] for grid in (None, SQUARE))
    assert default is forced and default.views.tiles == 0
    paper, reference = (method(scale, "vispruner", f"method.mode={mode}") for mode in ("paper", "reference"))
    sources = [scale.visual({"a": sample.image()}, [("a", sample.question)], m.pruner)[0].source for m in (paper, reference)]
    assert torch.equal(*sources)


def asked(backbone, methods, samples, workers=0):
    points = [Point(m) for m in methods]
    assert not ask(backbone, points, MosaicHR(), samples, 3, lambda n: None, workers)
    return [[point.done[s.id] for s in samples] for point in points]


@pytest.mark.slow
def test_a_shared_run_mixes_no_views(scale_next, samples):
    """Images opened where they are needed and prepared ahead, with methods of both kinds, against each method alone."""
    names = [("none",), ("vispruner", "method.mode=reference"), ("vispruner",), ("cdpruner", "method.mode=reference")]
    methods = [method(scale_next, *words) for words in names]
    alone = []
    for m in methods:
        scale_next.forget()
        alone.append(evaluate(scale_next, m, MosaicHR(), batch_size=1, samples=samples)[0])
    for workers in (0, 1):
        scale_next.forget()
        assert asked(scale_next, methods, samples, workers) == alone
    for records in (alone[1], alone[3]):
        assert {(r["visual_tokens"], r["newline_tokens"]) for r in records} == {(180, 0)}  # 36 of each of five views
    assert all(r["visual_tokens"] != 180 and r["newline_tokens"] for r in alone[2])


def test_viewer_cost_harness_and_pair_see_the_same_views(scale_next, samples):
    sample = samples[0]
    image, reference = sample.image(), method(scale_next, "vispruner", "method.mode=reference")
    assert ViewGeometry.of(scale_next.model.config, (image.height, image.width)).count < 5
    (record,), _ = evaluate(scale_next, reference, MosaicHR(), samples=[sample])
    traced = trace(scale_next, reference, MosaicHR(), sample, image)
    assert traced.record["prediction"] == record["prediction"] and traced.visual.views.count == 5
    counts = page.token_counts(traced)
    assert counts["entering"]["padding"] > 0
    assert sum(counts["entering"][kind] for kind in ("base", "tiles", "padding")) == 180
    assert counts["of"]["tiles"] == int(traced.visual.views.valid[1:].sum())
    cost = measure_cost(scale_next, reference, [(image, MosaicHR().prompt(sample))])
    assert (cost["visual_tokens_nominal"], cost["visual_tokens"], cost["newline_tokens"]) == (720, 180, 0)
    request = requests.Request(sample.id, MosaicHR().prompt(sample), lambda: [image], MosaicHR().max_new_tokens)
    (response,) = requests.answer(scale_next, reference, [request])
    assert (response.text, response.visual_tokens) == (record["prediction"], 180)
    paired = method(scale_next, "pair", "method/pruner=vispruner", "method/policy=fastv", "method.pruner.mode=reference")
    assert paired.tile_grid == SQUARE
    (in_pair,), _ = evaluate(scale_next, paired, MosaicHR(), samples=[sample])
    assert in_pair["visual_tokens"] == 180


def test_the_share_of_an_area_that_stays_is_measured_on_the_method_s_own_views(scale_next, samples):
    methods = [hero_kept.LabelledMethod(mode, method(scale_next, "vispruner", f"method.mode={mode}")) for mode in ("paper", "reference")]
    shares = hero_kept.recalls(scale_next, MosaicHR(), methods, samples)
    assert all(shares[one.label][hero_kept.ALL] for one in methods)
    assert all(0 < value < 1 for one in methods for value in shares[one.label][hero_kept.ALL])


def test_a_method_says_its_grid_whatever_it_is_made_of(scale_next):
    assert Method().tile_grid is None
    assert method(scale_next, "hero").tile_grid is None
    forced = method(scale_next, "cdpruner", "method.mode=reference")
    assert forced.tile_grid == SQUARE
    assert scale_next.tile_grids([forced, Method()]) == {None, SQUARE}
    assert dataclasses.replace(forced, pruner=None).tile_grid is None
    assert functools.reduce(lambda a, b: a.union(b), [forced.pruner.needs, forced.pruner.needs]) == forced.pruner.needs
