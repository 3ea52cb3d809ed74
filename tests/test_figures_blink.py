"""Blink's figures: claims worked out by hand on made-up records, recorded attention against eager attention, pictures and their YAML."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import prompts, random_llava
from hydra import compose, initialize_config_dir
from hydra.utils import get_method
from matplotlib import pyplot as plt
from omegaconf import OmegaConf
from PIL import Image

from blink_exp import reference
from blink_exp.backbone.decode import Record
from blink_exp.benchmarks.mme import score_pairs
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.errors import UserError
from blink_exp.experiments import plan
from blink_exp.figures import blink_examples, blink_layers, blink_maps, blink_radar, blink_ranges, blink_redistribution, blink_shared
from blink_exp.figures.base import TIP, Study, written
from blink_exp.figures.blink_attention import Looked, evenness, look, recording, split
from blink_exp.methods.base import Method, Scan
from blink_exp.methods.blink import BlinkPolicy, blink, selected_layers
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.none import none
from blink_exp.saliency import PatchGrid
from blink_exp.sequence import Drop, Expand, Keep, Retain

CONF = Path(__file__).resolve().parent.parent / "conf"
FIGURES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((CONF / "figure").glob("blink_*.yaml"))}
GRID = PatchGrid(2, 4, 4)
QUARTERS = [GRID.box(region) for region in range(4)]


def tips(figure) -> list[str]:
    """What a picture says where the pointer rests."""
    return [a.get_gid().removeprefix(TIP) for a in figure.findobj() if (a.get_gid() or "").startswith(TIP)]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# numbers behind claims


def test_a_verdict_needs_two_standard_errors():
    assert (blink_shared.told(2.1, 1.0), blink_shared.told(-2.1, 1.0)) == (True, False)
    assert (
        blink_shared.told(2.0, 1.0) is blink_shared.told(-1.0, 1.0) is blink_shared.told(0.0, 0.0) is blink_shared.told(1.0, None) is None
    )
    assert blink_shared.told(0.1, 0.0) is True
    assert blink_shared.all_told([True, True]) is True
    assert blink_shared.all_told([True, None]) is blink_shared.all_told([]) is None
    assert blink_shared.all_told([None, False]) is False


def test_questions_on_one_image_are_not_independent():
    """Deviations from .75: -.75 + .25 on one image, .25 + .25 on the other: sqrt(2 * (.25 + .25)) / 4 = .25."""
    assert blink_shared.clustered([0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b"]) == (0.75, 0.25)
    assert blink_shared.clustered([0.0, 1.0], ["a", "a"]) == (0.5, None)
    assert blink_shared.clustered([], []) == (None, None)


def pairs(right: dict[str, list[tuple[int, int]]]) -> list[dict]:
    """Records of MME's form: {subtask: (right on yes, right on no) of each image}."""
    return [
        {"id": f"{s}/{i}/{k}", "image_id": f"{s}/{i}", "category": s, "correct": bool(hit), "answer": "yes", "layers": [], "regions": []}
        for s, images in right.items()
        for i, image in enumerate(images)
        for k, hit in enumerate(image)
    ]


ONE = {"color": [(1, 1), (1, 0), (0, 0)], "count": [(1, 1), (0, 1)]}
TWO = {"color": [(1, 1), (1, 1), (1, 1)], "count": [(0, 1), (1, 1)]}


def test_gains_add_up_to_mme_s_total_and_their_error_is_that_of_the_paired_change():
    before, after = (score_pairs(pairs(r), ("color", "count"), ()) for r in (ONE, TWO))
    difference, stderr = blink_shared.contrast(*([blink_shared.gains(pairs(r), "total")] for r in (TWO, ONE)))
    assert difference == pytest.approx(after["total"].value - before["total"].value)
    # colour: changes 0, 150, 200, variance 10833.3 / 3; count: -150, 150, variance 45000 / 2
    assert stderr == pytest.approx((10833.333 / 3 + 45000 / 2) ** 0.5, rel=1e-5)
    assert stderr != pytest.approx((before["total"].stderr ** 2 + after["total"].stderr ** 2) ** 0.5)


