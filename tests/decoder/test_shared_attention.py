"""Attention over parts that rows share, against the same keys in one piece."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from blink_exp.decoder.generated import SegmentedLayer, _Tokens
from blink_exp.decoder.shared_attention import Part, SharedKVCache, attend, by_part, by_row, rows_of, stacked

ROWS, HEADS, KV_HEADS, QUERIES, WIDTH = 5, 4, 2, 3, 8


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def part(start: int, stop: int, tokens: int, depth: int = 0) -> Part:
    return Part(start, stop, random(KV_HEADS, tokens, WIDTH) + start, random(KV_HEADS, tokens, WIDTH) - start, depth)


FRONTS = {
    "one for all": [part(0, 5, 6)],
    "one each": [part(row, row + 1, 6) for row in range(5)],
    "like ones apart": [part(0, 1, 6), part(1, 2, 4), part(2, 3, 6), part(3, 5, 6)],
    "some rows have a second one": [part(0, 2, 6), part(2, 5, 6), part(1, 2, 3, 1), part(4, 5, 3, 1), part(2, 3, 2, 1)],
    "some rows have none": [part(1, 3, 6)],
}


@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_parts_give_what_keys_in_one_piece_give(front, dtype, tolerance):
    front = [replace(part, keys=part.keys.to(dtype), values=part.values.to(dtype)) for part in front]
    query = random(ROWS, HEADS, QUERIES, WIDTH).to(dtype)
    out = []
    for alone in (False, True):
        cache = SharedKVCache(front, alone=alone)
        cache.update(random(ROWS, KV_HEADS, QUERIES, WIDTH).to(dtype), (random(ROWS, KV_HEADS, QUERIES, WIDTH) + 1).to(dtype))
        before = [tensor.clone() for tensor in cache.own]
        out.append(attend(None, query.clone(), cache, cache, None, WIDTH**-0.5)[0])
        assert all(torch.equal(a, b) for a, b in zip(before, cache.own, strict=True))
    torch.testing.assert_close(*out, atol=tolerance, rtol=tolerance)


def test_masks_are_made_once_while_fronts_do_not_change():
    front = FRONTS["some rows have a second one"]
    first = SharedKVCache(front, alone=True)
    first.update(random(ROWS, KV_HEADS, QUERIES, WIDTH), random(ROWS, KV_HEADS, QUERIES, WIDTH))
    second = SharedKVCache(front, alone=True, masks=first.masks)
    second.update(*first.own)
    seen = first.visible(QUERIES)
    assert second.visible(QUERIES) is seen and second.dense()[2] is first.dense()[2]
    assert seen.sum(-1)[:, -1].tolist() == [6 + 3, 9 + 3, 8 + 3, 6 + 3, 9 + 3]  # of the front, and its own tokens


def test_neighbouring_rows_are_a_slice():
    assert rows_of([part(1, 2, 6), part(2, 4, 6)]) == slice(1, 4)
    assert rows_of([part(0, 1, 6), part(2, 4, 6)]) == [0, 2, 3]


def test_queries_come_back_from_their_parts():
    query = random(6, HEADS, QUERIES, WIDTH)
    together = by_part(query, [part(0, 3, 6), part(3, 6, 6)])
    assert together.shape == (2, KV_HEADS, 20, WIDTH)  # the 2 * 3 * 3 queries of a part and key head are filled up to whole tiles of 4
    assert torch.equal(by_row(together, query), query)


def test_rows_of_a_batch_are_stacked_without_a_copy():
    batch = random(4, KV_HEADS, 6, WIDTH)
    assert stacked(list(batch)).data_ptr() == batch.data_ptr()
    assert stacked([row[:, :5] for row in batch[::2]]).data_ptr() == batch.data_ptr()
    for parts in (list(batch.flip(0).unbind()), [batch[0], batch[0]], [batch[0], batch[2], batch[3]], [batch[0], batch[1].clone()]):
        assert torch.equal(stacked(parts), torch.stack(parts))
    assert torch.equal(stacked([batch[3], batch[2], batch[1]]), torch.stack([batch[3], batch[2], batch[1]]))


@pytest.mark.parametrize("weights", [False, True])
def test_generated_tokens_return_weights_only_where_the_kernel_does(weights):
    layer = SegmentedLayer()
    layer.hold(random(1, KV_HEADS, 6, WIDTH), random(1, KV_HEADS, 6, WIDTH), torch.ones(1, 6, dtype=torch.bool), torch.tensor([6]), 6)
    llm = SimpleNamespace(rotary_emb=lambda states, position_ids: (position_ids, position_ids))
    cache = next(_Tokens(llm, random(1, 1, WIDTH), [layer], weights).runs(0)).cache
    assert cache.weights == weights and not cache.alone
