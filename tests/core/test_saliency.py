"""Scorers and patch grids, by hand and against a full softmax."""

from __future__ import annotations

import math

import pytest
import torch

from blink_exp.core.saliency import SCORERS, AttentionInputs, PatchGrid, saliency_ratio
from blink_exp.errors import UserError


def seen(query, keys, visible=None) -> AttentionInputs:
    q, k = torch.tensor(query, dtype=torch.float), torch.tensor(keys, dtype=torch.float)
    q, k = q.view(1, 1, *q.shape), k.view(1, 1, *k.shape)
    visible = torch.ones(1, q.shape[2], k.shape[2], dtype=torch.bool) if visible is None else torch.tensor(visible)[None]
    return AttentionInputs(q, k, visible, torch.ones(1, q.shape[2], dtype=torch.bool), 1.0, lambda: q, lambda: k)


def test_a_two_by_two_image_by_hand():
    # Four visual tokens (columns 0-3) and the text token itself (column 4), keys chosen so that exp(q . k) is 6, 2, 1, 1 and 2.
    one = seen([[1.0]], [[math.log(6)], [math.log(2)], [0.0], [0.0], [math.log(2)]])
    columns = torch.arange(4)
    assert torch.allclose(SCORERS["attention"](one, columns), torch.tensor([[6, 2, 1, 1]]) / 12)  # the text key takes its share
    assert torch.allclose(SCORERS["attention_visual"](one, columns), torch.tensor([[6, 2, 1, 1]]) / 10)
    rho, region = saliency_ratio(PatchGrid(2, 2, 2).sums(SCORERS["attention"](one, columns)))
    assert rho.item() == pytest.approx(0.6)  # 6 / (6 + 2 + 1 + 1): the text key is in no patch
    assert region.item() == 0


def test_dot_product_is_shifted_to_be_non_negative_and_summed_over_heads():
    query = torch.tensor([[[[2.0]], [[1.0]]]])  # two heads
    keys = torch.tensor([[[[-1.0], [0.0], [1.0], [3.0]], [[0.0], [0.0], [0.0], [-2.0]]]])
    one = AttentionInputs(
        query * 9, keys * 9, torch.ones(1, 1, 4, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool), 0.1, lambda: query, lambda: keys
    )
    # raw sums -2, 0, 2, 4; the smallest becomes 0. Norm, RoPE and scale (the * 9 and 0.1) play no part.
    assert SCORERS["dot_product"](one, torch.arange(4)).tolist() == [[0, 2, 4, 6]]


def test_text_mean_averages_queries_and_each_sees_only_what_is_before_it():
    visible = [[True, True, True, False], [True, True, True, True]]
    one = seen([[1.0], [1.0]], [[0.0], [math.log(3)], [0.0], [math.log(5)]], visible)
    # query 0 sees weights 1, 3, 1; query 1 sees 1, 3, 1, 5
    wanted = (torch.tensor([1, 3]) / 5 + torch.tensor([1, 3]) / 10) / 2
    assert torch.allclose(SCORERS["text_mean"](one, torch.arange(2)), wanted[None])
    one.text[0, 0] = False  # a padded query has no say
    assert torch.allclose(SCORERS["text_mean"](one, torch.arange(2)), torch.tensor([[0.1, 0.3]]))


def test_one_key_head_serves_several_query_heads():
    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 5, 8)
    visible, text = torch.ones(2, 1, 5, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    grouped = AttentionInputs(q, k, visible, text, 0.3, lambda: q, lambda: k)
    wide = AttentionInputs(q, k.repeat_interleave(2, dim=1), visible, text, 0.3, lambda: q, lambda: k.repeat_interleave(2, dim=1))
    for name, scorer in SCORERS.items():
        assert torch.allclose(scorer(grouped, torch.arange(4)), scorer(wide, torch.arange(4)), atol=1e-6), name


def test_patch_sums_by_hand():
    scores = torch.arange(16.0)
    assert PatchGrid(2, 4, 4).sums(scores).tolist() == [0 + 1 + 4 + 5, 2 + 3 + 6 + 7, 8 + 9 + 12 + 13, 10 + 11 + 14 + 15]


def test_ratio_of_nothing_is_that_of_no_focus():
    rho, _ = saliency_ratio(torch.zeros(1, 4))
    assert rho.item() == 0.25


def test_a_grid_that_does_not_divide_names_those_that_do():
    with pytest.raises(UserError, match=r"grid.p=5 does not divide the 12 x 12 .* use one of 1, 2, 3, 4, 6, 12"):
        PatchGrid(5, 12, 12)