def test_an_image_with_one_answer_missing_counts_in_neither_run():
    half, whole = blink_shared.gains(pairs(TWO)[1:], "total"), blink_shared.gains(pairs(ONE), "total")
    assert "color/0" not in half["color"]
    for first, second, sign in ((whole, half, 1), (half, whole, -1)):
        assert blink_shared.contrast([first], [second])[0] == pytest.approx(sign * ((50 - 200 + 0 - 200) / 2 + 0))


def test_a_benchmark_without_pairs_counts_right_answers():
    records = [{"id": str(k), "correct": hit} for k, hit in enumerate((1, 0.5, 0, None))]
    assert blink_shared.gains(records, "accuracy") == {"": {"0": 100.0, "1": 50.0, "2": 0.0}}
    assert blink_shared.headline([{"scores": {"accuracy": 1}}], "x") == "accuracy"
    with pytest.raises(UserError, match="needs a benchmark with a total"):
        blink_shared.headline([{"scores": {"f1": 1}}], "x")


@pytest.mark.parametrize(
    ("weights", "even"), [([1, 1, 1, 1], 1.0), ([0, 3, 0, 0], 0.0), ([2, 2, 0, 0], 0.5), ([0, 0, 0, 0], None), ([5], None)]
)
def test_evenness_is_entropy_over_that_of_equal_weights(weights, even):
    found = evenness(torch.tensor(weights, dtype=torch.float32))
    assert found == (None if even is None else pytest.approx(even, abs=1e-6))


# the recorder


def eager(model, states, i):
    """(keys,) attention of the last token, heads averaged, by a layer's own eager kernel over the whole sequence."""
    llm = model.model.language_model
    rope = llm.rotary_emb(states, position_ids=torch.arange(states.shape[1])[None])
    mask = torch.full((states.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    layer = llm.layers[i]
    weights = layer.self_attn(layer.input_layernorm(states), attention_mask=mask, position_embeddings=rope)[1]
    return weights[0, :, -1].mean(0), layer(states, attention_mask=mask, position_embeddings=rope)


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"width": 48, "heads": 6, "kv_heads": 2}], ids=["plain", "grouped-query"])
def test_recorded_attention_is_eager_attention_of_the_sequence_written_out(shape):
    """Without a method against output_attentions, and with an expansion against system | visual | expanded | text in one piece."""
    model, reference_ = random_llava(**shape), random_llava(attn="eager", **shape)
    batch = prompts(model, [[9, 10, 11]])
    llm = model.model.language_model
    with recording(llm, range(4)) as rows:
        model.generate(**batch, max_new_tokens=1)
    stock = reference_(**batch, output_attentions=True)
    for i in range(4):
        assert torch.allclose(rows[i], stock.attentions[i][0, :, -1].mean(0), atol=1e-6)
    with blink(BlinkPolicy((1,), resolution="expand_once")).attach(model) as run, recording(llm, range(1, 4)) as rows:
        model.generate(**batch, max_new_tokens=1)
        (record,) = run.records
    hidden = reference_(**batch, output_hidden_states=True).hidden_states[1]
    patch = hidden[:, 2:38][:, PatchGrid(2, 6, 6).indices(record.decision.region)].mT.view(1, -1, 3, 3)
    fine = torch.nn.functional.interpolate(patch, size=(6, 6), mode="bilinear", align_corners=False).flatten(2).mT
    states = torch.cat([hidden[:, :38], fine, hidden[:, 38:]], dim=1)
    looked = split(rows, [record], 2, torch.arange(36), 3, 36)
    for i in range(1, 4):
        row, states = eager(reference_, states, i)
        assert torch.allclose(rows[i], row, atol=1e-5)
        assert torch.equal(looked[i].visual, rows[i][2:38]) and torch.equal(looked[i].expanded, rows[i][38:74])
        assert looked[i].parts == ((record.decision.region, 36),)
    assert not any(layer.self_attn._forward_hooks for layer in llm.layers)


