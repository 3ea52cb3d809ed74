"""A row's numbers are the same bits alone and in a batch, on a CPU."""

from __future__ import annotations

import pytest
import torch
from support.processors import x86

from blink_exp.decoder import tiles


def random(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@x86
@torch.no_grad()
def test_a_row_of_a_linear_layer_is_what_it_is_alone():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(96, 64, bias=False), random(40, 96)
    alone = torch.cat([tiles.linear(layer, row[None]) for row in x])
    for rows in range(2, 41):
        assert torch.equal(tiles.linear(layer, x[:rows]), alone[:rows]), rows
    assert torch.equal(tiles.linear(layer, x.view(4, 10, 96)), alone.view(4, 10, 64))


@x86
@pytest.mark.parametrize(("function", "count"), [(torch.sigmoid, 1), (torch.logaddexp, 2)])
def test_an_element_is_what_it_is_alone(function, count):
    inputs = [4 * random(200) + n for n in range(count)]
    alone = torch.cat([tiles.elementwise(function, *(x[k : k + 1] for x in inputs)) for k in range(200)])
    for size in range(2, 201):
        assert torch.equal(tiles.elementwise(function, *(x[:size] for x in inputs)), alone[:size]), size


def test_rows_are_filled_up_to_whole_tiles_and_whole_ones_are_not_copied():
    x = random(2, 5, 3)
    assert tiles.filled(x, -2).shape == (2, 8, 3) and torch.equal(tiles.filled(x, -2)[:, :5], x) and not tiles.filled(x, -2)[:, 5:].any()
    assert tiles.filled(x[:, :4], -2).data_ptr() == x.data_ptr()
    assert tiles.in_tiles([7, 8, 9]) == [7, 7, 8, 9] and tiles.in_tiles([1, 2, 3, 4]) == [1, 2, 3, 4] and tiles.in_tiles([]) == []
    assert tiles.filled_indices(torch.tensor([5, 9, 11])).tolist() == [5, 9, 11, 5] and len(tiles.filled_indices(torch.arange(8))) == 8
    assert [tiles.whole(n, 1, x) for n in (1, 4, 13, 17)] == [4, 4, 16, 17]
    assert [tiles.whole(5, rows, x) for rows in (1, 3, 4)] == [8, 8, 5]  # 20 rows are not few


def test_on_another_device_nothing_changes(monkeypatch):
    monkeypatch.setattr(tiles, "independent", lambda x: False)
    x = random(5, 3)
    assert tiles.filled(x, -2) is x and tiles.whole(5, 1, x) == 5
    assert torch.equal(tiles.elementwise(torch.sigmoid, x), x.sigmoid())


def test_indices_are_gathered_by_value_in_their_order():
    assert tiles.by_value([3, 1, 3, 2, 1]) == {3: [0, 2], 1: [1, 4], 2: [3]}
