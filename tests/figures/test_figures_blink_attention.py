"""Blink's figures of attention behind an expansion (Figs. 6 and 8): which token gets what, claims by hand, and a run of the scale model."""

from __future__ import annotations

import pytest
import torch
from matplotlib import pyplot as plt
from support.figure_studies import GRID, QUARTERS, study
from support.models import prompts, random_llava

from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.core.method import Method, Record, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Drop, Expand, Keep, Origin, Retain
from blink_exp.decoder.attach import attach
from blink_exp.decoder.attention import record_attention
from blink_exp.errors import UserError
from blink_exp.figures import blink_layers, blink_redistribution
from blink_exp.figures.base import write_drawing
from blink_exp.figures.blink_attention import LayerAttention, evenness, last_token_attention, split
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.none import none


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("weights", "even"), [([1, 1, 1, 1], 1.0), ([0, 3, 0, 0], 0.0), ([2, 2, 0, 0], 0.5), ([0, 0, 0, 0], None), ([5], None)]
)
def test_evenness_is_entropy_over_that_of_equal_weights(weights, even):
    value = evenness(torch.tensor(weights, dtype=torch.float32))
    assert value == (None if even is None else pytest.approx(even, abs=1e-6))


@torch.no_grad()
def test_recorded_attention_follows_tokens_that_are_dropped_in_the_llm():
    model = random_llava(attn="eager")
    batch = prompts(model, [[9, 10, 11]])
    stock = model(**batch, output_attentions=True).attentions
    with (
        attach(model, Method(FastVPolicy(full_layers=2, retention_ratio=0.25))) as run,
        record_attention(model.model.language_model) as rows,
    ):
        model.generate(**batch, max_new_tokens=1)
        records = list(run.records)
    looked = split({i: row[0] for i, row in rows.items()}, records, 2, torch.arange(36), 3, 36)
    behind = records[0].scan.layer + 1
    stay = list(records[0].decision.indices)
    assert torch.allclose(looked[behind - 1].visual, stock[behind - 1][0, :, -1, 2:38].mean(0), atol=1e-6)
    for i in range(behind, 4):
        assert looked[i].visual.nonzero()[:, 0].tolist() == stay
        assert torch.equal(looked[i].visual[stay], rows[i][0, 2 : 2 + len(stay)])


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
    a, b = Origin(1, 3, 4), Origin(3, 1, 4)
    parts = {i: seen.parts for i, seen in looked.items()}
    assert parts == {0: (), 1: (a,), 2: (a,), 3: (a, b), 4: (a, b), 5: (Origin(5, 2, 2),), 6: (), 7: ()}
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
    looked, records = last_token_attention(scale, method, sample.image(), sample.image_id, sample.question, range(12, 16))
    grid = PatchGrid(2, *scale.grid)
    assert len(records) == 3
    for record in records[1:]:
        sums = grid.sums(looked[record.scan.layer].visual)
        assert torch.allclose(sums, torch.tensor(record.scan.patch_scores), atol=1e-5)
    assert looked[15].parts == (Origin(12, records[0].decision.region, 144),)
    assert 0 < looked[15].expanded.sum() < 1 - looked[15].visual.sum()
    plain, nothing = last_token_attention(scale, none(), sample.image(), sample.image_id, sample.question, [12])
    assert nothing == [] and len(plain[12].expanded) == 0


def seen(original: list[float], expanded: list[float], top: int) -> LayerAttention:
    """Attention on four original and four expanded tokens; the patch ``top`` gets most."""
    visual = torch.zeros(16)
    visual[GRID.indices(top)] = torch.tensor(original)
    return LayerAttention(visual, torch.tensor(expanded), (Origin(12, top, 4),))


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
    assert [c.record["id"] for c in blink_redistribution.select_cases(cases, 2, GRID)] == ["3", "1"]
    assert [c.record["id"] for c in blink_redistribution.select_cases(cases[:1], 2, GRID)] == ["0"]
    unknown = [case(k, (0, 0), None) for k in range(3)]
    assert [c.record["id"] for c in blink_redistribution.select_cases(unknown, 2, GRID)] == ["0", "1"]


@pytest.mark.slow
def test_figures_3_and_6_from_the_scale_model_say_their_numbers_in_the_svg(scale, tmp_path):
    opened = study("f", (scale, blink(BlinkPolicy((12,), resolution="expand_once")), MosaicOpen(2)))
    drawing = blink_redistribution.after_expansion(opened, (13, 20), images=2, pick="cases")
    assert len(drawing.pictures["redistribution"].axes) == 10
    assert drawing.data["layers"] == [13, 20]
    first = drawing.data["measured"][0]["13"]
    assert 0 < first["expanded"] < 1 - first["original"] and 0 < first["even_expanded"] <= 1
    files = write_drawing(drawing, tmp_path)
    assert "<title>layer 13: most attended patch</title>" in files["redistribution"][1].read_text(encoding="utf-8")
    rho = blink_layers.rho_by_layer(opened, (12, 26))
    assert rho.data["rho"][12] > 0.25 and rho.data["annotated"] <= rho.data["questions"] == len(MosaicOpen(2).samples())
    with pytest.raises(UserError, match="before anything is expanded"):
        blink_redistribution.after_expansion(study("f", (scale, none(), MosaicOpen(2))))
