"""GlobalCom2: the laws that its specification states, the numbers it prints, and small cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import random_encoding
from support.view_pruners import GRIDS, MODES, command, few, full, images, lists, modes, probabilities, seeds, with_logits

from blink_exp.core.views import NEWLINE, ViewGeometry, pack
from blink_exp.methods.globalcom2 import thumbnail_guide, tile_shares

weights = st.lists(st.floats(-50, 50), min_size=2, max_size=4)


@few
@given(weights, st.floats(0.01, 0.5), st.floats(0.05, 100))
def test_globalcom2_shares_average_to_the_ratio(g, ratio, temperature):  # (a); up to R = 0.5 nothing is clipped
    shares = tile_shares(g, ratio, temperature)
    assert sum(shares) / len(g) == pytest.approx(ratio, rel=1e-9)
    by_weight = [share for _, share in sorted(zip(g, shares, strict=True))]
    assert by_weight == sorted(shares)


@few
@given(st.integers(2, 4), st.floats(-1000, 1000), st.floats(0.01, 1))
def test_globalcom2_equal_weights_give_every_tile_the_ratio(k, g, ratio):  # (b)
    assert tile_shares([g] * k, ratio, 10.0) == pytest.approx([ratio] * k, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_globalcom2_a_flat_thumbnail_loses_no_token_to_floats(ratio, grid):
    views = full(*grid, side=24)
    encoding = with_logits(views, [[0.1] * 576] * views.count)
    assert command(ratio).budgets(encoding) == [int(576 * ratio)] * views.count


def test_globalcom2_shares_by_hand():
    low = 1 / (math.e + 1)  # softmax of two weights that are 10 apart, at T = 10
    assert tile_shares([10.0, 0.0], 0.5, 10.0) == pytest.approx([0.5 * (1.5 - low), 0.5 * (0.5 + low)])
    assert tile_shares([10.0, 0.0], 1.0, 10.0) == pytest.approx([1.0, 0.5 + low])  # clipped above at 1
    assert tile_shares([1e4, 0.0, 0.0, 0.0], 0.4, 10.0) == pytest.approx([0.7, 0.3, 0.3, 0.3])  # 1.75 R and 0.75 R


def test_globalcom2_budgets_by_hand():
    views = full(1, 2, side=4)
    encoding = with_logits(views, [[10.0] + [0.0] * 15] * 3)
    assert command(0.5, "reference").budgets(encoding) == [8, 9, 6]  # 16 * 0.5 * (1 +- 0.231)
    assert command(1.0, "reference").budgets(encoding) == [16, 16, 12]
    # Attention of patch 0 is 16 / 32, of each other token 1 / 32: the left block weighs 23 / 32, the right one 8 / 32, and T makes of that
    # a sigma of 3/4 and 1/4. The logits themselves would give the left tile 7.
    encoding = with_logits(views, [[math.log(16)] + [0.0] * 15] * 3)
    assert command(0.33, temperature=15 / 32 / math.log(3)).budgets(encoding) == [5, 6, 3]
    assert command(0.33, "reference", temperature=15 / 32 / math.log(3)).budgets(encoding) == [5, 7, 2]


def test_globalcom2_a_tile_is_compressed_from_the_tokens_that_show_the_image():
    views = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # rows 1 and 2 of 4
    assert command(0.5).budgets(with_logits(views, [[0.0] * 16] * 3)) == [8, 4, 4]


@few
@given(images(), st.floats(0.06, 1), seeds, modes)
def test_globalcom2_counts(views, ratio, seed, mode):  # (c)
    encoding = random_encoding(views, seed=seed)
    pruner = command(ratio, mode)
    kept = pruner.select(encoding, "q")
    floor = (lambda x: math.floor(x + 1e-9)) if mode == "paper" else math.floor
    scores = probabilities(encoding, 4)[0] if mode == "paper" else encoding.logits[4][0].double().mean(0)[1:].tolist()
    height, width = 6 // views.rows, 6 // views.columns
    g = [0.0] * views.tiles
    for p, s in enumerate(scores):
        g[p // 6 // height * views.columns + p % 6 // width] += s
    powers = [math.exp(x / 10) for x in g]
    wanted = [floor(36 * ratio)]
    for i, p in enumerate(powers):
        wanted.append(floor(int(views.valid[i + 1].sum()) * min(1, ratio * (1 + p / sum(powers) - 1 / views.tiles))))
    counts = [len(index) for index in kept.indices]
    assert all(abs(c - w) <= (i > 0) for i, (c, w) in enumerate(zip(counts, wanted, strict=True)))  # 1e-8 and float32 may tip a floor
    source = pack(views, kept, pruner.newline_policy)
    rows = 6 * views.rows if mode == "reference" else len(views.unpadded) if views.unpadded.numel() else 0
    assert int((source == NEWLINE).sum()) == rows
    assert len(source) == sum(counts) + rows


@few
@given(st.sampled_from(GRIDS), seeds, st.integers(1, 9))
def test_globalcom2_a_constant_on_all_logits(grid, seed, constant):  # (d)
    encoding, shifted = (random_encoding(full(*grid), seed=seed) for _ in range(2))
    for one, c in ((encoding, 0), (shifted, constant)):
        one.logits[4] = (one.logits[4] * 64).round() / 64 + c  # so that adding c is exact
    pruner = command(0.5, "reference")
    assert pruner.budgets(encoding) == pruner.budgets(shifted)
    assert lists(pruner.select(encoding, "q"))[0] == lists(pruner.select(shifted, "q"))[0]


def test_globalcom2_a_constant_on_all_logits_changes_what_tiles_keep_in_the_reference_mode():  # (d)
    encoding = random_encoding(full(2, 2))
    encoding.logits[4][0] *= 10  # the norm makes thumbnail and tile count the same, a constant brings their scales back
    before = {mode: lists(command(0.5, mode).select(encoding, "q")) for mode in MODES}
    encoding.logits[4] = encoding.logits[4] + 8
    assert lists(command(0.5, "reference").select(encoding, "q"))[1:] != before["reference"][1:]
    assert lists(command(0.5, "paper").select(encoding, "q")) == before["paper"]  # a softmax does not see it


@pytest.mark.parametrize("mode", MODES)
def test_globalcom2_ratio_1_is_not_the_untouched_model(mode):  # (e)
    kept = command(1.0, mode).select(random_encoding(full(2, 2)), "q")
    counts = [len(index) for index in kept.indices]
    assert counts[0] == 36
    assert max(counts[1:]) == 36
    assert min(counts[1:]) < 36


def test_globalcom2_ranks_by_the_sum_of_both_normed_scores():
    views = full(1, 2, side=4)
    thumbnail = [0.0] * 4 + [100.0] * 4 + [0.0] * 8  # its row 1; over a tile, 8 of 100 have the norm 200, or 0.5 each
    tile = [0.0] * 15 + [1.0]  # norm 1: ahead of 0.5, though it is smaller than 100
    encoding = with_logits(views, [thumbnail, tile, [0.0] * 16])
    # Without the tile's own scores 4 and 5 would stay, also without the norms; without the thumbnail's 0 and 15.
    assert lists(command(0.125, "reference").select(encoding, "q")) == [[4, 5], [4, 15], [4, 5]]


def test_globalcom2_the_thumbnail_is_laid_over_the_image_without_its_padding():
    views = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = torch.tensor([0.0, 2.0, 10.0, 20.0]).repeat_interleave(4)
    wanted = [0.0] * 4 + [1.0] * 4 + [15.0] * 4 + [0.0] * 4  # a row of the image shows the mean of two rows of the thumbnail
    assert thumbnail_guide(views, rows).tolist() == [[0.0] * 16, wanted, wanted]
    columns = torch.tensor([0.0, 8.0]).repeat(2)
    guide = thumbnail_guide(full(1, 2, side=2), columns).tolist()  # 2 columns become 4, half a column apart
    assert guide == [[0.0] * 4, [0.0, 2.0, 0.0, 2.0], [6.0, 8.0, 6.0, 8.0]]


def test_globalcom2_an_image_cut_to_nothing_keeps_its_thumbnail():
    views = ViewGeometry(6, 1, 2, (1, 400), newline=True)
    assert not views.valid[1:].any()
    assert [len(index) for index in command(0.5).select(random_encoding(views), "q").indices] == [18, 0, 0]