@torch.no_grad()
def test_recorded_attention_follows_tokens_that_are_dropped_in_the_llm():
    model = random_llava(attn="eager")
    batch = prompts(model, [[9, 10, 11]])
    stock = model(**batch, output_attentions=True).attentions
    with (
        Method(FastVPolicy(full_layers=2, retention_ratio=0.25)).attach(model) as run,
        recording(model.model.language_model, range(4)) as rows,
    ):
        model.generate(**batch, max_new_tokens=1)
        records = list(run.records)
    looked = split(rows, records, 2, torch.arange(36), 3, 36)
    behind = records[0].scan.layer + 1
    stay = list(records[0].decision.indices)
    assert torch.allclose(looked[behind - 1].visual, stock[behind - 1][0, :, -1, 2:38].mean(0), atol=1e-6)
    for i in range(behind, 4):
        assert looked[i].visual.nonzero()[:, 0].tolist() == stay
        assert torch.equal(looked[i].visual[stay], rows[i][2 : 2 + len(stay)])


def decided(layer, decision, tokens) -> Record:
    return Record(0, Scan(layer, "s", 0, False), decision, tokens)


def test_parts_of_the_expanded_segment_by_hand():
    """Base view of 4 tokens, two in front, one behind: an expansion, kept, another one appended, replaced, dropped."""
    records = [
        decided(1, Expand(3), 8),
        decided(2, Keep(), 8),
        decided(3, Expand(1, "append"), 12),
        decided(4, Expand(0, "keep"), 12),
        decided(5, Expand(2), 6),
        decided(6, Drop(), 4),
    ]
    lengths = {0: 7, 1: 11, 2: 11, 3: 15, 4: 15, 5: 9, 6: 7, 7: 7}
    looked = split({i: torch.arange(float(n)) for i, n in lengths.items()}, records, 2, torch.tensor([3, 2, 1, 0]), 1, 4)
    parts = {i: seen.parts for i, seen in looked.items()}
    assert parts == {0: (), 1: ((3, 4),), 2: ((3, 4),), 3: ((3, 4), (1, 4)), 4: ((3, 4), (1, 4)), 5: ((2, 2),), 6: (), 7: ()}
    assert looked[5].expanded.tolist() == [6.0, 7.0]
    assert looked[0].visual.tolist() == [5.0, 4.0, 3.0, 2.0]  # placed by cell, not by order


def test_tokens_of_tiles_and_merged_tokens_have_no_place_on_the_map():
    rows = {0: torch.arange(8.0), 1: torch.arange(6.0)}
    cells = torch.tensor([0, 1, 2, 3, -1])
    looked = split(rows, [decided(0, Retain((1, 3), ((0, 2),)), 3)], 2, cells, 1, 4)
    assert looked[0].visual.tolist() == [2, 3, 4, 5]
    assert looked[1].visual.tolist() == [0, 2, 0, 3]  # the third one left is the mean of two


@torch.no_grad()
def test_looking_at_a_sample_sees_what_blink_scanned(scale):
    """The scan is made before a layer and in one patch each; the map behind it: where nothing changed in between they agree."""
    sample = MosaicOpen(2).samples()[0]
    method = blink(BlinkPolicy((12, 13, 14), resolution="expand_once"))
    looked, records = look(scale, method, sample.image(), sample.image_id, sample.question, range(12, 16))
    grid = PatchGrid(2, *scale.grid)
    assert len(records) == 3
    for record in records[1:]:
        sums = grid.sums(looked[record.scan.layer].visual)
        assert torch.allclose(sums, torch.tensor(record.scan.patch_scores), atol=1e-5)
    assert looked[15].parts == ((records[0].decision.region, 144),)
    assert 0 < looked[15].expanded.sum() < 1 - looked[15].visual.sum()
    plain, nothing = look(scale, none(), sample.image(), sample.image_id, sample.question, [12])
    assert nothing == [] and len(plain[12].expanded) == 0


# figure 3


def scanned(regions: list[list[int]], right: list[int] | None, rho: float | list[float] = 0.5) -> list[dict]:
    """Records of four layers: the top patch of each, by question; ``right``: the patches of the annotated regions."""
    return [
        {
            **{"id": str(k), "image_id": str(k), "question": "what?", "correct": True},
            "regions": [QUARTERS[r] for r in right] if right else [],
            "layers": [
                {"layer": i, "region": r, "rho": rho[i] if isinstance(rho, list) else rho, "decision": "keep"} for i, r in enumerate(line)
            ],
        }
        for k, line in enumerate(regions)
    ]


