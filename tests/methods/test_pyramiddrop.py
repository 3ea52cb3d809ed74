"""PyramidDrop: what stays in each stage, and the schedule of a budget, by hand."""

from __future__ import annotations

import pytest
from support.drop import Depth, Gridded

from blink_exp.core.method import Scan
from blink_exp.core.sequence import Retain
from blink_exp.errors import UserError
from blink_exp.methods import pyramiddrop
from blink_exp.methods.pyramiddrop import PyramidDropPolicy, layer_average, pyramid


def average(policy: PyramidDropPolicy, visual: int = 576, depth: int = 32) -> float:
    return sum(policy.layer_tokens(visual, depth)) / depth


def scan(scores, visual, images=()) -> Scan:
    return Scan(7, "", 0, False, visual=visual, image_tokens=images, token_scores=tuple(scores))


def test_the_published_schedule():
    policy = pyramiddrop.configure(Depth(32), retention_ratio=0.46875).policy
    assert policy == PyramidDropPolicy((7, 15, 23), (0.5, 0.25, 0.125))  # exactly, or int() would lose a token
    assert policy.layer_tokens(576, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert average(policy) == 270
    assert pyramiddrop.configure(Gridded(), tokens=270).policy == policy
    assert pyramiddrop.configure(Gridded(tiled=True), tokens=1350).policy == policy  # 270 of each of five views
    assert pyramiddrop.configure(Depth(32), ratios=[0.5, 0.25, 0.125]).policy == policy  # whatever retention_ratio says
    assert policy.reads == "next_attention" and not policy.inherit_positions


def test_shares_are_of_the_prompt_s_tokens_and_products_are_cut():
    policy = PyramidDropPolicy(ratios=(0.29, 0.29, 0.1))
    assert policy.kept(100) == [28, 28, 10]  # .29 * 100 is 28.999999999999996
    assert PyramidDropPolicy().kept(576) == [288, 144, 72]  # not halves of what is left
    assert PyramidDropPolicy().kept(3) == [1, 1, 1]  # int(3 / 4) is none: one stays
    assert PyramidDropPolicy(ratios=(0.25, 0.5, 0.125)).kept(16) == [4, 4, 2]  # what is gone does not come back
    assert PyramidDropPolicy(ratios=None, schedule=(50, 20, 10)).kept(30) == [30, 20, 10]  # a pruner has left fewer


def test_the_best_stay_in_their_old_order():
    policy = PyramidDropPolicy((7, 15), (0.5, 0.25))
    assert policy.decide(7, scan([0.1, 0.3, 0.3, 0.2, 0.3, 0.0], 6)) == Retain((1, 2, 4))
    assert policy.decide(7, scan([0.3, 0.3, 0.3, 0.3, 0.1, 0.0], 6)) == Retain((0, 1, 2))  # a tie goes to the lower index
    assert policy.decide(15, scan([0.1, 0.3, 0.2], 6)) == Retain((1,))  # int(6 / 4) of the 6 that were there


def test_several_images_are_one_range_or_the_first_alone():
    scores = [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6]
    assert PyramidDropPolicy((7,), (0.5,)).decide(7, scan(scores, 8, (4, 4))) == Retain((4, 5, 6, 7))
    first = PyramidDropPolicy((7, 15), (0.5, 0.25), mode="reference")
    assert first.decide(7, scan(scores, 8, (4, 4))) == Retain((2, 3, 4, 5, 6, 7))
    assert first.decide(15, scan(scores[:2] + scores[4:], 8, (2, 4))) == Retain((1, 2, 3, 4, 5))  # a quarter of 4
    assert first.decide(7, scan(scores, 8, (8,))) == Retain((4, 5, 6, 7))  # one image: no difference


@pytest.mark.parametrize(
    ("tokens", "layers", "counts"),
    [
        (400, (15, 23), [298, 149]),  # the first stage would keep everything
        (192, (5, 11, 17), [215, 107, 53]),
        (128, (3, 7, 12), [159, 79, 39]),
        (64, (1, 3, 6), [91, 45, 22]),
        (32, (0, 1, 2), [51, 25, 12]),
    ],
)
def test_one_factor_scales_layers_and_ratios(tokens, layers, counts):
    """192: t solves (3 t^2 + 12 t) / 32 = 1/3, so t = 0.749: layers 5.99, 11.98, 17.97 and, after rounding, a factor of 0.747."""
    policy = pyramiddrop.configure(Gridded(), tokens=tokens).policy
    assert policy.layers == layers and policy.kept(576) == counts
    assert tokens - 1 < average(policy) <= tokens


def test_every_budget_is_met_and_more_budget_is_never_less():
    for depth in (4, 28, 32, 40):
        shares = [n / 64 for n in range(64 // depth + 2 if depth > 4 else 17, 65)]
        for share in shares:
            layers, ratios = pyramid(share, depth)
            assert layer_average(ratios, layers, depth) == pytest.approx(share)
            assert 0 < layers[0] < layers[1] < layers[2] < depth and 1 >= ratios[0] >= ratios[1] >= ratios[2] > 0
        sums = [average(pyramiddrop.configure(Depth(depth), retention_ratio=s).policy, 100_000, depth) for s in shares]
        assert sums == sorted(sums)
    assert pyramiddrop.configure(Gridded(), tokens=576).policy.layers == ()  # the untouched model


def test_layers_are_scaled_to_the_backbone_s_depth():
    for depth, layers in ((32, (7, 15, 23)), (40, (9, 19, 29)), (28, (6, 13, 20)), (4, (0, 1, 2))):
        policy = pyramiddrop.configure(Depth(depth)).policy
        assert policy.layers == layers and policy.ratios == pytest.approx((0.5, 0.25, 0.125))
    assert pyramiddrop.configure(Depth(40), ratios=[0.5, 0.25, 0.125], relative=False).policy.layers == (7, 15, 23)
    given = pyramiddrop.configure(Gridded(), layers=[4, 20], tokens=192).policy  # VScan's form: layers of one's own
    assert given.layers == (3, 19) and given.ratios[0] == pytest.approx(2 * given.ratios[1])
    assert 191 < average(given) <= 192
    assert pyramiddrop.configure(Depth(32), layers=[16], schedule=[32]).policy.layer_tokens(96, 32) == [96] * 16 + [32] * 16


def test_wrong_settings_are_one_line_with_the_cure():
    for settings, word in (
        ({"tokens": 18}, r"tokens=18 cannot be met: the layers before the first stage \(1\) make 18; use more"),
        ({"retention_ratio": 0.03}, r"retention_ratio=0.03 cannot be met: .* make 0.03125; use more"),
        ({"layers": [8, 16], "tokens": 128}, r"tokens=128 cannot be met: the layers before the first stage \(8\) make 144"),
        ({"layers": [8, 8]}, "spread them"),
        ({"layers": [16, 8]}, "sort them"),
        ({"layers": [8, 32]}, "use 1 to 31"),
        ({"layers": [0, 8]}, "use 1 to 31"),
        ({"ratios": [0.5, 0.25]}, r"ratios=\[0.5, 0.25\] needs one number for each of the stages from layers \[8, 16, 24\]"),
        ({"ratios": [0.5, 0.25, 2.0]}, r"ratios=2.0 is outside \(0, 1\]"),
        ({"schedule": [5, 4, 0]}, "schedule=.* keeps no token"),
        ({"schedule": [5, 4, 3], "ratios": [0.5, 0.25, 0.1]}, "one of them sets the schedule"),
        ({"schedule": [5, 4, 3], "tokens": 192}, "one of them sets the schedule"),
        ({"mode": "papper"}, "did you mean paper"),
        ({"retention_ratio": 0}, r"retention_ratio=0 is outside"),
    ):
        with pytest.raises(UserError, match=word):
            pyramiddrop.configure(Gridded(), **settings)
    with pytest.raises(UserError, match="spread them"):
        pyramiddrop.configure(Depth(3))


@pytest.mark.parametrize("depth", [26, 28, 32, 40])
def test_the_published_average_is_the_published_ratios_at_every_depth(depth):
    """At 26 layers the stages fall on 6, 12 and 20, whose average with these ratios is not the published one."""
    assert pyramid(0.46875, depth)[1] == (0.5, 0.25, 0.125)
