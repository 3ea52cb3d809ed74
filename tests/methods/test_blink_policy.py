"""Blink's decisions, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blink_exp.core.method import Scan
from blink_exp.core.sequence import Drop, Expand, Keep
from blink_exp.errors import UserError
from blink_exp.methods.blink import BlinkPolicy, relative_layers, scaled_threshold, selected_layers

LAYERS = (12, 13, 14)


def scan(rho, layer=12, sample="a", expanded=False):
    return Scan(layer, sample, 0, expanded, rho, 3, ())


@pytest.mark.parametrize(
    ("rho", "wanted"), [(0.51, Expand(3)), (0.5, Keep()), (0.45, Keep()), (0.4, Keep()), (0.39, Drop()), (0.25, Drop())]
)
def test_thresholds_and_equality_leaves_alone(rho, wanted):
    assert BlinkPolicy(LAYERS, 0.5, 0.4).decide(12, scan(rho)) == wanted


def test_expansion_is_tested_first():
    assert BlinkPolicy(LAYERS, 0.25, 0.4).decide(12, scan(0.3)) == Expand(3)  # the paper's 0.25 / 0.4 always expands


def test_cycle_ignores_rho_and_starts_with_expand():
    policy = BlinkPolicy(LAYERS, resolution="cycle")
    assert [policy.decide(i, scan(0.01, i)) for i in LAYERS] == [Expand(3), Drop(), Expand(3)]


def test_expand_once_and_copy_act_at_the_first_layer_only():
    for how, amplify in (("expand_once", True), ("copy", False)):
        policy = BlinkPolicy(LAYERS, resolution=how)
        assert [policy.decide(i, scan(0.01, i)) for i in LAYERS] == [Expand(3, amplify=amplify), Keep(), Keep()]


def test_random_is_seeded_by_sample_and_layer_and_covers_all():
    policy = BlinkPolicy(LAYERS, saliency="random")
    draws = [policy.decide(12, Scan(12, f"s{i}", 0, False)) for i in range(600)]
    assert draws == [policy.decide(12, Scan(12, f"s{i}", 0, True)) for i in range(600)]  # the sequence's state has no say
    expansions = [d.region for d in draws if isinstance(d, Expand)]
    assert {Expand, Drop, Keep} == set(map(type, draws))
    assert all(120 <= sum(isinstance(d, kind) for d in draws) <= 280 for kind in (Expand, Drop, Keep))
    assert all(25 <= expansions.count(r) <= 80 for r in range(4))
    assert draws != [policy.decide(13, Scan(13, f"s{i}", 0, False)) for i in range(600)]
    assert draws != [BlinkPolicy(LAYERS, saliency="random", seed=1).decide(12, Scan(12, f"s{i}", 0, False)) for i in range(600)]


@pytest.mark.parametrize("resolution", ["threshold", "cycle", "expand_once", "copy"])
def test_a_random_region_keeps_the_actions_and_draws_the_region(resolution):
    attended, drawn = (BlinkPolicy(LAYERS, 0.5, 0.4, resolution=resolution, saliency=s) for s in ("attention", "random_region"))
    assert drawn.scorer is attended.scorer
    regions = []
    for layer in LAYERS:
        for n, rho in enumerate((0.7, 0.5, 0.45, 0.39, 0.51) * 60):
            scanned = scan(rho, layer, f"s{n}")
            wanted, got = attended.decide(layer, scanned), drawn.decide(layer, scanned)
            assert replace(got, region=3) == wanted if isinstance(wanted, Expand) else got == wanted
            assert got == drawn.decide(layer, replace(scanned, expanded=True, region=1, patch_scores=(1.0,)))
            regions += [got.region] if isinstance(got, Expand) else []
    assert all(0.15 < regions.count(r) / len(regions) < 0.35 for r in range(4))


def test_a_random_region_is_drawn_as_without_saliency_by_sample_image_layer_and_seed():
    def region(seed=0, sample="a", image=0, layer=12, saliency="random_region"):
        policy = BlinkPolicy(LAYERS, saliency=saliency, resolution="copy" if layer == 12 else "cycle", p=4, seed=seed)
        return policy.decide(layer, Scan(layer, sample, image, False, 0.9, 3)).region

    assert [region(sample=f"s{n}") for n in range(20)] == [region(sample=f"s{n}", saliency="random") for n in range(20)]
    names = [f"s{n}" for n in range(20)]
    first = [region(sample=name) for name in names]
    assert first != [region(1, name) for name in names] != [region(sample=name, image=1) for name in names]
    assert first != [region(sample=name, image=1) for name in names] and first != [region(sample=name, layer=14) for name in names]


def test_thresholds_scale_with_the_grid_as_appendix_e_prints_them():
    assert scaled_threshold(0.5, 3) == pytest.approx(0.2222, abs=1e-4)
    assert scaled_threshold(0.4, 4) == pytest.approx(0.1)


def test_layers():
    assert selected_layers(32, indices="12-18", base=0, relative=True) == tuple(range(12, 19))
    assert selected_layers(32, indices="12-18", base=1, relative=True) == tuple(range(11, 18))
    assert selected_layers(8, indices=[7], base=1, relative=False) == (6,)
    assert selected_layers(8, indices="all", base=0, relative=True) == tuple(range(8))
    assert selected_layers(40, indices=[12, 18], base=0, relative=True) == (15, 22)
    assert selected_layers(40, indices=[12, 18], base=0, relative=False) == (12, 18)
    assert selected_layers(32, indices=[], base=0, relative=True) == ()
    with pytest.raises(UserError, match="layer=32 is outside the backbone's 32 layers; use 0 to 31"):
        relative_layers([32], 32)
    with pytest.raises(UserError, match="layers.indices=null names no layer"):
        selected_layers(32, indices=None, base=0, relative=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau_expand": 1.2}, r"tau_exp=1.2 is outside \[0, 1\]"),
        ({"tau_drop": -0.1}, r"tau_drop=-0.1 is outside \[0, 1\]"),
        ({"saliency": "atention"}, "did you mean attention"),
        ({"resolution": "tresholds"}, "did you mean threshold"),
        ({"on_reexpand": "add"}, "on_reexpand=add is not known"),
    ],
)
def test_bad_values_say_value_limit_and_cure(settings, message):
    with pytest.raises(UserError, match=message):
        BlinkPolicy(LAYERS, **settings)
