"""PruMerge+. Oracles are written out by hand or as plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import LETTERBOX, layouts
from support.models import random_encoding

from blink_exp.core.views import EXTRA, NEWLINE, ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods import prumerge_plus
from blink_exp.methods.prumerge_plus import PruMergePlus, choose, grid, merge, outliers, single_head_attention

few = settings(max_examples=30, deadline=None)
# 0 to 100 and at least four: quartiles are then multiples of 1/4 and exact in float32.
whole_scores = st.lists(st.integers(0, 100), min_size=4, max_size=60)


# Written-out PruMerge+


def quartile(values, q):
    values, at = sorted(values), q * (len(values) - 1)
    low = math.floor(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def kept_by_hand(a, factor=1.5, densify=3):
    """The kept patches of scores a: a list of outliers by falling score, a list of further grid patches."""
    q1, q3 = quartile(a, 0.25), quartile(a, 0.75)
    above = [i for i, x in enumerate(a) if x > q3 + factor * (q3 - q1)]
    count = len(above) or 1
    best = sorted(range(len(a)), key=lambda i: (-a[i], i))[:count]
    step = max(1, len(a) // count // densify)
    return best, [i for i in range(len(a)) if i % step == 0 and i < len(a) - 1 and i not in best]


def attention_by_hand(query, keys):
    """(N + 1) probabilities, CLS first."""
    products = [sum(q * k for q, k in zip(query.tolist(), key.tolist(), strict=True)) / len(query) ** 0.5 for key in keys]
    total = sum(math.exp(p) for p in products)
    return [math.exp(p) / total for p in products]


def merged_by_hand(x, keys, a, chosen, neighbours, average):
    def cosine(i, j):
        return float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm()))

    out = []
    for i in chosen:
        near = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(i, j))[:neighbours]
        if average:
            out.append(sum(a[j] * x[j] for j in [i, *near]) / sum(a[j] for j in [i, *near]))
        else:
            out.append(x[i] + sum((a[j] * x[j] for j in near), torch.zeros_like(x[i])))
    left = [j for j in range(len(x)) if j not in chosen]
    extra = sum((a[j] * x[j] for j in left), torch.zeros_like(x[0]))
    return torch.stack(out), extra / sum(a[j] for j in left) if average and left else extra


# The adaptive ratio, the grid, the choice


@pytest.mark.parametrize(
    "ratio, step, size, total",
    [
        (0.02, 16, 36, 47),
        (0.04, 8, 72, 93),
        (0.055, 6, 96, 123),
        (0.08, 4, 144, 180),
        (0.10, 3, 192, 231),
        (0.125, 2, 288, 325),
        (0.15, 2, 288, 332),
        (0.17, 1, 575, 576),
        (0.25, 1, 575, 576),
        (1 / 576, 192, 3, 5),
    ],
)
def test_the_table_of_ratios(ratio, step, size, total):
    regular = grid(576, ratio)
    assert len(regular) == size and regular.tolist() == [i * step for i in range(size)] and 575 not in regular
    totals = []
    for seed in range(10):  # outliers at random places, as the table's totals assume
        a = torch.ones(576)
        count = int(576 * ratio + 1e-9)
        a[torch.randperm(576, generator=torch.Generator().manual_seed(seed))[:count]] += torch.linspace(1, 1.1, count)
        totals.append(len(choose(a)) + 1)
    assert abs(sum(totals) / len(totals) - total) < 2.5


def test_densify_divides_the_step_and_never_to_nothing():
    assert grid(576, 0.055, densify=1).tolist() == list(range(0, 575, 18))
    assert grid(10, 0.5, densify=9).tolist() == list(range(9))


def test_outliers_by_hand():
    body = [0, 1, 2, 3, 4, 5, 6]  # with two more, Q1 = 2 and Q3 = 6: the limit is 6 + 1.5 * 4 = 12
    assert outliers(torch.tensor([*body, 12.5, 13.0])) == 2
    assert outliers(torch.tensor([*body, 12.0, 13.0])) == 1  # strictly above
    assert outliers(torch.tensor([*body, 12.0, 19.0]), iqr_factor=3) == 1  # the limit is 18
    assert outliers(torch.tensor([*body, 17.0, 19.0]), iqr_factor=3) == 1
    assert outliers(torch.ones(36)) == 1  # none, which falls back to r = 1 / N


@few
@given(whole_scores, st.integers(1, 4))
def test_the_choice_agrees_with_the_written_out_one(a, densify):
    best, regular = kept_by_hand(a, densify=densify)
    assert choose(torch.tensor(a).float(), densify=densify).tolist() == best + regular


@few
@given(whole_scores, st.integers(-20, 20))
def test_scaling_all_scores_changes_nothing(a, power):
    scores = torch.tensor(a).float()
    assert torch.equal(choose(scores * 2.0**power), choose(scores))


@few
@given(whole_scores)
def test_a_quarter_are_outliers_at_most(a):
    assert outliers(torch.tensor(a).float()) <= max(1, len(a) / 4)


def test_attention_is_one_head_over_the_full_width_and_counts_cls():
    encoding = random_encoding(ViewGeometry(3), width=16)
    query, keys = encoding.queries[4][0], encoding.keys[4][0]
    torch.testing.assert_close(single_head_attention(query, keys), torch.tensor(attention_by_hand(query, keys)[1:]))


# Merging


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("neighbours", [0, 1, 5, 32])
def test_merging_agrees_with_a_loop(average, neighbours):
    g = torch.Generator().manual_seed(neighbours)
    x, keys, a = torch.randn(20, 6, generator=g), torch.randn(20, 5, generator=g), torch.rand(20, generator=g)
    keys *= torch.linspace(0.1, 10, 20)[:, None]  # so that products and cosines rank differently
    chosen = [13, 2, 7, 19]
    merged, extra = merge(x, keys, a, torch.tensor(chosen), neighbours, average)
    expected, rest = merged_by_hand(x, keys, a, chosen, neighbours, average)
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(extra, rest[None])


def test_equal_features_grow_by_their_neighbours_weights():
    g = torch.Generator().manual_seed(3)
    x, keys, a = torch.randn(1, 6, generator=g).expand(50, 6), torch.randn(50, 5, generator=g), torch.rand(50, generator=g)
    chosen = torch.tensor([4, 40])
    for i, merged in zip(chosen.tolist(), merge(x, keys, a, chosen, 32)[0], strict=True):
        cosines = torch.nn.functional.cosine_similarity(keys[i][None], keys, dim=-1)
        near = [j for j in cosines.argsort(descending=True).tolist() if j != i][:32]
        torch.testing.assert_close(merged, x[0] * (1 + sum(float(a[j]) for j in near)))
    torch.testing.assert_close(merge(x, keys, a, chosen, 32, average=True)[0], x[:2])


@pytest.mark.parametrize("average", [False, True])
def test_weights_of_nothing_leave_patches_as_they_are(average):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    merged, extra = merge(x, x, torch.zeros(6), torch.arange(6), 3, average)
    assert torch.equal(merged, x) and torch.equal(extra, torch.zeros(1, 3))


# A whole selection


@layouts
@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_each_view_agrees_with_the_written_out_method(views, mode):
    encoding = random_encoding(views, width=4, seed=1)
    kept = PruMergePlus(4, neighbours=7, mode=mode).select(encoding, "")
    assert kept.by_view == (mode == "reference")
    for v in range(views.count):
        if mode == "paper" and not views.valid[v].any():
            assert not len(kept.indices[v]) and not len(kept.merged[v]) and not len(kept.extra[v])
            continue
        indices = [i for i in range(views.tokens) if mode == "reference" or views.valid[v, i]]
        a = attention_by_hand(encoding.queries[4][v], encoding.keys[4][v])[1:]
        a = [a[i] for i in indices]
        best, regular = kept_by_hand(a)
        chosen = best + regular if mode == "reference" else sorted(best + regular)
        assert kept.indices[v].tolist() == [indices[i] for i in chosen]
        merged, extra = merged_by_hand(encoding.hidden[v][indices], encoding.keys[4][v][1:][indices], a, chosen, 7, mode == "paper")
        torch.testing.assert_close(kept.merged[v], merged)
        torch.testing.assert_close(kept.extra[v], extra[None])
    source = pack(views, kept, "valid_rows")
    alive = views.count if mode == "reference" else int(views.valid.any(1).sum())
    assert int((source == EXTRA).sum()) == alive
    assert int((source != NEWLINE).sum()) == sum(map(len, kept.indices)) + alive
    rows = 0 if mode == "reference" or not views.tiles else len(views.unpadded)
    assert int((source == NEWLINE).sum()) == rows


def test_one_hot_attention_keeps_that_patch_and_three_of_the_grid():
    encoding = random_encoding(ViewGeometry(6), width=4)
    encoding.queries[4][0] = torch.tensor([100.0, 0, 0, 0])
    encoding.keys[4][0, :, 0] = 0
    encoding.keys[4][0, 1 + 7, 0] = 100  # r = 1 / 36: step int(36 / 3) = 12
    assert PruMergePlus(4, mode="reference").select(encoding, "").indices[0].tolist() == [7, 0, 12, 24]
    assert PruMergePlus(4, mode="paper").select(encoding, "").indices[0].tolist() == [0, 7, 12, 24]


def test_what_the_extra_token_holds_and_what_is_kept_share_all_attention_but_that_on_cls():
    encoding = random_encoding(LETTERBOX, width=4)
    encoding.hidden[:] = 1  # the extra token is then the sum of its weights
    kept = PruMergePlus(4, densify=1, mode="reference").select(encoding, "")
    for v in range(LETTERBOX.count):
        a = attention_by_hand(encoding.queries[4][v], encoding.keys[4][v])
        assert float(kept.extra[v][0, 0]) > 0
        assert float(kept.extra[v][0, 0]) + sum(a[1 + i] for i in kept.indices[v].tolist()) == pytest.approx(1 - a[0], abs=1e-5)


def test_padding_has_no_say_in_the_paper_mode():
    encoding, other = random_encoding(LETTERBOX, width=4), random_encoding(LETTERBOX, width=4)
    other.hidden[~LETTERBOX.valid] = 50.0
    other.keys[4][:, 1:][~LETTERBOX.valid] *= -1.5
    ours, theirs = (PruMergePlus(4).select(e, "") for e in (encoding, other))
    for v in range(LETTERBOX.count):
        assert torch.equal(ours.indices[v], theirs.indices[v])
        torch.testing.assert_close(ours.merged[v], theirs.merged[v])
        torch.testing.assert_close(ours.extra[v], theirs.extra[v])
    with_padding = PruMergePlus(4, mode="reference").select(encoding, "")
    assert any((~LETTERBOX.valid[v, i]).any() for v, i in enumerate(with_padding.indices))


def test_it_reads_its_own_layer_only():
    encoding = random_encoding(ViewGeometry(6))
    assert PruMergePlus(2).needs.keys == {2} and not PruMergePlus(2).needs.attention
    pruner = PruMergePlus(2)
    before = pruner.select(encoding, "")
    encoding.keys = {2: encoding.keys[2]}
    encoding.queries = {2: encoding.queries[2]}
    assert torch.equal(before.merged[0], pruner.select(encoding, "another question").merged[0])


def test_features_keep_their_precision():
    encoding = random_encoding(ViewGeometry(6))
    encoding.hidden = encoding.hidden.bfloat16()
    kept = PruMergePlus(4).select(encoding, "")
    assert kept.merged[0].dtype == kept.extra[0].dtype == torch.bfloat16


def backbone(depth=24):
    vision = SimpleNamespace(num_hidden_layers=depth)
    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vision_config=vision)), check=lambda needs: None)


def test_a_grid_denser_than_the_patches_is_refused():
    encoding = random_encoding(ViewGeometry(6))
    assert PruMergePlus(4, densify=36).select(encoding, "") is not None
    with pytest.raises(UserError, match="prumerge_plus.densify=37 is more than the 36 patches of a view; use at most 36"):
        PruMergePlus(4, densify=37).select(encoding, "")


def test_configured_on_a_backbone():
    method = prumerge_plus.configure(backbone(24))
    assert method.name == "prumerge_plus" and method.policy is None
    assert method.pruner == PruMergePlus(24, neighbours=32, iqr_factor=1.5, densify=3, mode="paper")
    assert prumerge_plus.configure(backbone(6), layer=2, mode="reference", neighbours=4).pruner == PruMergePlus(2, 4, mode="reference")


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"mode": "refrence"}, "did you mean reference"),
        ({"layer": 25}, "1 to 24"),
        ({"neighbours": -1}, "neighbours=-1"),
        ({"densify": 0}, "densify=0"),
        ({"iqr_factor": float("nan")}, "iqr_factor=nan"),
        ({"newline_policy": "rows"}, "newline_policy=rows"),
    ],
)
def test_wrong_settings_are_named(wrong, says):
    with pytest.raises(UserError, match=says):
        prumerge_plus.configure(backbone(24), **wrong)
