"""FasterVLM, HiRED and GlobalCom2: the laws that their specification states, the numbers it prints, and small cases by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import random_encoding, random_next
from hypothesis import given, settings
from hypothesis import strategies as st

from blink_exp.backbone.encode import Needs, encode
from blink_exp.backbone.views import NEWLINE, Views, pack
from blink_exp.errors import UserError
from blink_exp.methods import fastervlm, globalcom2, hired
from blink_exp.methods.fastervlm import FasterVLM
from blink_exp.methods.globalcom2 import GlobalCom2, commanded, tile_shares
from blink_exp.methods.hired import HiRED, tile_budgets

GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
MODES = ("paper", "reference")
few = settings(max_examples=25, deadline=None)
ratios, seeds, modes = st.floats(0.06, 1), st.integers(0, 99), st.sampled_from(MODES)


def faster(ratio, mode="paper", **options) -> FasterVLM:
    return FasterVLM(ratio, layer=3, mode=mode, **options)


def hi(ratio, mode="paper", alpha=0.5, **options) -> HiRED:
    return HiRED(ratio, alpha, 1, 3, mode, **options)


def command(ratio, mode="paper", temperature=10.0, **options) -> GlobalCom2:
    return GlobalCom2(ratio, temperature, 4, mode, **options)


ALL = (faster, hi, command)


def full(rows, columns, side=6) -> Views:
    """A grid of tiles that an image fills."""
    return Views(side, rows, columns, (100 * rows, 100 * columns), newline=True)


@st.composite
def images(draw, grids=GRIDS, side=6):
    rows, columns = draw(st.sampled_from(grids))
    return Views(side, rows, columns, (draw(st.integers(1, 400)), draw(st.integers(1, 400))), newline=True)


def with_logits(views, rows, layer=4):
    """An encoding whose CLS logits at one layer, of one head, are ``rows``: (views, N) lists. The CLS key has logit 0."""
    encoding = random_encoding(views, heads=1)
    patches = torch.tensor(rows, dtype=torch.float32)
    encoding.logits[layer] = torch.cat([torch.zeros(len(rows), 1), patches], 1)[:, None]
    return encoding


def probabilities(encoding, layer) -> list[list[float]]:
    """CLS attention to patches, averaged over heads, one view and head at a time."""
    out = []
    for view in encoding.logits[layer].double():
        heads = []
        for head in view:
            powers = head.exp()
            heads.append(powers[1:] / powers.sum())
        out.append((sum(heads) / len(heads)).tolist())
    return out


def best(scores, k, allowed=None) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return sorted([i for i in order if allowed is None or allowed[i]][:k])


def lists(kept) -> list[list[int]]:
    return [index.tolist() for index in kept.indices]


# all three


@few
@given(images(), ratios, seeds, modes, st.sampled_from(ALL))
def test_kept_patches_are_unique_ascending_in_range_and_the_same_again(views, ratio, seed, mode, make):
    kept = make(ratio, mode).select(random_encoding(views, seed=seed), "q")
    if kept is None:
        assert ratio == 1
        return
    assert len(kept.indices) == views.count
    for index in lists(kept):
        assert index == sorted(set(index))
        assert all(0 <= i < 36 for i in index)
    assert sum(map(len, lists(kept))) > 0
    torch.manual_seed(seed + 1)  # a pruner that draws from the global generator would choose anew
    assert lists(make(ratio, mode).select(random_encoding(views, seed=seed), "another question")) == lists(kept)


@few
@given(images(), st.floats(0.06, 0.99), seeds, st.sampled_from([(faster, "paper"), *((m, mode) for m in (hi, command) for mode in MODES)]))
def test_padding_is_never_kept(views, ratio, seed, which):
    make, mode = which
    kept = make(ratio, mode).select(random_encoding(views, seed=seed), "q")
    assert all(views.valid[i][index].all() for i, index in enumerate(kept.indices))
    assert not kept.padding


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("mode", MODES)
def test_ties_go_to_the_first_patch(make, mode):
    views = Views(6)
    encoding = random_encoding(views)
    for layer in encoding.logits:
        encoding.logits[layer] = torch.zeros(1, 2, 37)
    assert lists(make(0.25, mode).select(encoding, "q")) == [list(range(9))]


@few
@given(ratios, seeds, modes)
def test_one_view_keeps_its_best_patches(ratio, seed, mode):
    encoding = random_encoding(Views(6), seed=seed)
    k = math.floor(36 * ratio + (1e-9 if mode == "paper" else 0))
    if ratio == 1:
        assert all(make(1.0, mode).select(encoding, "q") is None for make in ALL)
        return
    attention, last = probabilities(encoding, 3), probabilities(encoding, 4)
    logits = encoding.logits[4][0].double().mean(0)[1:].tolist()
    assert lists(faster(ratio, mode).select(encoding, "q")) == [best(attention[0], k)]
    assert lists(hi(ratio, mode).select(encoding, "q")) == [best(attention[0], k)]
    assert lists(command(ratio, mode).select(encoding, "q")) == [best(last[0] if mode == "paper" else logits, k)]


def test_one_view_at_ratio_1_is_untouched_unless_newlines_differ():
    for make in ALL:
        assert make(1.0).select(random_encoding(Views(6)), "q") is None
        assert make(1.0).select(random_encoding(Views(6, newline=True)), "q") is None
        kept = make(1.0, newline_policy="none").select(random_encoding(Views(6, newline=True)), "q")
        assert lists(kept) == [list(range(36))]  # the untouched model would end the view with a newline


def test_each_reads_its_layers_only():
    assert faster(0.5).needs == Needs(attention=frozenset({3}))
    assert hi(0.5).needs == Needs(attention=frozenset({1, 3}))
    assert command(0.5).needs == Needs(attention=frozenset({4}))
    for make in ALL:
        encoding = random_encoding(full(2, 2))
        encoding.logits = {layer: encoding.logits[layer] for layer in make(0.5).needs.attention}
        assert make(0.5).select(encoding, "q") is not None


def test_newlines_are_the_modes_own_unless_given():
    wanted = {faster: ("valid_rows", "none"), hi: ("valid_rows", "none"), command: ("valid_rows", "all_rows")}
    for make, policies in wanted.items():
        assert tuple(make(0.5, mode).newline_policy for mode in MODES) == policies
        assert make(0.5, "reference", newline_policy="valid_rows").newline_policy == "valid_rows"


def backbone(depth):
    seen = []
    config = SimpleNamespace(vision_config=SimpleNamespace(num_hidden_layers=depth))
    return SimpleNamespace(model=SimpleNamespace(config=config), check=seen.append, seen=seen)


def test_layers_follow_the_depth_of_the_encoder():
    for module, name, layers in ((fastervlm, "fastervlm", {23}), (hired, "hired", {1, 23}), (globalcom2, "globalcom2", {24})):
        on = backbone(24)
        method = module.configure(on, retention_ratio=0.5)
        assert (method.name, method.pruner.name) == (name, name)
        assert method.pruner.needs.attention == layers
        assert on.seen == [method.pruner.needs]  # the backbone was asked whether it can show this
    assert fastervlm.configure(backbone(4), retention_ratio=0.5).pruner.layer == 3
    assert globalcom2.configure(backbone(4), retention_ratio=0.5).pruner.layer == 4
    pruner = hired.configure(backbone(4), retention_ratio=0.5, alpha=0.25, allocation_layer=2, mode="reference").pruner
    assert pruner == HiRED(0.5, 0.25, 2, 3, "reference", "none")
    assert hired.configure(backbone(4), retention_ratio=0.5, newline_policy="all_rows").pruner.newline_policy == "all_rows"


def test_on_a_tower():
    model = random_next()
    on = SimpleNamespace(model=model, check=lambda needs: None)
    views = Views.of(model.config, (40, 30))
    pixels = torch.randn(views.count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for module in (fastervlm, hired, globalcom2):
        pruner = module.configure(on, retention_ratio=0.5).pruner
        (encoding,) = encode(model, pixels, [views], pruner.needs)
        source = pack(views, pruner.select(encoding, "q"), pruner.newline_policy)
        assert 18 <= int((source >= 0).sum()) <= 18 * views.count
        assert int((source == NEWLINE).sum()) == len(views.unpadded)


BAD = [
    (lambda: faster(0), "retention_ratio=0 is outside (0, 1]"),
    (lambda: hi(1.5), "retention_ratio=1.5 is outside (0, 1]"),
    (lambda: command(math.nan), "retention_ratio=nan is outside (0, 1]"),
    (lambda: faster(0.5, "papr"), "fastervlm.mode=papr is not known; did you mean paper?"),
    (lambda: hi(0.5, "referense"), "hired.mode=referense is not known; did you mean reference?"),
    (lambda: command(0.5, "x"), "globalcom2.mode=x is not known; use one of: paper, reference"),
    (lambda: faster(0.5, newline_policy="nome"), "newline_policy=nome is not known; did you mean none?"),
    (lambda: hi(0.5, newline_policy="all_row"), "newline_policy=all_row is not known; did you mean all_rows"),
    (lambda: command(0.5, newline_policy="rows"), "newline_policy=rows is not known"),
    (lambda: hi(0.5, alpha=1.5), "hired.alpha=1.5 is outside [0, 1]"),
    (lambda: command(0.5, temperature=0), "globalcom2.temperature=0 is not a number above 0"),
    (lambda: FasterVLM(0.5, layer=0), "fastervlm.layer=0 is no encoder layer"),
    (lambda: HiRED(0.5, selection_layer=-2), "hired.selection_layer=-2 is no encoder layer"),
    (lambda: GlobalCom2(0.5, layer=-1), "globalcom2.layer=-1 is no encoder layer"),
    (
        lambda: fastervlm.configure(backbone(24), retention_ratio=0.5, layer=25),
        "fastervlm.layer holds layer 25, outside the encoder's 1 to 24",
    ),
    (lambda: hired.configure(backbone(4), retention_ratio=0.5, allocation_layer=0), "hired.allocation_layer holds layer 0"),
    (lambda: hired.configure(backbone(4), retention_ratio=0.5, selection_layer=23), "hired.selection_layer holds layer 23"),
    (lambda: globalcom2.configure(backbone(4), retention_ratio=0.5, layer=5), "globalcom2.layer holds layer 5"),
    (lambda: faster(0.02).select(random_encoding(Views(6)), "q"), "retention_ratio=0.02 rounds to no token of 36; use at least 0.0278"),
    (lambda: hi(0.001).select(random_encoding(full(2, 2)), "q"), "retention_ratio=0.001 rounds to no token of 180; use at least 0.0056"),
    (lambda: command(0.01).select(random_encoding(full(2, 2)), "q"), "retention_ratio=0.01 rounds to no token of 36; use at least 0.0278"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)


# FasterVLM


@few
@given(images(), ratios, seeds)
def test_fastervlm_reference_counts_k_for_every_view_padding_or_not(views, ratio, seed):
    pruner = faster(ratio, "reference")
    kept = pruner.select(random_encoding(views, seed=seed), "q")
    assert [len(index) for index in kept.indices] == [int(36 * ratio)] * views.count  # (a), (e)
    source = pack(views, kept, pruner.newline_policy)
    assert len(source) == int(36 * ratio) * views.count  # all of them reach the LLM, and nothing else does


def test_fastervlm_reference_keeps_padding_that_scores_well():
    views = Views(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = [[0.0] * 16, [9.0] * 4 + [0.0] * 12, [0.0] * 12 + [9.0] * 4]
    encoding = with_logits(views, rows, layer=3)
    assert lists(faster(0.25, "reference").select(encoding, "q"))[1:] == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert lists(faster(0.25).select(encoding, "q"))[1:] == [[4, 5, 6, 7], [4, 5, 6, 7]]
    assert len(faster(0.75).select(encoding, "q").indices[1]) == 8  # fewer than k = 12 show the image


@few
@given(st.sampled_from(GRIDS), st.floats(0.06, 0.99), seeds)
def test_fastervlm_keeps_the_same_number_in_every_full_view(grid, ratio, seed):  # (e)
    encoding = random_encoding(full(*grid), seed=seed)
    k = math.floor(36 * ratio + 1e-9)
    assert lists(faster(ratio).select(encoding, "q")) == [best(view, k) for view in probabilities(encoding, 3)]


@pytest.mark.parametrize("mode", MODES)
def test_fastervlm_at_ratio_1(mode):
    assert faster(1.0, mode).select(random_encoding(Views(6)), "q") is None  # (b)
    padded = Views(6, 2, 2, (640, 480), newline=True)
    kept = faster(1.0, mode).select(random_encoding(padded), "q")
    assert (kept is None) == (mode == "paper")
    if kept:
        assert len(pack(padded, kept, "none")) == 180


@few
@given(images(), ratios, ratios, seeds, modes)
def test_fastervlm_is_nested_in_k(views, one, other, seed, mode):  # (c)
    encoding = random_encoding(views, seed=seed)
    fewer, more = (faster(min(r, 0.99), mode).select(encoding, "q") for r in sorted((one, other)))
    assert all(set(a) <= set(b) for a, b in zip(lists(fewer), lists(more), strict=True))


@few
@given(st.sampled_from(GRIDS), st.floats(0.06, 0.99), seeds, modes, st.randoms(use_true_random=False))
def test_fastervlm_does_not_care_about_the_order_of_tiles(grid, ratio, seed, mode, random):  # (d)
    encoding = random_encoding(full(*grid), seed=seed)
    before = lists(faster(ratio, mode).select(encoding, "q"))
    order = list(range(1, encoding.views.count))
    random.shuffle(order)
    encoding.logits = {layer: logits[[0, *order]] for layer, logits in encoding.logits.items()}
    assert lists(faster(ratio, mode).select(encoding, "q")) == [before[i] for i in (0, *order)]


# HiRED


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("k", "ratio", "total", "thumbnail", "tiles"),
    [
        (4, 0.4, 1152, 576, 576),
        (4, 0.2, 576, 288, 288),
        (4, 0.1, 288, 144, 144),
        (3, 0.4, 921, 460, 461),
        (3, 0.2, 460, 230, 230),
        (2, 0.4, 691, 345, 346),
        (2, 0.2, 345, 172, 173),
    ],
)
def test_hired_budgets_as_printed(mode, k, ratio, total, thumbnail, tiles):  # (b)
    encoding = random_encoding(full(*{4: (2, 2), 3: (3, 1), 2: (2, 1)}[k], side=24), width=4)
    budgets = hi(ratio, mode).budgets(encoding)
    areas = {4: lambda p: p // 24 // 12 * 2 + p % 24 // 12, 3: lambda p: p // 24 // 8, 2: lambda p: p // 24 // 12}[k]
    if mode == "reference":
        areas = lambda p: p // (576 // k)  # noqa: E731
    marked = [areas(p) for p in best(probabilities(encoding, 1)[0], 288)]
    assert budgets == [thumbnail, *(tiles * marked.count(i) // 288 for i in range(k))]
    assert total - k <= sum(budgets) <= total


def test_hired_caps_thumbnail_and_tiles():
    budgets = hi(0.9).budgets(random_encoding(full(2, 2)))  # total 162: the thumbnail would get 81 of 36, the tiles get 126 of 144
    assert budgets[0] == 36
    assert 126 - 4 <= sum(budgets[1:]) <= 126
    assert tile_budgets([8, 0, 0, 2], 100, 36) == [36, 0, 0, 20]  # what a full tile cannot take is lost
    encoding = random_encoding(full(2, 1), heads=1)
    encoding.logits[1][0, 0, [35, 36]] = -9.0  # 34 of 36 are marked: 18 above, 16 below
    # Total 102, thumbnail 5. The other 97 are cut to 72 before they are shared: 72 * 18 / 34 is more than 36, 72 * 16 / 34 is 33.9.
    assert hi(0.95, alpha=0.05).budgets(encoding) == [5, 36, 33]


@few
@given(images(), st.floats(0.06, 1), st.floats(0, 1), seeds, modes)
def test_hired_never_exceeds_the_total_and_loses_less_than_a_token_a_tile(views, ratio, alpha, seed, mode):  # (a)
    encoding = random_encoding(views, seed=seed)
    total = math.floor(views.count * 36 * ratio + (1e-9 if mode == "paper" else 0))
    budgets = hi(ratio, mode, alpha).budgets(encoding)
    assert sum(budgets) <= total
    assert all(0 <= b <= 36 for b in budgets)
    ratio = min(ratio, 0.4)  # up to here no tile can be full at alpha = 0.5
    assert sum(hi(ratio, mode).budgets(encoding)) >= math.floor(views.count * 36 * ratio) - views.tiles


@few
@given(images(), st.floats(0.06, 0.99), seeds, modes)
def test_hired_keeps_at_most_its_budgets_and_all_of_them_without_padding(views, ratio, seed, mode):  # (c)
    for geometry in (views, full(views.rows, views.columns)):
        encoding = random_encoding(geometry, seed=seed)
        budgets = hi(ratio, mode).budgets(encoding)
        kept = hi(ratio, mode).select(encoding, "q")
        counts = [len(index) for index in kept.indices]
        assert all(c <= b for c, b in zip(counts, budgets, strict=True))
        if geometry.valid.all():
            assert counts == budgets
            assert lists(kept) == [best(s, b) for s, b in zip(probabilities(encoding, 3), budgets, strict=True)]


def test_hired_reference_wastes_budget_on_padding():
    views = Views(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = [[0.0] * 16, [9.0] * 4 + [0.0] * 12, [9.0] * 3 + [0.0, 5.0] + [0.0] * 11]
    encoding = with_logits(views, rows, layer=3)
    encoding.logits[1] = torch.zeros(3, 1, 17)
    encoding.logits[1][0, 0, [1, 2, 3, 4, 9, 10, 11, 12]] = 5.0  # rows 0 and 2 are marked: 4 in every block, 4 in every band
    for mode, wanted in (("paper", [[4, 5, 6, 7], [4, 5, 6, 7]]), ("reference", [[], [4]])):
        pruner = hi(8.5 / 24, mode)  # total 17, thumbnail 8, tiles 9: 4 each
        assert pruner.budgets(encoding) == [8, 4, 4]
        assert lists(pruner.select(encoding, "q"))[1:] == wanted


@few
@given(st.sampled_from([(2, 1), (3, 1)]), st.floats(0.06, 0.99), st.floats(0, 1), seeds)
def test_hired_modes_agree_on_one_column_of_tiles(grid, ratio, alpha, seed):  # (d)
    encoding = random_encoding(full(*grid), seed=seed)
    assert hi(ratio, "paper", alpha).budgets(encoding) == hi(ratio, "reference", alpha).budgets(encoding)
    assert lists(hi(ratio, "paper", alpha).select(encoding, "q")) == lists(hi(ratio, "reference", alpha).select(encoding, "q"))


def test_hired_areas_are_blocks_in_the_paper_and_bands_in_the_code():
    views = full(2, 2, side=4)
    encoding = random_encoding(views, heads=1)
    encoding.logits[1] = torch.zeros(5, 1, 17)
    encoding.logits[1][0, 0, [1, 2, 5, 6]] = 5.0  # the upper left 2 x 2 patches; behind the CLS key, so one further
    assert hi(0.4, "paper", 0.75).budgets(encoding) == [16, 16, 0, 0, 0]  # total 32, 4 marks, all in the first block
    assert hi(0.4, "reference", 0.75).budgets(encoding) == [16, 8, 8, 0, 0]  # two each in the first two rows of the thumbnail


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid", GRIDS)
def test_hired_even_marks_give_equal_budgets(mode, grid):  # (e)
    views = full(*grid, side=12)
    encoding = random_encoding(views, heads=1)
    patch = torch.arange(144)
    encoding.logits[1] = torch.zeros(views.count, 1, 145)
    encoding.logits[1][0, 0, 1:] = ((patch // 12 + patch % 12) % 2).float()  # a chessboard: half of every block and band
    total = math.floor(views.count * 144 * 0.3 + 1e-9)
    budgets = hi(0.3, mode).budgets(encoding)
    assert budgets == [total // 2] + [(total - total // 2) // views.tiles] * views.tiles


def test_hired_without_marks_shares_equally():
    for mode in MODES:
        assert hi(0.4, mode, 1.0).budgets(random_encoding(full(2, 2, side=24), width=4)) == [576, 144, 144, 144, 144]
        assert hi(0.2, mode, 1.0).budgets(random_encoding(full(2, 2, side=24), width=4)) == [576, 0, 0, 0, 0]


def test_hired_counts_marks_and_not_how_strong_they_are():
    encoding = random_encoding(full(2, 2), heads=1)
    before = hi(0.4).budgets(encoding)
    encoding.logits[1] = 5 * encoding.logits[1]  # the same order, another mass
    assert hi(0.4).budgets(encoding) == before


def test_hired_allocates_by_one_layer_and_selects_by_the_other():
    encoding, other = (random_encoding(full(2, 2), seed=seed) for seed in (0, 1))
    budgets, thumbnail = hi(0.2).budgets(encoding), lists(hi(0.2).select(encoding, "q"))[0]
    early = {**encoding.logits, 1: other.logits[1]}
    late = {**encoding.logits, 3: other.logits[3]}
    encoding.logits = early
    assert hi(0.2).budgets(encoding) != budgets
    assert lists(hi(0.2).select(encoding, "q"))[0] == thumbnail
    encoding.logits = late
    assert hi(0.2).budgets(encoding) == budgets
    assert lists(hi(0.2).select(encoding, "q"))[0] != thumbnail


def test_hired_floors_forgive_floats_in_the_paper_mode_only():
    encoding = random_encoding(full(2, 2, side=24), width=4)  # 2880 * 0.7 is 2016, and 2015.99... in floats
    assert hi(0.7, "paper", 1.0).budgets(encoding) == [576, 360, 360, 360, 360]
    assert hi(0.7, "reference", 1.0).budgets(encoding) == [576, 359, 359, 359, 359]


def test_hired_at_ratio_1():
    views = Views(6, 2, 2, (640, 480), newline=True)
    assert hi(1.0).select(random_encoding(views), "q") is None
    kept = hi(1.0, "reference").select(random_encoding(views), "q")  # the code skips the selection, and the newlines with it
    assert torch.equal(pack(views, kept, "none"), torch.cat([torch.arange(36), views.unpadded.flatten()]))


def test_hired_reference_leaves_a_single_view_of_llava_next_whole():
    kept = hi(0.2, "reference").select(random_encoding(Views(6, newline=True)), "q")
    assert lists(kept) == [list(range(36))]
    assert len(hi(0.2).select(random_encoding(Views(6, newline=True)), "q").indices[0]) == 7


def test_hired_keeps_a_token_where_rounding_loses_all():
    encoding = random_encoding(full(2, 2))
    pruner = hi(0.007)  # a total of 1: half a token for the thumbnail, and less than one for every tile
    assert pruner.budgets(encoding) == [0, 0, 0, 0, 0]
    assert lists(pruner.select(encoding, "q")) == [best(probabilities(encoding, 3)[0], 1), [], [], [], []]


# GlobalCom2

weights = st.lists(st.floats(-50, 50), min_size=2, max_size=4)


@few
@given(weights, st.floats(0.01, 0.5), st.floats(0.05, 100))
def test_globalcom2_shares_average_to_the_ratio(g, ratio, temperature):  # (a); up to R = 0.5 nothing is clipped
    shares = tile_shares(g, ratio, temperature)
    assert sum(shares) / len(g) == pytest.approx(ratio, rel=1e-9)
    by_weight = [share for _, share in sorted(zip(g, shares, strict=True))]
    assert by_weight == sorted(shares)


@few
@given(st.integers(2, 4), st.floats(-1000, 1000), st.floats(0.01, 1))
def test_globalcom2_equal_weights_give_every_tile_the_ratio(k, g, ratio):  # (b)
    assert tile_shares([g] * k, ratio, 10.0) == pytest.approx([ratio] * k, rel=1e-12)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("grid", GRIDS)
def test_globalcom2_a_flat_thumbnail_loses_no_token_to_floats(ratio, grid):
    views = full(*grid, side=24)
    encoding = with_logits(views, [[0.1] * 576] * views.count)
    assert command(ratio).budgets(encoding) == [int(576 * ratio)] * views.count


def test_globalcom2_shares_by_hand():
    low = 1 / (math.e + 1)  # softmax of two weights that are 10 apart, at T = 10
    assert tile_shares([10.0, 0.0], 0.5, 10.0) == pytest.approx([0.5 * (1.5 - low), 0.5 * (0.5 + low)])
    assert tile_shares([10.0, 0.0], 1.0, 10.0) == pytest.approx([1.0, 0.5 + low])  # clipped above at 1
    assert tile_shares([1e4, 0.0, 0.0, 0.0], 0.4, 10.0) == pytest.approx([0.7, 0.3, 0.3, 0.3])  # 1.75 R and 0.75 R


def test_globalcom2_budgets_by_hand():
    views = full(1, 2, side=4)
    encoding = with_logits(views, [[10.0] + [0.0] * 15] * 3)
    assert command(0.5, "reference").budgets(encoding) == [8, 9, 6]  # 16 * 0.5 * (1 +- 0.231)
    assert command(1.0, "reference").budgets(encoding) == [16, 16, 12]
    # Attention of patch 0 is 16 / 32, of each other token 1 / 32: the left block weighs 23 / 32, the right one 8 / 32, and T makes of that
    # a sigma of 3/4 and 1/4. The logits themselves would give the left tile 7.
    encoding = with_logits(views, [[math.log(16)] + [0.0] * 15] * 3)
    assert command(0.33, temperature=15 / 32 / math.log(3)).budgets(encoding) == [5, 6, 3]
    assert command(0.33, "reference", temperature=15 / 32 / math.log(3)).budgets(encoding) == [5, 7, 2]


def test_globalcom2_a_tile_is_compressed_from_the_tokens_that_show_the_image():
    views = Views(4, 1, 2, (100, 400), newline=True)  # rows 1 and 2 of 4
    assert command(0.5).budgets(with_logits(views, [[0.0] * 16] * 3)) == [8, 4, 4]


@few
@given(images(), st.floats(0.06, 1), seeds, modes)
def test_globalcom2_counts(views, ratio, seed, mode):  # (c)
    encoding = random_encoding(views, seed=seed)
    pruner = command(ratio, mode)
    kept = pruner.select(encoding, "q")
    floor = (lambda x: math.floor(x + 1e-9)) if mode == "paper" else math.floor
    scores = probabilities(encoding, 4)[0] if mode == "paper" else encoding.logits[4][0].double().mean(0)[1:].tolist()
    height, width = 6 // views.rows, 6 // views.columns
    g = [0.0] * views.tiles
    for p, s in enumerate(scores):
        g[p // 6 // height * views.columns + p % 6 // width] += s
    powers = [math.exp(x / 10) for x in g]
    wanted = [floor(36 * ratio)]
    for i, p in enumerate(powers):
        wanted.append(floor(int(views.valid[i + 1].sum()) * min(1, ratio * (1 + p / sum(powers) - 1 / views.tiles))))
    counts = [len(index) for index in kept.indices]
    assert all(abs(c - w) <= (i > 0) for i, (c, w) in enumerate(zip(counts, wanted, strict=True)))  # 1e-8 and float32 may tip a floor
    source = pack(views, kept, pruner.newline_policy)
    rows = 6 * views.rows if mode == "reference" else len(views.unpadded) if views.unpadded.numel() else 0
    assert int((source == NEWLINE).sum()) == rows
    assert len(source) == sum(counts) + rows


@few
@given(st.sampled_from(GRIDS), seeds, st.integers(1, 9))
def test_globalcom2_a_constant_on_all_logits(grid, seed, constant):  # (d)
    encoding, shifted = (random_encoding(full(*grid), seed=seed) for _ in range(2))
    for one, c in ((encoding, 0), (shifted, constant)):
        one.logits[4] = (one.logits[4] * 64).round() / 64 + c  # so that adding c is exact
    pruner = command(0.5, "reference")
    assert pruner.budgets(encoding) == pruner.budgets(shifted)
    assert lists(pruner.select(encoding, "q"))[0] == lists(pruner.select(shifted, "q"))[0]


def test_globalcom2_a_constant_on_all_logits_changes_what_tiles_keep_in_the_reference_mode():  # (d)
    encoding = random_encoding(full(2, 2))
    encoding.logits[4][0] *= 10  # the norm makes thumbnail and tile count the same, a constant brings their scales back
    before = {mode: lists(command(0.5, mode).select(encoding, "q")) for mode in MODES}
    encoding.logits[4] = encoding.logits[4] + 8
    assert lists(command(0.5, "reference").select(encoding, "q"))[1:] != before["reference"][1:]
    assert lists(command(0.5, "paper").select(encoding, "q")) == before["paper"]  # a softmax does not see it


@pytest.mark.parametrize("mode", MODES)
def test_globalcom2_ratio_1_is_not_the_untouched_model(mode):  # (e)
    kept = command(1.0, mode).select(random_encoding(full(2, 2)), "q")
    counts = [len(index) for index in kept.indices]
    assert counts[0] == 36
    assert max(counts[1:]) == 36
    assert min(counts[1:]) < 36


def test_globalcom2_ranks_by_the_sum_of_both_normed_scores():
    views = full(1, 2, side=4)
    thumbnail = [0.0] * 4 + [100.0] * 4 + [0.0] * 8  # its row 1; over a tile, 8 of 100 have the norm 200, or 0.5 each
    own = [0.0] * 15 + [1.0]  # norm 1: ahead of 0.5, though it is smaller than 100
    encoding = with_logits(views, [thumbnail, own, [0.0] * 16])
    # Without the tile's own scores 4 and 5 would stay, also without the norms; without the thumbnail's 0 and 15.
    assert lists(command(0.125, "reference").select(encoding, "q")) == [[4, 5], [4, 15], [4, 5]]


def test_globalcom2_the_thumbnail_is_laid_over_the_image_without_its_padding():
    views = Views(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4
    rows = torch.tensor([0.0, 2.0, 10.0, 20.0]).repeat_interleave(4)
    wanted = [0.0] * 4 + [1.0] * 4 + [15.0] * 4 + [0.0] * 4  # a row of the image shows the mean of two rows of the thumbnail
    assert commanded(views, rows).tolist() == [[0.0] * 16, wanted, wanted]
    columns = torch.tensor([0.0, 8.0]).repeat(2)
    guide = commanded(full(1, 2, side=2), columns).tolist()  # 2 columns become 4, half a column apart
    assert guide == [[0.0] * 4, [0.0, 2.0, 0.0, 2.0], [6.0, 8.0, 6.0, 8.0]]


def test_globalcom2_an_image_cut_to_nothing_keeps_its_thumbnail():
    views = Views(6, 1, 2, (1, 400), newline=True)
    assert not views.valid[1:].any()
    assert [len(index) for index in command(0.5).select(random_encoding(views), "q").indices] == [18, 0, 0]
