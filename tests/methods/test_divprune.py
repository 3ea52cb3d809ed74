"""DivPrune. Oracles are written out by hand or as plain loops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.layouts import LETTERBOX, layouts
from support.models import random_encoding, random_llava, random_next
from torch.utils._python_dispatch import TorchDispatchMode

from blink_exp.backbone.encode import encode
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import NEWLINE, ViewGeometry, all_tokens, pack
from blink_exp.errors import UserError
from blink_exp.methods import divprune
from blink_exp.methods.divprune import DivPrune, distances, farthest, token_features


def greedy_by_hand(distance, count):
    """Indices in the order of choice, from a list of lists; every step looks at all pairs again."""
    tokens = range(len(distance))

    def nearest(i, others):
        return min(distance[i][j] for j in others if j != i)

    order = [max(tokens, key=lambda i: nearest(i, tokens))]
    while len(order) < count:
        order.append(max((i for i in tokens if i not in order), key=lambda i: nearest(i, order)))
    return order


# The greedy choice


def test_by_hand():
    """Points 0, 1, 3, 7, 12 on a line: nearest others are 1, 1, 2, 4, 5 away, so the last is first. From it 0 is farthest (12), then 7
    (5 from 12, as 3 is only 3 from 0), then 3 (3 from 0), then 1."""
    at = torch.tensor([0.0, 1, 3, 7, 12])
    assert farthest((at[:, None] - at[None]).abs(), 5).tolist() == [4, 0, 3, 2, 1]


def test_the_first_has_the_farthest_nearest_neighbour_and_not_the_largest_sum():
    distance = torch.tensor([[0.0, 2, 9, 9], [2, 0, 9, 9], [9, 9, 0, 3], [9, 9, 3, 0]])
    assert farthest(distance, 1).tolist() == [2]  # 2 and 3 are tied: the lower index


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_looking_at_all_pairs(seed):
    g = torch.Generator().manual_seed(seed)
    distance = torch.randint(1, 40, (30, 30), generator=g).float()  # whole numbers: ties are frequent and exact
    distance = (distance + distance.T).fill_diagonal_(0)
    assert farthest(distance, 30).tolist() == greedy_by_hand(distance.tolist(), 30)


def test_nested_in_the_budget_and_no_change_of_the_matrix():
    distance = distances(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)))
    before = distance.clone()
    assert farthest(distance, 20)[:7].tolist() == farthest(distance, 7).tolist()
    assert torch.equal(distance, before)


def test_no_token_is_taken_twice_where_directions_run_out():
    """Two directions, five tokens. Without striking out, the third choice would be one of the first two again."""
    x = torch.tensor([[1.0, 0], [0, 1], [2.0, 0], [0, 3], [4.0, 0]])
    assert sorted(farthest(distances(x), 5).tolist()) == [0, 1, 2, 3, 4]
    assert farthest(distances(x), 4).tolist() == [0, 1, 2, 3]
    assert farthest(torch.zeros(1, 1), 1).tolist() == [0]


def test_distances_by_hand():
    x = torch.tensor([[3.0, 4], [-4.0, 3], [-6.0, -8], [0, 0]])
    torch.testing.assert_close(distances(x), torch.tensor([[0.0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 1]]))


class Touched(TorchDispatchMode):
    """Counts the numbers that operations read."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        rows = func is torch.ops.aten.index_select.default  # reads what it gives
        out = func(*args, **(kwargs or {}))
        self.numbers += out.numel() if rows else sum(a.numel() for a in args if isinstance(a, torch.Tensor))
        return out


def test_a_step_reads_rows_and_never_the_matrix():
    distance = distances(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)))

    def read(count: int) -> int:
        with Touched() as touched:
            farthest(distance, count)
        return touched.numbers

    assert read(150) - read(50) <= 100 * 8 * 200  # re-reducing the chosen rows would read about a hundred rows a step


# A whole selection


def kept_tokens(views, ratio, encoding=None, **options):
    pruner = DivPrune(ratio, **options)
    encoding = random_encoding(views, seed=1) if encoding is None else encoding
    return pack(views, pruner.select(encoding, "q"), pruner.newline_policy).tolist()


