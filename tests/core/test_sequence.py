"""The sequence: surgery, positions, and what random plans of expand, drop and keep leave behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Drop, Expand, Keep, Layout, Segment, Sequence

VISUAL, WIDTH = 4, 3


def layout_of(rows: list[str]) -> Layout:
    """ "..vvvvt": '.' padding, 'v' a visual token, 't' text."""
    return Layout.of(torch.tensor([[c == "v" for c in r] for r in rows]), torch.tensor([[c != "." for c in r] for r in rows]), VISUAL)


def sequence_of(rows: list[str], inherit: bool = False) -> Sequence:
    layout = layout_of(rows)
    embeds = torch.arange(len(rows) * len(rows[0]) * WIDTH, dtype=torch.float).view(len(rows), -1, WIDTH)
    return Sequence(layout, layout.split(embeds), inherit)


def test_a_prompt_is_cut_behind_each_image_and_joined_again():
    rows = ["..tvvvvtt", "ttvvvvttt", "tvvvvvvvv"]
    layout = layout_of(rows)
    assert layout.present.tolist() == [[True, False], [True, False], [True, True]]
    embeds = torch.randn(3, 9, WIDTH)
    segments = layout.split(embeds)
    assert [len(r) for r in segments[0].rows()] == [5, 6, 5]  # system and first image
    assert [len(r) for r in segments[1].rows()] == [0, 0, 4]  # the second image of the third row, adjacent to the first
    assert [len(r) for r in segments[2].rows()] == [2, 3, 0]
    joined = layout.join(segments, 9)
    real = torch.tensor([[c != "." for c in r] for r in rows])
    assert torch.equal(joined[real], embeds[real])
    assert joined[~real].abs().sum() == 0


def test_positions_by_hand():
    # Row 0: pad, 1 system, 4 visual, 1 text; row 1: 1 system, 4 visual, 2 text. Row 0 gets 2 expanded tokens, row 1 none.
    sequence = sequence_of([".tvvvvt", "tvvvvtt"])
    sequence.apply(0, [Expand(0), Keep()], {0: (torch.ones(2, WIDTH), torch.tensor([0.25, 0.75]))}, layer=3)
    block, expanded, text = sequence.positions()
    assert block[:, -5:].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert expanded[0].tolist() == [5, 6]
    assert text[0, -1:].tolist() == [7]  # text moves behind the expanded tokens
    assert text[1].tolist() == [5, 6]  # and stays where nothing was put in front of it


def test_inherited_positions_are_those_of_what_is_shown_and_text_stays():
    sequence = sequence_of(["ttvvvvt"], inherit=True)
    sequence.apply(0, [Expand(0)], {0: (torch.ones(2, WIDTH), torch.tensor([0.25, 2.5]))}, layer=3)
    _, expanded, text = sequence.positions()
    assert expanded.tolist() == [[2.25, 4.5]]  # the image starts at position 2
    assert text.tolist() == [[6]]


def test_reexpansion_replaces_keeps_or_appends():
    for how, tokens in (("replace", 3), ("keep", 2), ("append", 5)):
        sequence = sequence_of(["tvvvvt"])
        sequence.apply(0, [Expand(1)], {0: (torch.full((2, WIDTH), 1.0), torch.zeros(2))}, 1)
        sequence.apply(0, [Expand(2, how)], {0: (torch.full((3, WIDTH), 2.0), torch.zeros(3))}, 2)
        assert sequence.expanded_tokens(0, 0) == tokens
        assert sequence.expanded[0].length == tokens
    assert [(o.layer, o.region) for o in sequence.origins[0][0]] == [(1, 1), (2, 2)]  # append keeps the order


decision = st.one_of(st.just(Keep()), st.just(Drop()), st.builds(Expand, st.integers(0, 3), st.sampled_from(["replace", "keep", "append"])))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(decision, min_size=3, max_size=3), max_size=8), st.randoms(use_true_random=False))
def test_any_plan_keeps_the_prompt_and_ends_as_a_plain_simulation_says(plan, random):
    """Against a model of a few lines: a list of (layer, region, size) a row. Then dropping everything restores the sequence exactly."""
    rows = ["..tvvvvt", "ttvvvvtt", ".tvvvvtt"]
    sequence, fresh = sequence_of(rows), sequence_of(rows)
    model: list[list[tuple[int, int, int]]] = [[], [], []]
    for layer, decisions in enumerate(plan):
        made = {}
        for b, d in enumerate(decisions):
            if isinstance(d, Expand):
                size = random.randint(1, 5)
                made[b] = (torch.full((size, WIDTH), float(layer)), torch.zeros(size))
                if d.on_reexpand == "append":
                    model[b] = [*model[b], (layer, d.region, size)]
                elif d.on_reexpand == "replace" or not model[b]:
                    model[b] = [(layer, d.region, size)]
            elif isinstance(d, Drop):
                model[b] = []
        sequence.apply(0, decisions, made, layer)
        assert [[(o.layer, o.region, o.tokens) for o in row] for row in sequence.origins[0]] == model
        assert sequence.expanded[0] is None or [len(r) for r in sequence.expanded[0].rows()] == [sum(s for *_, s in m) for m in model]
        assert (sequence.expanded[0] is None) == (not any(model))
    sequence.apply(0, [Drop()] * 3, {}, 99)
    assert len(sequence.segments()) == len(fresh.segments())
    for a, b, p, q in zip(sequence.segments(), fresh.segments(), sequence.positions(), fresh.positions(), strict=True):
        assert torch.equal(a.states, b.states)
        assert torch.equal(a.valid, b.valid)
        assert torch.equal(p, q)


def test_padding_is_on_the_left_so_the_last_token_is_real():
    segment = Segment.from_rows([torch.ones(1, WIDTH), torch.ones(3, WIDTH)])
    assert segment.valid.tolist() == [[False, False, True], [True, True, True]]


def test_places_of_a_patch_are_the_points_that_bilinear_interpolation_samples():
    grid = PatchGrid(2, 4, 4)
    assert grid.places(3, (2, 2)).tolist() == [10, 11, 14, 15]  # without upsampling: the patch's own raster indices
    x = torch.arange(16.0).view(1, 1, 4, 4)  # a plane: bilinear interpolation inside it is exact
    patch = x.flatten()[grid.indices(3)].view(1, 1, 2, 2)
    fine = torch.nn.functional.interpolate(patch, size=(4, 4), mode="bilinear", align_corners=False)
    inner = (slice(None), slice(None), slice(1, 3), slice(1, 3))  # the border is clamped by the interpolation
    assert torch.allclose(fine[inner], grid.places(3, (4, 4)).view(1, 1, 4, 4)[inner])


@pytest.mark.parametrize("p", [1, 2, 3, 6])
def test_every_token_is_in_one_patch(p):
    grid = PatchGrid(p, 6, 6)
    assert sorted(torch.cat([grid.indices(r) for r in range(p * p)]).tolist()) == list(range(36))