def test_figure_3_counts_the_right_patch_and_compares_the_middle_with_the_rest():
    records = scanned([[0, 2, 2, 0], [1, 2, 2, 2], [0, 2, 2, 1]], [2], [0.3, 0.6, 0.8, 0.4])
    found = blink_layers.by_layer(records, GRID, 4)
    assert found == {"rho": [0.3, 0.6, 0.8, 0.4], "hit": [0.0, 1.0, 1.0, round(1 / 3, 4)], "annotated": 3, "questions": 3}
    hit, rho = blink_layers.claims(records, GRID, {1, 2})
    assert (hit.numbers["hit in layers 1-2"], hit.numbers["hit in the others"]) == (1.0, pytest.approx(1 / 6))
    assert (rho.numbers["rho in layers 1-2"], rho.numbers["rho in the others"]) == (pytest.approx(0.7), pytest.approx(0.35))
    assert (hit.holds, rho.holds) == (True, True)
    hit, rho = blink_layers.claims(records, GRID, {0, 3})
    assert (hit.holds, rho.holds) == (False, False)


def test_figure_3_without_annotation_has_no_dots_and_does_not_judge_them():
    records = scanned([[0, 1, 2, 3], [0, 1, 2, 3]], None)
    found = blink_layers.by_layer(records, GRID, 4)
    hit, _ = blink_layers.claims(records, GRID, {1, 2})
    assert found["hit"] == [None] * 4 and hit.holds is None and hit.numbers["difference"] is None
    said = tips(blink_layers.drawn(found, {1, 2}, 0.25))
    assert len(said) == 4 and said[2] == "layer 2: 0.500 of visual attention#2"


def test_a_region_across_patches_has_no_right_patch():
    records = scanned([[0, 0, 0, 0]], None)
    records[0]["regions"] = [QUARTERS[0], (0.4, 0.0, 0.6, 0.5)]
    assert blink_layers.targets(records[0], GRID) == set()


def test_layers_of_32_are_taken_at_the_same_relative_depth():
    assert blink_layers.between(12, 26, 32) == set(range(12, 27))
    assert blink_layers.between(12, 26, 16) == set(range(6, 14))


# figure 2


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
    figure = blink_maps.drawn([(Image.new("RGB", (8, 8)), records[0], maps)] * 2, GRID)
    assert len(figure.axes) == 6
    assert tips(figure)[0].startswith("layer 0: the top patch has 0.897")  # 1.01 and three more of 1.16, less the other patches' .12


# figure 7


def run_of(total: int, images: int = 8) -> blink_shared.Gains:
    """A run whose total is about ``total``, with some spread from image to image."""
    return {"color": {str(k): total + (k % 2) * 0.5 for k in range(images)}}


def curves(single: dict[int, int], start: dict[int, int], end: dict[int, int]):
    return [{x: run_of(v) for x, v in curve.items()} for curve in (start, end, single)]


BASE = {"color": {str(k): 100.0 for k in range(8)}}


def test_figure_7_judges_each_sentence_by_its_own_numbers():
    start, end, single = curves(
        {4: 90, 6: 80, 7: 110, 26: 120, 27: 0}, {4: 100, 9: 102, 10: 110, 18: 112}, {12: 110, 13: 112, 14: 100, 18: 102}
    )
    claims = blink_ranges.claims(start, end, single, BASE, (12, 18))
    assert [c.holds for c in claims] == [True, True, True, True]
    assert claims[0].numbers["difference"] == pytest.approx(115 - 85)  # layer 27 is in neither group
    assert claims[1].numbers["mean change, starts from 10 on"] == pytest.approx(11.25)
    assert claims[2].numbers["difference"] == pytest.approx(-10)
    assert claims[3].numbers == {
        "change": pytest.approx(2.25),
        "standard error": pytest.approx(0.0945, abs=1e-3),
        "best change of all ranges": pytest.approx(12.25),
        "ranges above it": 4.0,
    }