@layouts
@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_the_choice_is_that_of_the_written_out_method(views, mode):
    encoding = random_encoding(views, seed=1)
    stock = pack(views, all_tokens(views)).tolist()
    sequence = stock if mode == "reference" else [s for s in stock if s != NEWLINE]
    rows = [encoding.newline if s == NEWLINE else encoding.llm_features.flatten(0, 1)[s] for s in sequence]
    unit = [row / row.norm() for row in rows]
    distance = [[float(1 - a @ b) for b in unit] for a in unit]
    count = round(0.3 * len(sequence))
    places = greedy_by_hand(distance, count)
    order = [sequence[i] for i in places]
    assert kept_tokens(views, 0.3, mode=mode, order="selection") == order
    ordered = kept_tokens(views, 0.3, mode=mode)
    assert sorted(s for s in ordered if s != NEWLINE) == sorted(s for s in order if s != NEWLINE)
    if mode == "reference":
        assert ordered == [sequence[i] for i in sorted(places)]
    else:  # the image's own order, and a newline for every row of tiles
        assert ordered == [s for s in stock if s == NEWLINE or s in order]


def test_newlines_count_in_reference_and_one_of_them_is_kept_at_most():
    views = ViewGeometry(4, 2, 2, (40, 40), newline=True)  # 80 patches and 8 newlines
    for tokens, newlines in ((22, {0, 1}), (79, {0, 1}), (81, {1}), (83, {3})):  # 81: all patches and one newline
        source = kept_tokens(views, tokens / 88, mode="reference")
        assert len(source) == tokens and source.count(NEWLINE) in newlines
    assert len([s for s in kept_tokens(views, 0.25) if s != NEWLINE]) == 20 and kept_tokens(views, 0.25).count(NEWLINE) == 8
    assert kept_tokens(views, 0.25, newline_policy="none").count(NEWLINE) == 0


def test_budgets_are_rounded_half_to_even():
    assert [DivPrune(ratio).budget(576) for ratio in (0.098, 192 / 576, 128 / 576, 64 / 576)] == [56, 192, 128, 64]
    assert [DivPrune(0.5).budget(n) for n in (3, 5, 7, 9)] == [2, 2, 4, 4]
    assert DivPrune(0.29).budget(50) == 14 and DivPrune(0.3).budget(35) == 10


def test_padding_is_never_kept():
    for mode in ("paper", "reference"):
        source = [s for s in kept_tokens(LETTERBOX, 0.95, mode=mode) if s != NEWLINE]
        assert bool(LETTERBOX.valid.flatten()[source].all())


def test_one_budget_for_all_views():
    """All tiles show one flat colour, so nothing of them but one token is worth keeping while the thumbnail has others."""
    views = ViewGeometry(4, 1, 2, (40, 80), newline=True)
    encoding = random_encoding(views)
    encoding.llm_features[1:] = encoding.llm_features[1, 0].clone()
    selection = DivPrune(17 / 48).select(encoding, "")
    assert [len(index) for index in selection.indices] == [16, 1, 0]


def test_everything_leaves_the_model_untouched():
    encoding = random_encoding(LETTERBOX)
    for mode in ("paper", "reference"):
        assert DivPrune(1.0, mode=mode).select(encoding, "") is None
        turned = pack(LETTERBOX, DivPrune(1.0, "selection", mode).select(encoding, "")).tolist()
        stock = pack(LETTERBOX, all_tokens(LETTERBOX), "valid_rows" if mode == "reference" else "none").tolist()
        assert turned != stock and sorted(turned) == sorted(stock)
    assert NEWLINE not in kept_tokens(LETTERBOX, 1.0, newline_policy="none")
    assert DivPrune(1.0, mode="reference", newline_policy="none").select(encoding, "") is None


def test_distances_are_made_in_float32_in_paper_and_in_the_models_dtype_in_reference():
    """Two pairs, 0.45984 and 0.45964 apart, of which bfloat16 makes 0.457 and 0.461."""
    encoding = random_encoding(ViewGeometry(2))
    angles = torch.tensor([0.0, 1.0, 2.5, 3.5])
    encoding.llm_features = torch.stack([angles.cos(), angles.sin()], 1)[None].bfloat16()
    assert kept_tokens(ViewGeometry(2), 0.25, encoding) == [0]
    assert kept_tokens(ViewGeometry(2), 0.25, encoding, mode="reference") == [2]


