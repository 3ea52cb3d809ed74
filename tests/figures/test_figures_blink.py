"""Blink's figures of decisions and layers (Figs. 2, 3, the examples): claims by hand on made-up records, pictures, and all their YAML."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from PIL import Image
from support.figure_studies import CONF, GRID, QUARTERS, scanned, tips

from blink_exp import reference
from blink_exp.errors import UserError
from blink_exp.figures import blink_examples, blink_layers, blink_maps
from blink_exp.figures.base import Study
from blink_exp.methods.blink import selected_layers
from blink_exp.studies import plan

FIGURES = {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted((CONF / "figure").glob("blink_*.yaml"))}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_figure_3_counts_the_right_patch_and_compares_the_middle_with_the_rest():
    records = scanned([[0, 2, 2, 0], [1, 2, 2, 2], [0, 2, 2, 1]], [2], [0.3, 0.6, 0.8, 0.4])
    curves = blink_layers.by_layer(records, GRID, 4)
    assert curves == {"rho": [0.3, 0.6, 0.8, 0.4], "hit": [0.0, 1.0, 1.0, round(1 / 3, 4)], "annotated": 3, "questions": 3}
    hit, rho = blink_layers.claims(records, GRID, {1, 2})
    assert (hit.numbers["hit in layers 1-2"], hit.numbers["hit in the others"]) == (1.0, pytest.approx(1 / 6))
    assert (rho.numbers["rho in layers 1-2"], rho.numbers["rho in the others"]) == (pytest.approx(0.7), pytest.approx(0.35))
    assert (hit.holds, rho.holds) == (True, True)
    hit, rho = blink_layers.claims(records, GRID, {0, 3})
    assert (hit.holds, rho.holds) == (False, False)


def test_figure_3_without_annotation_has_no_dots_and_does_not_judge_them():
    records = scanned([[0, 1, 2, 3], [0, 1, 2, 3]], None)
    curves = blink_layers.by_layer(records, GRID, 4)
    hit, _ = blink_layers.claims(records, GRID, {1, 2})
    assert curves["hit"] == [None] * 4 and hit.holds is None and hit.numbers["difference"] is None
    labels = tips(blink_layers.plot(curves, {1, 2}, 0.25))
    assert len(labels) == 4 and labels[2] == "layer 2: 0.500 of visual attention#2"


def test_a_region_across_patches_has_no_right_patch():
    records = scanned([[0, 0, 0, 0]], None)
    records[0]["regions"] = [QUARTERS[0], (0.4, 0.0, 0.6, 0.5)]
    assert blink_layers.targets(records[0], GRID) == set()


def test_layers_of_32_are_taken_at_the_same_relative_depth():
    assert blink_layers.layers_between(12, 26, 32) == set(range(12, 27))
    assert blink_layers.layers_between(12, 26, 16) == set(range(6, 14))


def test_figure_2_sees_a_focus_that_goes_from_target_to_target():
    moving = scanned([[0, 1, 1, 3]] * 4, [1, 3])
    changes, between = blink_maps.claims(moving, GRID, {0, 1, 2, 3})
    assert changes.numbers["distinct top patches, mean"] == 3
    assert changes.numbers["changes from a layer to the next, share"] == pytest.approx(2 / 3)
    assert between.numbers["top patch is a target, share of layers"] == 0.75
    assert (changes.holds, between.holds) == (True, True)


def test_figure_2_says_so_where_the_focus_stays_or_only_wanders():
    still = scanned([[1, 1, 1, 1]] * 4, [1, 3])
    assert [c.holds for c in blink_maps.claims(still, GRID, {0, 1, 2, 3})] == [False, False]
    wandering = scanned([[0, 1, 2, 3]] * 4, [1, 3])  # on a target no more often than by chance
    assert [c.holds for c in blink_maps.claims(wandering, GRID, {0, 1, 2, 3})] == [True, False]
    single = scanned([[0, 1, 2, 3]] * 4, [1])
    assert blink_maps.claims(single, GRID, {0, 1, 2, 3})[1].holds is None


def test_figure_2_draws_the_cases_that_move_and_a_panel_a_layer():
    records = [*scanned([[1, 1, 1, 1]], [1, 3]), *scanned([[1, 3, 1, 1]], [1, 3]), *scanned([[0, 1, 2, 3]], [1])]
    for k, r in enumerate(records):
        r["image_id"] = str(k)
    assert [r["image_id"] for r in blink_maps.cases(records, GRID, (0, 1), 2)] == ["1", "0"]  # the third has one target
    maps = {i: torch.eye(16)[5] + 0.01 for i in (0, 1)}
    figure = blink_maps.plot([(Image.new("RGB", (8, 8)), records[0], maps)] * 2, GRID)
    assert len(figure.axes) == 6
    assert tips(figure)[0].startswith("layer 0: the top patch has 0.897")  # 1.01 and three more of 1.16, less the other patches' .12


def worked(k: int, category: str, kinds: list[str], image: str | None = None) -> dict:
    steps = [
        {"layer": 12 + i, "image": 0, "rho": 0.5, "region": i % 4, "decision": d, "effective": True, "visual_tokens": 16}
        for i, d in enumerate(kinds)
    ]
    same = {"question": "what is 5 $?", "answer": "a", "prediction": "a", "correct": True, "regions": [QUARTERS[0]]}
    return {"id": str(k), "image_id": image or str(k), "category": category, "layers": steps, **same}


def test_examples_are_of_different_images_and_as_far_as_they_go_of_different_kinds():
    records = [
        worked(0, "a", ["keep", "keep"]),
        worked(1, "a", ["expand", "drop"]),
        worked(2, "a", ["expand", "drop"], image="1"),
        worked(3, "a", ["expand", "drop"]),
        worked(4, "b", ["expand", "keep"]),
    ]
    chosen = blink_examples.examples(records, blink_examples.worked_on, 3)
    assert [r["id"] for r in chosen] == ["1", "4", "3"]
    assert blink_examples.by_decision(records)["13"] == {"expand": 0, "drop": 0.6, "keep": 0.4}
    claim = blink_examples.at_work(records)
    assert claim.holds is True and claim.numbers["questions with an expansion that is dropped again"] == 0.6
    assert blink_examples.at_work(records[:1]).holds is False
    records[1]["layers"][1]["effective"] = False  # nothing was there to be dropped
    assert blink_examples.by_decision(records[1:2])["13"]["keep"] == 1


def test_a_sheet_has_a_row_a_question_and_a_panel_a_layer():
    image = Image.new("RGB", (8, 8))
    figure = blink_examples.sheet([(image, worked(0, "a", ["expand", "drop"])), (image, worked(1, "a", ["keep", "keep"]))], GRID)
    assert len(figure.axes) == 2 * 3
    assert "layer 13: rho 0.50, drop, 16 tokens#13" in tips(figure)
    figure.canvas.draw()  # a question with a dollar sign is no formula


def test_examples_need_a_blink_point():
    with pytest.raises(UserError, match="needs a measured point with method=blink"):
        blink_examples.decisions(Study("f", SimpleNamespace(), [{"point": "x", "status": "failed", "error": "e"}]))


def test_every_figure_of_the_paper_that_plots_something_is_there():
    plotted = {f["id"].replace("-fig-", "_fig") for f in reference.published("blink")["figures"] if f["experiment"]["points"]}
    assert set(FIGURES) == plotted | {"blink_examples"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_composes_and_its_maker_takes_what_is_given(name):
    figure = FIGURES[name]
    assert figure["name"] == name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for where, point in (("scale", plan.points(figure)[-1:]), ("published", [])):
            cfg = compose("sweep", overrides=plan.words(figure, *(point or [{"overrides": []}]), figure["benchmarks"][where]))
            OmegaConf.to_container(cfg.method, resolve=True, throw_on_missing=True)
    arguments = {k: v for k, v in figure["draw"].items() if not k.startswith("_")}
    inspect.signature(get_method(figure["draw"]["_target_"])).bind(None, **arguments)


def test_figure_7_measures_the_sixty_layer_sets_and_trains_all_their_layers():
    figure = FIGURES["blink_fig7"]
    points = plan.points(figure)
    assert {p.get("series") for p in points} - {None} == {figure["draw"][k] for k in ("start", "end", "single")}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        layers = OmegaConf.to_container(compose("sweep", overrides=[*figure["overrides"], *points[1]["overrides"]]).layers)
        trained = compose("train", overrides=figure["trains"]).layers
    ranges = [[w.removeprefix("layers.indices=") for w in p["overrides"]] for p in points[1:]]
    sets = [selected_layers(32, **(layers | {"indices": indices})) for (indices,) in ranges]
    assert (len(sets), len(set(sets))) == (63, 60)
    assert layers["indices"] == ranges[0][0] == "4-18"
    assert set().union(*sets) == set(selected_layers(32, **trained)) == set(range(4, 32))
    assert sets[0] == tuple(range(4, 19)) and sets[15] == (12,) and sets[-1] == (31,)


@pytest.mark.slow
def test_figure_6_forces_one_expansion_that_stays():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in ("blink_fig6", "blink_fig8"):
            cfg = compose("sweep", overrides=FIGURES[name]["overrides"])
            assert (cfg.resolution.policy, str(cfg.layers.indices), cfg.method.amplify) == ("expand_once", "12", True)
        copies = [compose("sweep", overrides=p["overrides"]) for p in FIGURES["blink_fig4"]["points"][1:]]
    assert [(c.resolution.policy, c.method.amplify, c.layers.indices) for c in copies] == [("copy", False, k) for k in (14, 16, 18)]
