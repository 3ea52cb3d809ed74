"""The controls: random tokens, a uniform grid, a smaller image."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import LETTERBOX, PILLARBOX, layouts
from support.models import random_encoding

from blink_exp.core.views import ViewGeometry
from blink_exp.errors import UserError
from blink_exp.methods import controls
from blink_exp.methods.controls import Downsample, RandomTokens, UniformGrid

few = settings(max_examples=30, deadline=None)
CONTROLS = (RandomTokens, UniformGrid, Downsample)
every_control = pytest.mark.parametrize("control", CONTROLS)


@every_control
@layouts
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.34, 0.5, 0.99])
def test_controls_keep_their_share_of_what_shows_the_image(control, views, ratio):
    encoding = random_encoding(views)
    kept = control(ratio).select(encoding, "what is it?")
    assert len(kept.indices) == views.count and not kept.by_view
    for v, index in enumerate(kept.indices):
        budget = math.floor(int(views.valid[v].sum()) * ratio + 1e-9)
        assert index.tolist() == sorted(set(index.tolist()))
        assert bool(views.valid[v][index].all())
        if control is Downsample:
            assert budget / 2 < len(index) <= budget or len(index) == budget == 0
            assert kept.merged[v].shape == (len(index), encoding.hidden.shape[-1])
        else:
            assert len(index) == budget and kept.merged is None
    again = control(ratio).select(encoding, "what is it?")
    assert all(torch.equal(a, b) for a, b in zip(kept.indices, again.indices, strict=True))


@every_control
def test_budgets_at_the_edges(control):
    encoding = random_encoding(ViewGeometry(10))
    assert control(1.0).select(encoding, "") is None
    assert sum(controls.budgets(ViewGeometry(10), 0.29)) == 29  # 100 * 0.29 is 28.999999999999996
    with pytest.raises(UserError, match=r"use at least 0\.01$"):
        control(0.009).select(encoding, "")
    assert len(control(0.01).select(encoding, "").indices[0]) == 1
    for wrong in (0, 1.1, -0.2):
        with pytest.raises(UserError, match="retention_ratio"):
            control(wrong)
    assert not dataclasses.asdict(control(0.5).needs)["keys"] and control(0.5, newline_policy="none").newline_policy == "none"


def test_random_tokens_depend_on_seed_question_view_and_image_size_and_nothing_else():
    def draw(seed=0, question="who?", views=LETTERBOX):
        torch.rand(3)  # the global generator moves on between samples
        return [index.tolist() for index in RandomTokens(0.5, seed).select(random_encoding(views), question).indices]

    first = draw()
    changed = [draw(seed=1), draw(question="where?"), draw(views=dataclasses.replace(LETTERBOX, size=(400, 600)))]
    assert all(a[v] != first[v] for a in changed for v in range(5))
    assert draw() == first
    assert first[1] != first[2]  # two tiles with the same padding


def test_random_tokens_are_spread_evenly_over_draws():
    encoding = random_encoding(ViewGeometry(4))
    seen = torch.zeros(16)
    for i in range(200):
        seen[RandomTokens(0.5).select(encoding, f"question {i}").indices[0]] += 1
    assert int(seen.sum()) == 1600 and int(seen.min()) > 65 and int(seen.max()) < 135  # 100 each, five standard deviations


def test_uniform_grid_by_hand():
    def kept_tokens(views, ratio, v=0):
        return UniformGrid(ratio).select(random_encoding(views), "").indices[v].tolist()

    assert kept_tokens(ViewGeometry(6), 4 / 36) == [7, 10, 25, 28]  # rows 1 and 4, columns 1 and 4
    # A fifth token stands in the middle of the 32 that are left: the 17th of 0-6, 8, 9, 11-24, ...
    assert kept_tokens(ViewGeometry(6), 5 / 36) == [7, 10, 18, 25, 28]
    # The first tile shows rows 2-5: 6 of 24 tokens are 2 x 3, on its rows 1 and 3 from there, columns 1, 3, 5.
    assert kept_tokens(LETTERBOX, 0.25, 1) == [19, 21, 23, 31, 33, 35]
    assert kept_tokens(LETTERBOX, 0.25, 3) == [7, 9, 11, 19, 21, 23]  # the tile below it shows rows 0-3
    assert kept_tokens(PILLARBOX, 0.25, 1) == [9, 11, 21, 23, 33, 35]  # columns 2-5: its columns 1 and 3 from there, rows 1, 3, 5
    assert kept_tokens(ViewGeometry(24), 0.25) == [24 * r + c for r in range(1, 24, 2) for c in range(1, 24, 2)]


@few
@given(st.integers(3, 12), st.data())
def test_uniform_grid_leaves_no_quadrant_empty(side, data):
    budget = data.draw(st.integers(4, side**2 - 1))
    index = UniformGrid(budget / side**2).select(random_encoding(ViewGeometry(side)), "").indices[0]
    assert len(index) == budget
    rows, columns, half = index // side, index % side, side // 2
    for r in (rows < half, rows >= side - half):
        for c in (columns < half, columns >= side - half):
            assert bool((r & c).any())


@few
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_cells_are_as_square_as_the_budget_allows(height, width, data):
    budget = data.draw(st.integers(1, height * width))
    rows, columns = controls.cells(height, width, budget)
    assert 1 <= rows <= height and 1 <= columns <= width and rows * columns <= budget
    for r in range(1, height + 1):
        for c in range(1, width + 1):
            if r * c <= budget:
                longer, best = max(height / r, width / c), max(height / rows, width / columns)
                assert longer >= best and (longer > best or r * c <= rows * columns)


def test_downsampling_by_hand():
    encoding = random_encoding(ViewGeometry(4), width=2)
    encoding.hidden[0, :, 0] = torch.arange(16.0)
    encoding.hidden[0, :, 1] = -torch.arange(16.0)
    kept = Downsample(5 / 16).select(encoding, "")  # five tokens are 2 x 2 cells
    assert kept.indices[0].tolist() == [5, 7, 13, 15]
    # The first cell holds 0, 1, 4, 5, so 2.5; the next one is two columns on, the third two rows down.
    assert torch.equal(kept.merged[0], torch.tensor([[2.5, -2.5], [4.5, -4.5], [10.5, -10.5], [12.5, -12.5]]))


def test_downsampling_a_tile_leaves_its_padding_out():
    encoding = random_encoding(LETTERBOX)
    encoding.hidden[~LETTERBOX.valid] = 1e6
    kept = Downsample(0.25).select(encoding, "")
    tile = encoding.hidden[1].view(6, 6, -1)
    assert kept.indices[1].tolist() == [19, 21, 23, 31, 33, 35]
    for cell, merged in enumerate(kept.merged[1]):  # 2 x 3 cells of 2 x 2 tokens, from row 2 on
        r, c = 2 + 2 * (cell // 3), 2 * (cell % 3)
        torch.testing.assert_close(merged, (tile[r, c] + tile[r, c + 1] + tile[r + 1, c] + tile[r + 1, c + 1]) / 4)


def test_controls_are_built_by_name():
    assert controls.random(None, ratio=0.2, seed=3).pruner == RandomTokens(0.2, 3)
    assert controls.uniform(None, ratio=0.2, newline_policy="none").pruner == UniformGrid(0.2, newline_policy="none")
    assert controls.downsample(None, ratio=0.2).pruner == Downsample(0.2)
    names = [build(None, ratio=0.2).name for build in (controls.random, controls.uniform, controls.downsample)]
    assert names == ["random", "uniform", "downsample"]