# On a model


@pytest.mark.parametrize("make", [random_llava, random_next])
def test_features_are_those_that_the_llm_reads(make):
    model = make(layers=2)
    views = ViewGeometry.of(model.config, (40, 30))
    pixels = torch.randn(views.count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    (encoding,) = encode(model, pixels, [views], DivPrune(0.5).needs)
    assert encoding.llm_features.shape == (views.count, 36, model.config.text_config.hidden_size)
    sizes = {"image_sizes": torch.tensor([[40, 30]])} if views.tiles else {}
    stock = model.get_image_features(pixel_values=pixels[None] if views.tiles else pixels, **sizes).pooler_output[0]
    torch.testing.assert_close(token_features(encoding, pack(views, all_tokens(views))), stock)
    assert encode(model, pixels, [views], EncoderRequirements())[0].llm_features is None
    bytes_of = [encode(model, pixels, [views], needs)[0].nbytes for needs in (EncoderRequirements(), DivPrune(0.5).needs)]
    assert bytes_of[1] - bytes_of[0] == encoding.llm_features.nbytes  # the cache of encodings knows them


def test_needs_join():
    both = EncoderRequirements(frozenset({1})).union(DivPrune(0.5).needs)
    assert both == EncoderRequirements(frozenset({1}), llm_features=True) and both.covers(DivPrune(0.5).needs)
    assert not EncoderRequirements(frozenset({1}), cls=True, text=True).covers(DivPrune(0.5).needs)


def on(side=24, tiles=False):
    config = SimpleNamespace(**({"image_grid_pinpoints": []} if tiles else {}))
    return SimpleNamespace(model=SimpleNamespace(config=config), grid=(side, side), check=lambda needs: None)


def test_configured_on_a_backbone():
    method = divprune.configure(on(), retention_ratio=0.098)
    assert (method.name, method.policy, method.pruner) == ("divprune", None, DivPrune(0.098)) and not method.pruner.merges
    assert divprune.configure(on(), retention_ratio=0.2, tokens=192).pruner.budget(576) == 192
    pruner = divprune.configure(on(tiles=True), retention_ratio=0.2, tokens=640, order="selection", mode="reference").pruner
    assert pruner == DivPrune(640 / 2880, "selection", "reference") and pruner.budget(2880) == 640 and pruner.budget(2928) == 651


BAD = [
    ({"mode": "referense"}, "divprune.mode=referense is not known; did you mean reference?"),
    ({"order": "sort"}, "divprune.order=sort is not known; did you mean sorted?"),
    ({"newline_policy": "rows"}, "newline_policy=rows is not known"),
    ({"retention_ratio": 1.5}, "retention_ratio=1.5 is outside (0, 1]"),
    ({"tokens": 577}, "tokens=577 is outside 1 to 576"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input(wrong, message):
    with pytest.raises(UserError) as error:
        divprune.configure(on(), **{"retention_ratio": 0.2} | wrong)
    assert str(error.value).startswith(message)


def test_a_budget_of_no_token_is_refused():
    with pytest.raises(UserError, match=r"retention_ratio=0.01 rounds to no token of 36; use at least 0.0278"):
        DivPrune(0.01).select(random_encoding(ViewGeometry(6)), "")


def test_the_first_token_is_by_the_second_smallest_entry_of_a_column_where_copies_make_rounding_decide():
    """Rounding leaves a diagonal that is not 0, and near copies with a distance below it: then the entry itself counts, whichever it is."""
    distance = torch.tensor([[0.2, 0.15, 0.9], [0.1, 0.0, 0.9], [0.9, 0.12, 0.0]])
    assert farthest(distance, 1).tolist() == [2]  # second smallest: 0.2, 0.12, 0.9
    near = torch.tensor([[0.3, 0.25], [0.1, 0.0]])
    assert farthest(near, 1).tolist() == [0]  # 0.3 against 0.25; without the diagonal it would be 0.1 against 0.25
    assert farthest(torch.zeros(1, 1), 1).tolist() == [0]