def test_figure_7_says_what_does_not_hold_and_what_cannot_be_told():
    start, end, single = curves({4: 90, 7: 80}, {4: 110, 12: 100}, {13: 100, 14: 110, 18: 90})
    assert [c.holds for c in blink_ranges.claims(start, end, single, BASE, (12, 18))] == [False, False, None, False]
    nothing = blink_ranges.claims({}, {}, {}, BASE, (12, 18))
    assert [c.holds for c in nothing] == [None] * 4


def stored(folder: Path, label: str, right: dict, **more) -> dict:
    """A measured point as a figure gets it."""
    folder = folder / label.replace("/", "_")
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs(right)))
    (folder / "metrics.json").write_text('{"benchmark": "mosaic_mme"}')
    scores = {k: v.value for k, v in score_pairs(pairs(right), tuple(right), ()).items()}
    common = {"status": "done", "folder": str(folder), "scores": scores, "backbone": "b", "samples": 10}
    return {"point": label, **common, **more}


def test_figure_7_draws_two_panels_with_the_single_layers_in_each(tmp_path):
    rows = [stored(tmp_path, "Vanilla", ONE)]
    rows += [stored(tmp_path, f"s{x}", TWO, series="start", x=x) for x in (11, 12)]
    rows += [stored(tmp_path, f"e{x}", ONE, series="end", x=x) for x in (18, 19)]
    rows += [stored(tmp_path, f"l{x}", TWO, series="single", x=x) for x in (11, 12, 19)]
    rows += [{"point": "broken", "status": "failed", "error": "e", "series": "end", "x": 20}]
    drawing = blink_ranges.layer_ranges(
        Study("f", OmegaConf.create(), rows), "Vanilla", "start", "end", "single", OmegaConf.create([12, 18])
    )
    (figure,) = drawing.pictures.values()
    change = blink_shared.contrast(*([blink_shared.gains(pairs(r), "total")] for r in (TWO, ONE)))
    assert len(figure.axes) == 2
    assert drawing.data["series"]["start"][0] == {"x": 11, "change": pytest.approx(change[0]), "stderr": pytest.approx(change[1])}
    assert drawing.data["series"]["end"][1]["change"] == 0
    assert drawing.claims[3].numbers["change"] is not None  # the default came as a list from YAML
    assert len(tips(figure)) == 2 + 2 + 2 + 1  # single layers only where the panel's x goes
    assert f"range 11 to 18: {change[0]:+.2f} ± {change[1]:.2f}#0" in tips(figure)
    assert "1 points failed" in drawing.caption
    assert drawing.measured_on == "b, mosaic_mme, 10 questions"
    with pytest.raises(UserError, match="its point Vanilla, which was not measured"):
        blink_ranges.layer_ranges(Study("f", OmegaConf.create(), rows[1:]), "Vanilla", "start", "end", "single")


# figure 4


def test_area_by_hand():
    import numpy as np

    assert blink_radar.area(np.ones(4)) == pytest.approx(2)  # a square of diagonal 2
    assert blink_radar.area(np.array([[2.0, 1, 1, 1], [0, 1, 0, 1]])).tolist() == pytest.approx([3, 0])
    assert blink_radar.area(np.array([3.0, 4.0])) == 7


def test_figure_4_holds_only_if_every_copy_encloses_more():
    base = {s: {str(k): 100.0 + k % 3 for k in range(30)} for s in "abc"}
    larger = {s: {k: v + 10 for k, v in images.items()} for s, images in base.items()}
    smaller = {s: {k: v - 10 for k, v in images.items()} for s, images in base.items()}
    noisy = {s: {k: v + (60 if int(k) % 2 else -60) for k, v in images.items()} for s, images in base.items()}
    holds = [
        blink_radar.claim("p", [base, *copies], ["Vanilla", *"xyz"[: len(copies)]])
        for copies in ([larger], [larger, smaller], [larger, noisy])
    ]
    assert [c.holds for c in holds] == [True, False, None]
    assert holds[0].numbers["x: change"] == pytest.approx((111 / 101) ** 2 - 1)


