"""HiRED: the laws that its specification states, the numbers it prints, and small cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.models import random_encoding
from support.view_pruners import GRIDS, MODES, best, few, full, hi, images, lists, modes, probabilities, seeds, with_logits

from blink_exp.core.views import ViewGeometry, pack
from blink_exp.methods.hired import tile_budgets


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("k", "ratio", "total", "thumbnail", "tiles"),
    [
        (4, 0.4, 1152, 576, 576),
        (4, 0.2, 576, 288, 288),
        (4, 0.1, 288, 144, 144),
        (3, 0.4, 921, 460, 461),
        (3, 0.2, 460, 230, 230),
        (2, 0.4, 691, 345, 346),
        (2, 0.2, 345, 172, 173),
    ],
)
def test_hired_budgets_as_printed(mode, k, ratio, total, thumbnail, tiles):  # (b)
    encoding = random_encoding(full(*{4: (2, 2), 3: (3, 1), 2: (2, 1)}[k], side=24), width=4)
    budgets = hi(ratio, mode).budgets(encoding)
    areas = {4: lambda p: p // 24 // 12 * 2 + p % 24 // 12, 3: lambda p: p // 24 // 8, 2: lambda p: p // 24 // 12}[k]
    if mode == "reference":
        areas = lambda p: p // (576 // k)  # noqa: E731
    marked = [areas(p) for p in best(probabilities(encoding, 1)[0], 288)]
    assert budgets == [thumbnail, *(tiles * marked.count(i) // 288 for i in range(k))]
    assert total - k <= sum(budgets) <= total


def test_hired_caps_thumbnail_and_tiles():
    budgets = hi(0.9).budgets(random_encoding(full(2, 2)))  # total 162: the thumbnail would get 81 of 36, the tiles get 126 of 144
    assert budgets[0] == 36
    assert 126 - 4 <= sum(budgets[1:]) <= 126
    assert tile_budgets([8, 0, 0, 2], 100, 36) == [36, 0, 0, 20]  # what a full tile cannot take is lost
    encoding = random_encoding(full(2, 1), heads=1)
    encoding.logits[1][0, 0, [35, 36]] = -9.0  # 34 of 36 are marked: 18 above, 16 below
    # Total 102, thumbnail 5. The other 97 are cut to 72 before they are shared: 72 * 18 / 34 is more than 36, 72 * 16 / 34 is 33.9.
    assert hi(0.95, alpha=0.05).budgets(encoding) == [5, 36, 33]


@few
@given(images(), st.floats(0.06, 1), st.floats(0, 1), seeds, modes)
def test_hired_never_exceeds_the_total_and_loses_less_than_a_token_a_tile(views, ratio, alpha, seed, mode):  # (a)
    encoding = random_encoding(views, seed=seed)
    total = math.floor(views.count * 36 * ratio + (1e-9 if mode == "paper" else 0))
    budgets = hi(ratio, mode, alpha).budgets(encoding)
    assert sum(budgets) <= total
    assert all(0 <= b <= 36 for b in budgets)
    ratio = min(ratio, 0.4)  # up to here no tile can be full at alpha = 0.5
    assert sum(hi(ratio, mode).budgets(encoding)) >= math.floor(views.count * 36 * ratio) - views.tiles


@few
@given(images(), st.floats(0.06, 0.99), seeds, modes)
def test_hired_keeps_at_most_its_budgets_and_all_of_them_without_padding(views, ratio, seed, mode):  # (c)
    for geometry in (views, full(views.rows, views.columns)):
        encoding = random_encoding(geometry, seed=seed)
        budgets = hi(ratio, mode).budgets(encoding)
        kept = hi(ratio, mode).select(encoding, "q")
        counts = [len(index) for index in kept.indices]
        assert all(c <= b for c, b in zip(counts, budgets, strict=True))
        if geometry.valid.all():
            assert counts == budgets
            assert lists(kept) == [best(s, b) for s, b in zip(probabilities(encoding, 3), budgets, strict=True)]


def test_hired_reference_wastes_budget_on_padding():
    views = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = [[0.0] * 16, [9.0] * 4 + [0.0] * 12, [9.0] * 3 + [0.0, 5.0] + [0.0] * 11]
    encoding = with_logits(views, rows, layer=3)
    encoding.logits[1] = torch.zeros(3, 1, 17)
    encoding.logits[1][0, 0, [1, 2, 3, 4, 9, 10, 11, 12]] = 5.0  # rows 0 and 2 are marked: 4 in every block, 4 in every band
    for mode, wanted in (("paper", [[4, 5, 6, 7], [4, 5, 6, 7]]), ("reference", [[], [4]])):
        pruner = hi(8.5 / 24, mode)  # total 17, thumbnail 8, tiles 9: 4 each
        assert pruner.budgets(encoding) == [8, 4, 4]
        assert lists(pruner.select(encoding, "q"))[1:] == wanted


@few
@given(st.sampled_from([(2, 1), (3, 1)]), st.floats(0.06, 0.99), st.floats(0, 1), seeds)
def test_hired_modes_agree_on_one_column_of_tiles(grid, ratio, alpha, seed):  # (d)
    views = full(*grid)
    total = views.count * views.tokens * ratio
    # The code's int() and this project's floor part where a product is a whole number but for what floats lose.
    assume(all(abs(x - round(x)) > 1e-6 for x in (total, int(total) * alpha, views.tokens * (1 - alpha))))
    encoding = random_encoding(views, seed=seed)
    assert hi(ratio, "paper", alpha).budgets(encoding) == hi(ratio, "reference", alpha).budgets(encoding)
    assert lists(hi(ratio, "paper", alpha).select(encoding, "q")) == lists(hi(ratio, "reference", alpha).select(encoding, "q"))


def test_hired_areas_are_blocks_in_the_paper_and_bands_in_the_code():
    views = full(2, 2, side=4)
    encoding = random_encoding(views, heads=1)
    encoding.logits[1] = torch.zeros(5, 1, 17)
    encoding.logits[1][0, 0, [1, 2, 5, 6]] = 5.0  # the upper left 2 x 2 patches; behind the CLS key, so one further
    assert hi(0.4, "paper", 0.75).budgets(encoding) == [16, 16, 0, 0, 0]  # total 32, 4 marks, all in the first block
    assert hi(0.4, "reference", 0.75).budgets(encoding) == [16, 8, 8, 0, 0]  # two each in the first two rows of the thumbnail


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", GRIDS)
def test_hired_even_marks_give_equal_budgets(mode, grid):  # (e)
    views = full(*grid, side=12)
    encoding = random_encoding(views, heads=1)
    patch = torch.arange(144)
    encoding.logits[1] = torch.zeros(views.count, 1, 145)
    encoding.logits[1][0, 0, 1:] = ((patch // 12 + patch % 12) % 2).float()  # a chessboard: half of every block and band
    total = math.floor(views.count * 144 * 0.3 + 1e-9)
    budgets = hi(0.3, mode).budgets(encoding)
    assert budgets == [total // 2] + [(total - total // 2) // views.tiles] * views.tiles


def test_hired_without_marks_shares_equally():
    for mode in MODES:
        assert hi(0.4, mode, 1.0).budgets(random_encoding(full(2, 2, side=24), width=4)) == [576, 144, 144, 144, 144]
        assert hi(0.2, mode, 1.0).budgets(random_encoding(full(2, 2, side=24), width=4)) == [576, 0, 0, 0, 0]


def test_hired_counts_marks_and_not_how_strong_they_are():
    encoding = random_encoding(full(2, 2), heads=1)
    before = hi(0.4).budgets(encoding)
    encoding.logits[1] = 5 * encoding.logits[1]  # the same order, another mass
    assert hi(0.4).budgets(encoding) == before


def test_hired_allocates_by_one_layer_and_selects_by_the_other():
    encoding, other = (random_encoding(full(2, 2), seed=seed) for seed in (0, 1))
    budgets, thumbnail = hi(0.2).budgets(encoding), lists(hi(0.2).select(encoding, "q"))[0]
    early = {**encoding.logits, 1: other.logits[1]}
    late = {**encoding.logits, 3: other.logits[3]}
    encoding.logits = early
    assert hi(0.2).budgets(encoding) != budgets
    assert lists(hi(0.2).select(encoding, "q"))[0] == thumbnail
    encoding.logits = late
    assert hi(0.2).budgets(encoding) == budgets
    assert lists(hi(0.2).select(encoding, "q"))[0] != thumbnail


def test_hired_floors_forgive_floats_in_the_paper_mode_only():
    encoding = random_encoding(full(2, 2, side=24), width=4)  # 2880 * 0.7 is 2016, and 2015.99... in floats
    assert hi(0.7, "paper", 1.0).budgets(encoding) == [576, 360, 360, 360, 360]
    assert hi(0.7, "reference", 1.0).budgets(encoding) == [576, 359, 359, 359, 359]


def test_hired_at_ratio_1():
    views = ViewGeometry(6, 2, 2, (640, 480), newline=True)
    assert hi(1.0).select(random_encoding(views), "q") is None
    kept = hi(1.0, "reference").select(random_encoding(views), "q")  # the code skips the selection, and the newlines with it
    assert torch.equal(pack(views, kept, "none"), torch.cat([torch.arange(36), views.unpadded.flatten()]))


def test_hired_reference_leaves_a_single_view_of_llava_next_whole():
    kept = hi(0.2, "reference").select(random_encoding(ViewGeometry(6, newline=True)), "q")
    assert lists(kept) == [list(range(36))]
    assert len(hi(0.2).select(random_encoding(ViewGeometry(6, newline=True)), "q").indices[0]) == 7


def test_hired_keeps_a_token_where_rounding_loses_all():
    encoding = random_encoding(full(2, 2))
    pruner = hi(0.007)  # a total of 1: half a token for the thumbnail, and less than one for every tile
    assert pruner.budgets(encoding) == [0, 0, 0, 0, 0]
    assert lists(pruner.select(encoding, "q")) == [best(probabilities(encoding, 3)[0], 1), [], [], [], []]
