"""FasterVLM: the laws that its specification states, the numbers it prints, and small cases by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import random_encoding
from support.view_pruners import GRIDS, MODES, best, faster, few, full, images, lists, modes, probabilities, ratios, seeds, with_logits

from blink_exp.core.views import ViewGeometry, pack


@few
@given(images(), ratios, seeds)
def test_fastervlm_reference_counts_k_for_every_view_padding_or_not(views, ratio, seed):
    pruner = faster(ratio, "reference")
    kept = pruner.select(random_encoding(views, seed=seed), "q")
    assert [len(index) for index in kept.indices] == [int(36 * ratio)] * views.count  # (a), (e)
    source = pack(views, kept, pruner.newline_policy)
    assert len(source) == int(36 * ratio) * views.count  # all of them reach the LLM, and nothing else does


def test_fastervlm_reference_keeps_padding_that_scores_well():
    views = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = [[0.0] * 16, [9.0] * 4 + [0.0] * 12, [0.0] * 12 + [9.0] * 4]
    encoding = with_logits(views, rows, layer=3)
    assert lists(faster(0.25, "reference").select(encoding, "q"))[1:] == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert lists(faster(0.25).select(encoding, "q"))[1:] == [[4, 5, 6, 7], [4, 5, 6, 7]]
    assert len(faster(0.75).select(encoding, "q").indices[1]) == 8  # fewer than k = 12 show the image


@few
@given(st.sampled_from(GRIDS), st.floats(0.06, 0.99), seeds)
def test_fastervlm_keeps_the_same_number_in_every_full_view(grid, ratio, seed):  # (e)
    encoding = random_encoding(full(*grid), seed=seed)
    k = math.floor(36 * ratio + 1e-9)
    assert lists(faster(ratio).select(encoding, "q")) == [best(view, k) for view in probabilities(encoding, 3)]


@pytest.mark.parametrize("mode", MODES)
def test_fastervlm_at_ratio_1(mode):
    assert faster(1.0, mode).select(random_encoding(ViewGeometry(6)), "q") is None  # (b)
    padded = ViewGeometry(6, 2, 2, (640, 480), newline=True)
    kept = faster(1.0, mode).select(random_encoding(padded), "q")
    assert (kept is None) == (mode == "paper")
    if kept:
        assert len(pack(padded, kept, "none")) == 180


@few
@given(images(), ratios, ratios, seeds, modes)
def test_fastervlm_is_nested_in_k(views, one, other, seed, mode):  # (c)
    encoding = random_encoding(views, seed=seed)
    fewer, more = (faster(min(r, 0.99), mode).select(encoding, "q") for r in sorted((one, other)))
    assert all(set(a) <= set(b) for a, b in zip(lists(fewer), lists(more), strict=True))


@few
@given(st.sampled_from(GRIDS), st.floats(0.06, 0.99), seeds, modes, st.randoms(use_true_random=False))
def test_fastervlm_does_not_care_about_the_order_of_tiles(grid, ratio, seed, mode, random):  # (d)
    encoding = random_encoding(full(*grid), seed=seed)
    before = lists(faster(ratio, mode).select(encoding, "q"))
    order = list(range(1, encoding.views.count))
    random.shuffle(order)
    encoding.logits = {layer: logits[[0, *order]] for layer, logits in encoding.logits.items()}
    assert lists(faster(ratio, mode).select(encoding, "q")) == [before[i] for i in (0, *order)]
