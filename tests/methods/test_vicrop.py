"""ViCrop's box, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from blink_exp.core.second_view import Subject
from blink_exp.methods.vicrop import RelativeAttention, best_box


def grid(side: int, ones: list[tuple[int, int]]) -> torch.Tensor:
    """A map of zeros with ones at (row, column)."""
    scores = torch.zeros(side, side)
    for row, column in ones:
        scores[row, column] = 1
    return scores


def block(rows: range, columns: range) -> list[tuple[int, int]]:
    return [(row, column) for row in rows for column in columns]


@pytest.mark.parametrize(
    ("scores", "size", "box"),
    [
        # One cell of 100 px: sizes 1 to 1.8 are windows of one cell, which stand out by 1 - 0. Centre (250, 150), 50 to each side.
        (grid(4, [(1, 2)]), (400, 400), (200, 100, 300, 200)),
        (grid(4, [(3, 0)]), (400, 400), (0, 300, 100, 400)),
        # 2 x 2 cells. Size 1: 1 - (0 + 1 + 0 + 1) / 4 = 0.5. Size 2: (4 - 2) / 4 = 0.5 as well, so the first one, at its first place.
        (grid(4, block(range(1, 3), range(1, 3))), (400, 400), (100, 100, 200, 200)),
        # 3 x 3 cells of 50 px. Size 1, 2 x 2 cells: (4 - 3) / 4; size 1.6, 3 x 3: (9 - 6) / 9, the best; size 2, 4 x 4, three neighbours:
        # (9 - 8) / 16. Centre (2 * 50 + 75, 50 + 75), 80 to each side.
        (grid(6, block(range(1, 4), range(2, 5))), (300, 300), (95, 45, 255, 205)),
        # Cells of 100 x 30 px. Size 1, 1 x 3 cells, two neighbours: 1 / 3; size 1.2, 1 x 4: one neighbour, 1 / 4. Centre (350, 75), and
        # 75 + 50 is below the image, so it is moved up by 5.
        (grid(4, [(3, 3)]), (400, 120), (300, 20, 400, 120)),
        # Narrower than the box: all of its width.
        (grid(4, [(0, 3)]), (400, 80), (300, 0, 400, 80)),
        # No box is smaller than the image.
        (grid(4, [(0, 0)]), (90, 80), (0, 0, 90, 80)),
        # Nothing stands out: the first place of the first size.
        (grid(4, []), (400, 400), (0, 0, 100, 100)),
    ],
)
def test_the_best_box_by_hand(scores, size, box):
    assert best_box(scores, size, 100) == box


def test_of_equal_places_the_first_column_wins():
    assert best_box(grid(4, [(0, 3), (2, 1)]), (400, 400), 100) == (100, 200, 200, 300)


def test_an_image_with_cells_larger_than_the_box_has_windows_of_one_cell():
    assert best_box(grid(4, [(1, 1)]), (4000, 4000), 100) == (1450, 1450, 1550, 1550)


def test_the_map_is_relative_to_that_of_the_generic_question():
    chooser = RelativeAttention(14, 4, 100)
    generic = [0.01] * 16
    generic[5], scores = 0.5, [0.01] * 16
    scores[5], scores[10] = 0.5, 0.03  # the largest attention is on what any question looks at
    assert chooser.choose(Subject("a", (400, 400), scores=tuple(scores), generic=tuple(generic))) == (200, 200, 300, 300)
    none = Subject("a", (400, 400), scores=tuple(scores), generic=(0.0,) * 16)
    assert chooser.choose(none) == (100, 100, 200, 200)  # nothing is divided by nothing
