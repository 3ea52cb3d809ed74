"""Which tokens are there, and where their attention is put on the page: on the base view, on tiles, nowhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.viewing import config, pixels, wide_photo

from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Origin
from blink_exp.core.views import EXTRA, NEWLINE
from blink_exp.figures.hero_kept import presence
from blink_exp.settings.build import build
from blink_exp.viewer import drawing, subject
from blink_exp.viewer import page as pages
from blink_exp.viewer import run as viewer
from blink_exp.viewer.trace import Stage, trace


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return wide_photo(tmp_path_factory.mktemp("photo"))


def test_attention_is_put_where_its_tokens_stand():
    """A 2 x 2 base view without cell 1, a tile token (4 and up), a newline, a merged token; 3 expanded tokens."""
    source = torch.tensor([3, 0, NEWLINE, 2, 6, EXTRA])
    attention = torch.tensor([0.1, *[0.05, 0.15, 0.01, 0.3, 0.02, 0.04], 0.03, 0.05, 0.06, 0.09, 0.1])
    stage = Stage(0, 1, 2, source, (Origin(0, 1, 1), Origin(0, 2, 2)), attention)
    assert stage.counts == {"system": 1, "visual": 6, "expanded": 3, "text": 2}
    assert stage.shares == pytest.approx({"system": 0.1, "visual": 0.57, "expanded": 0.14, "text": 0.19})
    np.testing.assert_allclose(stage.cells(4), [0.15, np.nan, 0.3, 0.05], rtol=1e-6)
    np.testing.assert_allclose(stage.by_source(8)[4:], [np.nan, np.nan, 0.02, np.nan], rtol=1e-6)
    ratio, region = stage.rho(PatchGrid(2, 2, 2))
    assert (ratio, region) == (pytest.approx(0.3 / 0.5), 2)
    assert Stage(0, 1, 2, source[4:], (), attention[:5]).rho(PatchGrid(2, 2, 2)) is None


def test_kept_tokens_of_a_pruner_are_counted_and_darkened(scale_next, photo):
    cfg = config("model=scale_llava_next", "method=hero")
    about = subject.load_subject(config(image=str(photo), question="is there a circle?"))
    traced = trace(scale_next, build(cfg.method, scale_next), about.benchmark, about.sample, about.image)
    counts = pages.token_counts(traced)
    views = traced.visual.views
    assert counts["of"] == {"base": 144, "tiles": int(views.valid[1:].sum())}
    assert counts["entering"] == counts["last"] and counts["entering"]["merged"] == 0
    assert counts["entering"]["base"] == 28  # floor(144 * 0.2)
    entering = counts["entering"]["base"] + counts["entering"]["tiles"]
    assert entering == len(traced.visual.source) - traced.visual.newlines == int(traced.presence.sum())
    share, _ = presence(scale_next, traced.method, "photo", about.image, "is there a circle?")
    assert torch.equal(traced.presence, share)
    cells = pixels(drawing.fade(traced.presence[0].view(12, 12)))[..., 3]
    assert int((cells == 0).sum()) == 28 and set(cells.flatten().tolist()) == {0, drawing.GONE[3]}
    maps = pages.maps(traced.stages[0], traced, PatchGrid(2, 12, 12))
    dark = pixels(maps["tiles"])
    assert dark.shape[:2] == views.unpadded.shape
    assert int((dark == drawing.GONE).all(-1).sum()) == counts["of"]["tiles"] - counts["entering"]["tiles"]


@pytest.mark.slow
def test_tokens_that_a_pruner_adds_have_no_place(scale_next, photo, tmp_path):
    """VisionZip at 28 of 144: each view that shows the image gives CLS, 23 patches and 4 contextual tokens."""
    cfg = config("model=scale_llava_next", "method=visionzip", image=str(photo), question="is there a circle?", compare=["divprune"])
    path = viewer.view(cfg, tmp_path)
    counts = json.loads((tmp_path / "view.json").read_text(encoding="utf-8"))["kept"]
    about = subject.load_subject(cfg)
    views = trace(scale_next, build(cfg.method, scale_next), about.benchmark, about.sample, about.image).visual.views
    shown = int(views.valid.any(1).sum())
    assert counts["entering"]["base"] == 23 and counts["entering"]["merged"] == shown * (1 + 4) and views.tiles
    assert f"{shown * 5} that show no one place" in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "pyramiddrop", "dart"])
def test_kept_tokens_of_a_method_in_the_llm(scale, method):
    """Against the share of layers that the pictures of tables show, and against the token counts of the record."""
    cfg = config(f"method={method}", "benchmark.images=1")
    benchmark = subject.prepare_benchmark(cfg)
    one = benchmark.samples()[3]
    chosen = build(cfg.method, scale)
    traced = trace(scale, chosen, benchmark, one, one.image())
    share, _ = presence(scale, chosen, one.image_id, one.image(), benchmark.prompt(one))
    assert torch.equal(traced.presence, share)
    behind = {step["layer"]: step["visual_tokens"] for step in traced.record["layers"]}  # decided there, worked on from the next layer
    works = 144
    for stage in traced.stages:
        assert len(stage.source) == works
        works = behind.get(stage.layer, works)
    merged = sum(int((stage.source == EXTRA).sum()) for stage in traced.stages)
    assert float(traced.presence.sum()) * 32 == pytest.approx(sum(len(stage.source) for stage in traced.stages) - merged)
    counts = pages.token_counts(traced)
    assert counts["inside"] and counts["entering"]["base"] == 144 > counts["last"]["base"] > 0
    assert (counts["last"]["merged"] > 0) == (method == "sparsevlm")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "entering"), [("two_views", 289), ("crop", 144)])
def test_a_second_view_is_outlined_and_its_tokens_have_no_place_on_the_base_view(tmp_path, method, entering):
    path = viewer.view(config(f"method={method}", "method.region=annotated", "sample=mosaic_mme/v1/color/0000/yes"), tmp_path)
    document = json.loads((tmp_path / "view.json").read_text(encoding="utf-8"))
    left, top, right, bottom = document["second_view"]["box"]
    outline = f'<rect x="{left:.5g}" y="{top:.5g}" width="{right - left:.5g}" height="{bottom - top:.5g}" class="mark"/>'
    assert outline in path.read_text(encoding="utf-8")
    assert {line["visual"] for line in document["layers"]} == {entering} and document["kept"] is None
    assert all((line["rho"] is None) == (method == "crop") for line in document["layers"])
