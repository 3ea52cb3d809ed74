"""The probe reads what is around an object's centre, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blink_exp.figures.headroom_probe import CLOSE, FULL, Objects, bounds, located, neighbourhood, objects_of, probe
from blink_exp.figures.verdicts import mean


def test_the_tokens_around_a_point_by_hand():
    assert neighbourhood(0.5, 0.5, 12).tolist() == [65, 66, 67, 77, 78, 79, 89, 90, 91]
    assert neighbourhood(0.0, 0.0, 12).tolist() == [0, 1, 2, 12, 13, 14, 24, 25, 26]  # moved inside
    assert neighbourhood(0.999, 0.999, 4).tolist() == [5, 6, 7, 9, 10, 11, 13, 14, 15]


def test_an_object_is_found_in_the_full_view_and_in_its_quadrant():
    places = located((0.5, 0.0, 0.75, 0.25), 12)  # its centre: 0.625, 0.125
    assert [int(number) for number, _ in places.values()] == [0, 2]  # the quadrant at the top right
    assert places[FULL][1][4] == 1 * 12 + 7 and places[CLOSE][1][4] == 3 * 12 + 3


@pytest.mark.parametrize(("noise", "low", "high"), [(0.1, 0.95, 1.0), (1e3, 0.2, 0.5)])
def test_a_probe_finds_what_is_there_and_no_more(noise, low, high):
    generator = torch.Generator().manual_seed(0)
    sides = []
    for count in (600, 400):
        labels = torch.randint(3, (count,), generator=generator)
        states = torch.nn.functional.one_hot(labels, 3).float().repeat(1, 9) + noise * torch.randn(count, 27, generator=generator)
        sides.append(Objects({(FULL, 0): states}, {"shape": labels}, np.zeros(count)))
    before = torch.get_rng_state()
    hits = probe(*sides, FULL, 0, "shape", 0)
    assert low <= hits.mean() <= high
    assert (probe(*sides, FULL, 0, "shape", 0) == hits).all() and torch.equal(torch.get_rng_state(), before)


def test_the_states_of_real_scenes_are_labelled_object_by_object(scale):
    """A probe trained on the close-ups of a few scenes knows the colours of others better than chance; on shuffled labels it does not."""
    train, test = (objects_of(scale, split, count, [0]) for split, count in (("train", 8), ("test", 4)))
    assert set(train.states) == {(FULL, 0), (CLOSE, 0)} and len(train.scene) == len(train.labels["color"]) == len(train.states[FULL, 0])
    assert probe(train, test, CLOSE, 0, "color", 0).mean() > 0.4
    order = torch.randperm(len(train.scene), generator=torch.Generator().manual_seed(1))
    shuffled = Objects(train.states, {"color": train.labels["color"][order]}, train.scene)
    assert probe(shuffled, test, CLOSE, 0, "color", 0).mean() < 0.3


def test_bounds_by_hand():
    right = {(FULL, 12, "shape"): 6, (FULL, 12, "color"): 8, (CLOSE, 12, "shape"): 10, (CLOSE, 12, "color"): 9}
    scores = {key: mean([1.0] * n + [0.0] * (10 - n)) for key, n in right.items()}
    (claim,) = bounds(scores, 12, {"none": 65.0, "TokenSR, by attention": 66.0})
    assert claim.numbers["from tokens at most (probe on the full view - none)"] == pytest.approx(5)
    assert claim.numbers["needs pixels (probe on the close-up - on the full view)"] == pytest.approx(25)
    assert claim.holds is True
    assert bounds(scores, 12, {})[0].holds is None
    nothing_there = {key: mean([0.0] * 9 + [1.0]) for key in scores}
    assert bounds(nothing_there, 12, {"none": 90.0, "TokenSR, by attention": 95.0})[0].holds is False
