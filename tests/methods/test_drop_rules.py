"""FastV and SparseVLM: what they decide, and what a decision does to a sequence, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support.drop import Depth, peaks_by_hand

from blink_exp.core.method import Scan
from blink_exp.core.sequence import Layout, Retain
from blink_exp.decoder.segments import Segment, retain, starts
from blink_exp.errors import UserError
from blink_exp.methods import fastv, sparsevlm
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.sparsevlm import SCHEDULES, SparseVLMPolicy, counts, density_peaks, layer_average, scaled_schedule, text_raters

# --- numbers of tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "after", "average"),
    [(192, [309, 204, 113], 192.03), (128, [312, 117, 39], 128.63), (96, [249, 55, 27], 96.94), (64, [82, 32, 18], 64.81)],
)
def test_the_published_lists_give_the_published_counts(target, after, average):
    assert counts(576, SCHEDULES[target]) == after
    assert layer_average(576, after) == pytest.approx(average, abs=0.006)


def test_a_retention_ratio_scales_the_first_list_to_that_layer_average():
    assert [math.floor(s * 576) for s in scaled_schedule(0.5)] == [496, 331, 182]
    assert [math.floor(s * 576) for s in scaled_schedule(0.25)] == [212, 141, 78]
    for depth, layers in ((32, (2, 6, 15)), (4, (0, 1, 2)), (40, (2, 8, 19))):
        for ratio in (0.1, 0.3, 0.55, 0.8, 0.9, 0.97, 1):  # also where a share must be cut to 1
            shares = scaled_schedule(ratio, layers, depth)
            assert layer_average(1, shares, layers, depth) == pytest.approx(ratio)
            assert list(shares) == sorted(shares, reverse=True)
            assert 0 < min(shares) <= max(shares) <= 1
    with pytest.raises(UserError, match=r"retention_ratio=0.06 cannot be met.*0\.0625"):
        scaled_schedule(0.06)


def test_pruning_is_never_the_identity():
    for visual in (1, 2, 17):
        (after,) = counts(visual, [10**6])
        assert after == visual  # one token pruned, one cluster of one token back
    policy = SparseVLMPolicy((0,), (99,))
    decision = policy.decide(0, Scan(0, "", 0, False, token_scores=(0.3, 0.1, 0.2), distances=lambda i: torch.zeros(len(i), len(i))))
    assert decision == Retain((0, 2), ((1,),))


def test_fastv_says_once_that_it_keeps_one_token_of_a_ratio_that_rounds_to_none(caplog):
    for _ in range(2):
        assert FastVPolicy(2, 0.00125).budget(144) == 1
    (record,) = caplog.records
    assert record.getMessage() == "retention_ratio=0.00125 rounds to no token of 144 visual ones; fastv keeps one"
    assert FastVPolicy(2, 0.5).budget(0) == 1  # a prompt without visual tokens is no rounding
    assert len(caplog.records) == 1


def test_fastv_keeps_the_best_in_order_and_rounds_as_told():
    def kept_tokens(ratio, scores, mode="paper"):
        return FastVPolicy(2, ratio, mode).decide(1, Scan(1, "", 0, False, token_scores=scores)).indices

    assert kept_tokens(0.5, (0.1, 0.4, 0.2, 0.3)) == (1, 3)
    assert kept_tokens(0.5, (0.2, 0.1, 0.2, 0.2)) == (0, 2)  # a tie goes to the lower index
    assert kept_tokens(0.01, (0.1, 0.4, 0.2)) == (1,)  # at least one stays
    assert [len(kept_tokens(0.5, tuple(range(231)), mode)) for mode in ("paper", "reference")] == [115, 116]
    assert len(kept_tokens(0.5, tuple(range(5)), "reference")) == 2  # 2.5: half to even
    assert len(kept_tokens(0.7, tuple(range(2880)))) == 2016  # int(2880 * 0.7) is 2015


# --- raters and clusters ----------------------------------------------------------------------------------------------------------


def test_raters_weigh_more_than_the_mean():
    text = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    assert text_raters(torch.tensor([[1.0, 0.0]]), text).tolist() == [True, False, False]
    assert text_raters(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), text).tolist() == [True, True, False]
    # The softmax is over text tokens, so each visual token has one vote: three for the first outweigh one very loud for the second.
    assert text_raters(torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 9.0]]), text).tolist() == [True, False, False]
    assert text_raters(torch.ones(5, 2), text[:1]).tolist() == [True]  # a single token is not above the mean: all are taken


@pytest.mark.parametrize(("tokens", "clusters"), [(1, 1), (7, 1), (10, 2), (19, 2), (20, 3), (45, 5)])
def test_clusters_are_those_of_the_loops(tokens, clusters):
    for seed in range(20):
        x = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        groups = density_peaks(d, clusters)
        assert groups == peaks_by_hand(d.tolist(), clusters)
        assert sorted(i for group in groups for i in group) == list(range(tokens))
    assert len(groups) == clusters


def test_of_two_equally_dense_tokens_the_lower_index_is_the_centre():
    x = torch.tensor([[10.0], [0.0], [1.0], [12.5]])  # 1 and 2 are each other's nearest: with two clusters their densities are equal
    # exp(-1/2) each. The lower index, 1, is the densest, so its separation is the largest distance, 12.5, and that of 2 only the 1 between
    # them: centre 1 comes before centre 2. Had the tie gone the other way, 2 would come first.
    assert density_peaks(torch.cdist(x, x), 2) == [(1,), (0, 2, 3)]
    assert density_peaks(torch.zeros(4, 4), 2) == [(0, 2, 3), (1,)]  # all alike: every choice is the lowest index


# --- surgery ----------------------------------------------------------------------------------------------------------------------


def blocks_of(row: str) -> tuple[list[Segment], int]:
    """The images' segments of a row ('v' a visual token, 't' text) and how many tokens stand behind them. A token's state is its number
    in the row, from 1."""
    layout = Layout.of(torch.tensor([[c == "v" for c in row]]), None, None)
    *blocks, text = layout.index[0]
    return [Segment(index[:, None] + 1.0, n, index=index) for index, n in zip(blocks, layout.visual[0], strict=True)], len(text)


def tokens(blocks) -> list[float]:
    return torch.cat([block.states for block in blocks])[:, 0].tolist()


def places(blocks) -> list[float]:
    return [n for block, start in zip(blocks, starts(blocks), strict=False) for n in block.positions(start).tolist()]


def test_retain_cuts_all_images_as_one_range_and_puts_means_behind_the_last():
    blocks, text = blocks_of("tvvvtvvt")
    assert text == 1
    left = retain(blocks, Retain((0, 3), ((1, 2), (4,))), 0, inherit=False)  # visual tokens are numbers 2 3 4 | 6 7
    assert tokens(left) == [1, 2, 5, 6, 3.5, 7]
    assert [block.visual for block in left] == [1, 3]
    assert places(left) == list(range(6)) and starts(left)[-1] == 6  # without gaps
    assert [block.index.tolist() for block in left] == [[0, 1], [4, 5, -1, -1]]  # merged tokens have no place in the prompt
    again = retain(left, Retain((3,)), 0, inherit=False)  # and once more, over what is left
    assert tokens(again) == [1, 5, 7] and [block.visual for block in again] == [0, 1]
    one, _ = blocks_of("tvvvvvvttt")
    left = retain(one, Retain((0, 5), ((1, 2, 3, 4),)), 0, inherit=False)
    assert tokens(left) == [1, 2, 7, 4.5]
    assert tokens(retain(left, Retain((0,), ((1, 2),)), 0, inherit=False)) == [1, 2, 5.75]


def test_an_image_of_which_nothing_stays_leaves_its_text():
    blocks, _ = blocks_of("tvvtvvt")
    left = retain(blocks, Retain((2, 3)), 0, inherit=True)
    assert tokens(left) == [1, 4, 5, 6] and places(left) == [0, 3, 4, 5] and starts(left)[-1] == 6  # gaps stay
    blocks, _ = blocks_of("vvttvvt")
    left = retain(blocks, Retain((3,)), 0, inherit=True)
    assert tokens(left) == [3, 4, 6] and places(left) == [2, 3, 5] and starts(left)[-1] == 6
    alone = retain([Segment(torch.full((4, 1), 5.0), 4)], Retain((), ((0, 1, 2, 3),)), 0, inherit=False)
    assert tokens(alone) == [5.0]  # the mean of identical tokens is that token


# --- settings ---------------------------------------------------------------------------------------------------------------------


def test_layers_are_scaled_to_the_backbones_depth():
    for depth, layers in ((32, (1,)), (40, (1,)), (64, (3,)), (4, (0,))):
        assert fastv.configure(Depth(depth)).policy.layers == layers
    assert fastv.configure(Depth(4), full_layers=3, relative=False).policy.layers == (2,)
    for depth, layers in ((32, (2, 6, 15)), (40, (2, 8, 19)), (4, (0, 1, 2))):
        assert sparsevlm.configure(Depth(depth)).policy.layers == layers
    policy = sparsevlm.configure(Depth(32), schedule=None, retention_ratio=0.25).policy
    assert [math.floor(576 * share) for share in policy.shares] == [212, 141, 78]


def test_wrong_settings_are_one_line_with_the_cure():
    deep = Depth(32)
    for call, word in (
        (lambda: fastv.configure(deep, retention_ratio=0), r"retention_ratio=0 is outside \(0, 1\]"),
        (lambda: fastv.configure(deep, full_layers=0), "full_layers=0 leaves no layer"),
        (lambda: fastv.configure(deep, full_layers=32), "full_layers=32 is 32 layers"),
        (lambda: fastv.configure(deep, mode="papper"), "did you mean paper"),
        (lambda: sparsevlm.configure(deep, schedule=100), "schedule=100 has no list; use one of 192, 128, 96, 64"),
        (lambda: sparsevlm.configure(deep, retention_ratio=0.5), "give one of them"),
        (lambda: sparsevlm.configure(deep, schedule=None), "give one of them"),
        (lambda: sparsevlm.configure(deep, schedule=None, retention_ratio=2), "retention_ratio=2 is outside"),
        (lambda: sparsevlm.configure(deep, schedule=[5, 4]), "needs a number of at least 1 for each"),
        (lambda: sparsevlm.configure(deep, schedule=[5, 4, 0]), "needs a number of at least 1 for each"),
        (lambda: sparsevlm.configure(deep, layers=[2, 40, 50]), "layer=40 is outside"),
        (lambda: sparsevlm.configure(Depth(2)), "fall together"),
    ):
        with pytest.raises(UserError, match=word):
            call()