def test_figure_4_has_a_radar_where_subtasks_enclose_something_and_dots_elsewhere(tmp_path):
    right = {s: [(1, 1), (1, 0)] for s in ("existence", "count", "position", "comparison", "arithmetic")}
    rows = [stored(tmp_path, "Copy @14", right), stored(tmp_path, "Vanilla", right)]
    drawing = blink_radar.copied(Study("f", OmegaConf.create(), rows), "Vanilla")
    (figure,) = drawing.pictures.values()
    assert [axis.name for axis in figure.axes] == ["polar", "rectilinear"]
    assert drawing.data["subtasks"] == {"perception": ["existence", "count", "position"], "cognition": ["comparison", "arithmetic"]}
    assert list(drawing.data["scores"]["perception"]) == ["Vanilla", "Copy @14"]  # the baseline first
    assert drawing.data["scores"]["cognition"]["Vanilla"] == [125.0, 125.0]
    assert len(tips(figure)) == 2 * 5 and "Copy @14, count: 125.00" in " ".join(tips(figure))
    assert [c.holds for c in drawing.claims] == [None, None]  # equal runs
    assert "Cognition has too few subtasks" in drawing.caption
    assert blink_radar.groups(["color", "other"]) == {"categories": ["color", "other"]}
    records = [{"id": str(k), "category": "ab"[k % 2], "correct": k == 0} for k in range(4)]
    assert blink_radar.by_subtask(records, "accuracy") == {"a": {"0": 100.0, "2": 0.0}, "b": {"1": 0.0, "3": 0.0}}


# figures 6 and 8


def seen(original: list[float], expanded: list[float], top: int) -> Looked:
    """Attention on four original and four expanded tokens; the patch ``top`` gets most."""
    visual = torch.zeros(16)
    visual[GRID.indices(top)] = torch.tensor(original)
    return Looked(visual, torch.tensor(expanded), ((top, 4),))


def case(
    k: int, tops: tuple[int, int], right: int | None, original=(0.2, 0, 0, 0), expanded=(0.1, 0.1, 0.1, 0.1)
) -> blink_redistribution.Case:
    record = {"id": str(k), "image_id": str(k), "question": "what?", "regions": [QUARTERS[right]] if right is not None else []}
    looked = {layer: seen(list(original), list(expanded), top) for layer, top in zip((13, 20), tops, strict=True)}
    return blink_redistribution.Case(record, looked, frozenset() if right is None else frozenset({right}))


def test_figure_6_compares_mass_and_evenness_of_both_kinds_of_token():
    cases = [case(k, (0, 1), 1, expanded=(0.1, 0.1, 0.1, 0.1 + 0.01 * k)) for k in range(4)]
    mass, even, moves = blink_redistribution.claims(cases, [], GRID)
    assert mass.numbers["layer 13, expanded"] == pytest.approx(0.415) and mass.numbers["layer 20, original"] == pytest.approx(0.2)
    assert even.numbers["layer 13, original"] == 0 and even.numbers["layer 13, expanded"] == pytest.approx(1, abs=0.01)
    assert moves.numbers["wrong at 13, right at 20"] == 1
    assert [c.holds for c in (mass, even, moves)] == [True, True, True]


def test_figure_6_says_so_where_the_original_tokens_get_more():
    cases = [case(k, (1, 0), 1, original=(0.2, 0.2, 0.2, 0.2 + 0.01 * k), expanded=(0.4, 0, 0, 0)) for k in range(4)]
    assert [c.holds for c in blink_redistribution.claims(cases, [], GRID)] == [False, False, False]
    unknown = [case(k, (1, 0), None) for k in range(4)]
    assert blink_redistribution.claims(unknown, [], GRID)[2].holds is None


def test_figure_8_counts_the_cases_that_are_drawn_and_the_questions_that_move():
    cases = [case(k, (0, int(k < 1)), 1) for k in range(6)]
    even, moves = blink_redistribution.evenness_claims(cases, cases[:3], GRID)
    assert even.holds is True and even.numbers["drawn cases, more even at both layers"] == 3
    assert moves.numbers["share that moves"] == pytest.approx(1 / 6) and moves.numbers["drawn cases that move"] == 1
    assert moves.holds is False
    assert blink_redistribution.evenness_claims([case(k, (0, 1), 1) for k in range(6)], cases, GRID)[1].holds is True


