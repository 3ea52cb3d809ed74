"""The sequence: where its tokens stand, what decisions make of it, and what random plans of expand, drop and keep leave behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Drop, Expand, Keep, Layout, Origin, Retain, State, transition
from blink_exp.decoder.branches import Text
from blink_exp.decoder.segments import ExpansionKey, Segment, expand, starts

VISUAL, WIDTH = 4, 3


def layout_of(rows: list[str]) -> Layout:
    """ "..vvvvt": '.' padding, 'v' a visual token, 't' text."""
    return Layout.of(torch.tensor([[c == "v" for c in r] for r in rows]), torch.tensor([[c != "." for c in r] for r in rows]), VISUAL)


def test_a_prompt_is_cut_behind_each_image_and_every_real_token_is_in_one_segment():
    rows = ["..tvvvvtt", "ttvvvvttt", "tvvvvvvvv"]
    layout = layout_of(rows)
    assert layout.visual == [[4], [4], [4, 4]]
    assert [[len(index) for index in row] for row in layout.index] == [[5, 2], [6, 3], [5, 4, 0]]  # images of the third row are adjacent
    for row, index in zip(rows, layout.index, strict=True):
        assert torch.cat(index).tolist() == [n for n, c in enumerate(row) if c != "."]


def places(front: list[Segment]) -> list[list[float]]:
    return [segment.positions(start).tolist() for segment, start in zip(front, starts(front), strict=False)]


def test_positions_by_hand():
    block, expanded = Segment(torch.zeros(5, WIDTH), visual=4), Segment(torch.zeros(2, WIDTH))
    assert places([block, expanded]) == [[0, 1, 2, 3, 4], [5, 6]]
    assert starts([block, expanded])[-1] == 7  # text moves behind the expanded tokens
    assert starts([block])[-1] == 5  # and stays where nothing was put in front of it
    assert starts([]) == [0]


def expanded_by(grid: PatchGrid, region: int, inherit: bool) -> tuple[Segment, Segment]:
    """A block of two text tokens and a whole grid, and the copy of one of its patches as it is."""
    block = Segment(torch.arange(float(2 + grid.height * grid.width))[:, None].expand(-1, WIDTH), visual=grid.height * grid.width)
    key = ExpansionKey(block, 2, 0, region, grid, interpolate=False, inherit=inherit, module=None, before=())
    return block, expand([key])[0]


def test_inherited_positions_are_those_of_what_is_shown_and_text_stays():
    block, part = expanded_by(PatchGrid(2, 4, 4), 3, inherit=True)
    assert places([block, part])[1] == [12, 13, 16, 17]  # the image starts at position 2; without upsampling these are the patch's own
    assert part.states[:, 0].tolist() == [12, 13, 16, 17]
    assert starts([block, part])[-1] == starts([block])[-1] == 18
    block, part = expanded_by(PatchGrid(2, 4, 4), 3, inherit=False)
    assert places([block, part])[1] == [18, 19, 20, 21]


def test_reexpansion_replaces_keeps_or_appends():
    for how, parts in (("replace", ["b"]), ("keep", ["a"]), ("append", ["a", "b"])):
        state: State[int, str] = transition(State.of(()), Expand(1), expand=lambda before: "a")
        state = transition(state, Expand(2, how), expand=lambda before: "b")
        assert list(state.expanded[0]) == parts  # append keeps the order


def test_images_are_expanded_one_by_one_and_what_is_there_already_is_told():
    seen = []
    state: State[int, str] = transition(State.of((0,), (1,)), Expand(0), image=1, expand=lambda before: seen.append(before) or "a")
    state = transition(state, Expand(0, "append"), image=1, expand=lambda before: seen.append(before) or "b")
    assert state.expanded == ((), ("a", "b")) and seen == [(), ("a",)]
    assert transition(state, Drop(), image=0) == state and transition(state, Drop(), image=1) == State.of((0,), (1,))


decision = st.one_of(st.just(Keep()), st.just(Drop()), st.builds(Expand, st.integers(0, 3), st.sampled_from(["replace", "keep", "append"])))


@settings(max_examples=60, deadline=None)
@given(st.lists(decision, max_size=8), st.randoms(use_true_random=False))
def test_any_plan_ends_as_a_plain_simulation_says_and_dropping_restores(plan, random):
    """Against a model of a few lines: a list of (layer, region, size). Then dropping everything restores the state exactly."""
    fresh: State[int, Origin] = State.of(range(VISUAL))
    state, model = fresh, []
    for layer, d in enumerate(plan):
        size = random.randint(1, 5)
        if isinstance(d, Expand):
            if d.on_reexpand == "append":
                model = [*model, (layer, d.region, size)]
            elif d.on_reexpand == "replace" or not model:
                model = [(layer, d.region, size)]
        elif isinstance(d, Drop):
            model = []
        before = state
        state = transition(state, d, expand=lambda _, d=d, layer=layer, size=size: Origin(layer, d.region, size))
        assert [(o.layer, o.region, o.tokens) for o in state.expanded[0]] == model
        assert state.visual == fresh.visual
        assert state is before or not isinstance(d, Keep)
    assert transition(state, Drop()) == fresh


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_retaining_keeps_order_and_puts_what_is_merged_behind_the_last_image(sizes, random):
    tokens = list(range(sum(sizes)))
    visual, left = [], list(tokens)
    for size in sizes:
        visual.append(tuple(left[:size]))
        left = left[size:]
    kept = tuple(sorted(random.sample(tokens, random.randint(0, len(tokens)))))
    gone = [t for t in tokens if t not in kept]
    clusters = (tuple(gone),) if gone else ()
    state = transition(State.of(*visual), Retain(kept, clusters), merge=lambda members: -1 - sum(members))
    flat = [t for row in state.visual for t in row]
    assert flat == [*kept, *(-1 - sum(c) for c in clusters)]
    last = max((k for k, row in enumerate(visual) if row), default=0)
    assert all(t in visual[k] or (k == last and t < 0) for k, row in enumerate(state.visual) for t in row)


def test_padding_of_a_text_is_on_the_left_so_the_last_token_is_real():
    text = Text.of([torch.ones(1, WIDTH), torch.ones(3, WIDTH)])
    assert text.valid.tolist() == [[False, False, True], [True, True, True]]
    assert text.states[0, :, 0].tolist() == [0, 0, 1]


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