def test_figure_6_takes_a_case_that_stays_right_and_one_that_moves_to_the_right_patch():
    cases = [case(0, (0, 0), 1), case(1, (0, 1), 1), case(2, (1, 0), 1), case(3, (1, 1), 1)]
    assert [c.record["id"] for c in blink_redistribution.picked(cases, 2, GRID)] == ["3", "1"]
    assert [c.record["id"] for c in blink_redistribution.picked(cases[:1], 2, GRID)] == ["0"]
    unknown = [case(k, (0, 0), None) for k in range(3)]
    assert [c.record["id"] for c in blink_redistribution.picked(unknown, 2, GRID)] == ["0", "1"]


class Ready(Study):
    """A study whose model is loaded already."""

    ready: tuple

    def opened(self):
        return self.ready


def test_figures_3_and_6_from_the_scale_model_say_their_numbers_in_the_svg(scale, tmp_path):
    cfg = {"limit": None, "shard": None, "batch_size": 8, "grid": {"p": 2}, "saliency": {"scorer": "attention"}}
    method = blink(BlinkPolicy((12,), resolution="expand_once"))
    study = Ready("f", OmegaConf.create(cfg))
    object.__setattr__(study, "ready", (scale, method, MosaicOpen(2)))
    drawing = blink_redistribution.after_expansion(study, (13, 20), images=2, pick="cases")
    assert len(drawing.pictures["redistribution"].axes) == 10
    assert drawing.data["layers"] == [13, 20]
    first = drawing.data["measured"][0]["13"]
    assert 0 < first["expanded"] < 1 - first["original"] and 0 < first["even_expanded"] <= 1
    files = written(drawing, tmp_path)
    assert "<title>layer 13: most attended patch</title>" in files["redistribution"][1].read_text()
    rho = blink_layers.rho_by_layer(study, (12, 26))
    assert rho.data["rho"][12] > 0.25 and rho.data["annotated"] <= rho.data["questions"] == len(MosaicOpen(2).samples())
    object.__setattr__(study, "ready", (scale, none(), MosaicOpen(2)))
    with pytest.raises(UserError, match="before anything is expanded"):
        blink_redistribution.after_expansion(study)


# examples


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
        blink_examples.decisions(Study("f", OmegaConf.create({}), [{"point": "x", "status": "failed", "error": "e"}]))


# conf/figure


def test_every_figure_of_the_paper_that_plots_something_is_there():
    plotted = {f["id"].replace("-fig-", "_fig") for f in reference.published("blink")["figures"] if f["experiment"]["points"]}
    assert set(FIGURES) == plotted | {"blink_examples"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_composes_and_its_maker_takes_what_is_given(name):
    figure = FIGURES[name]
    assert figure["name"] == name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for where, point in (("here", plan.points(figure)[-1:]), ("there", [])):
            cfg = compose("sweep", overrides=plan.words(figure, *(point or [{"overrides": []}]), figure[where]))
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
    said = [[w.removeprefix("layers.indices=") for w in p["overrides"]] for p in points[1:]]
    sets = [selected_layers(32, layer=None, **(layers | {"indices": indices})) for (indices,) in said]
    assert (len(sets), len(set(sets))) == (63, 60)
    assert layers["indices"] == said[0][0] == "4-18"
    assert set().union(*sets) == set(selected_layers(32, layer=None, **trained)) == set(range(4, 32))
    assert sets[0] == tuple(range(4, 19)) and sets[15] == (12,) and sets[-1] == (31,)


def test_figure_6_forces_one_expansion_that_stays():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in ("blink_fig6", "blink_fig8"):
            cfg = compose("sweep", overrides=FIGURES[name]["overrides"])
            assert (cfg.resolution.policy, str(cfg.layers.indices), cfg.method.amplify) == ("expand_once", "12", True)
        copies = [compose("sweep", overrides=p["overrides"]) for p in FIGURES["blink_fig4"]["points"][1:]]
    assert [(c.resolution.policy, c.method.amplify, c.layers.indices) for c in copies] == [("copy", False, k) for k in (14, 16, 18)]
