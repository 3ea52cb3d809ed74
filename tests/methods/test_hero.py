"""HERO: budgets by the paper's rounding, selection by hand, and its laws over random images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import random_encoding, random_next
from support.view_pruners import images

from blink_exp.backbone.encode import encode, tower_layers
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import NEWLINE, ViewGeometry, all_tokens, pack
from blink_exp.errors import UserError
from blink_exp.methods.budgets import cap_and_redistribute
from blink_exp.methods.hero import Hero, relative_layers

LOW, HIGH = frozenset({1, 2}), frozenset({4})


def hero(ratio, **options) -> Hero:
    return Hero(ratio, LOW, HIGH, **options)


@pytest.mark.parametrize(
    ("k", "ratio", "total", "thumbnail"),
    [(4, 0.4, 1152, 230), (4, 0.2, 576, 115), (4, 0.1, 288, 57), (3, 0.4, 921, 230), (2, 0.4, 691, 230), (2, 0.2, 345, 115)],
)
def test_the_published_budgets(k, ratio, total, thumbnail):
    rows, columns = {4: (2, 2), 3: (1, 3), 2: (1, 2)}[k]
    size = {4: (672, 672), 3: (336, 1008), 2: (336, 672)}[k]
    views = ViewGeometry(24, rows, columns, size, newline=True)
    encoding = random_encoding(views, layers=(1, 2, 4), width=4)
    got, tiles = hero(ratio, remainder="largest_remainder").budgets(encoding, "q")
    assert got == thumbnail
    assert sum(tiles) == total - thumbnail
    got, tiles = hero(ratio).budgets(encoding, "q")
    shares = hero(ratio).shares(encoding, "q")
    assert tiles == [math.floor((total - thumbnail) * s) for s in shares]  # nothing is padded and nothing full: the paper's own floors


def test_the_authors_code_rounds_the_tiles_budget_by_itself():
    encoding = random_encoding(ViewGeometry(24, 2, 2, (672, 672), newline=True), layers=(1, 2, 4), width=4)
    for ratio, budget in ((0.4, 921), (0.2, 460)):
        _, tiles = hero(ratio, remainder="largest_remainder", tile_budget="own").budgets(encoding, "q")
        assert sum(tiles) == budget


@settings(max_examples=60, deadline=None)
@given(images(), st.floats(0.03, 1), st.integers(0, 99), st.sampled_from(["paper", "largest_remainder"]), st.floats(0.01, 1))
def test_budget_laws(views, ratio, seed, remainder, temperature):
    encoding = random_encoding(views, seed=seed)
    method = hero(ratio, remainder=remainder, temperature_cls=temperature, temperature_clip=temperature)
    thumbnail, tiles = method.budgets(encoding, "q")
    valid = [int(v.sum()) for v in views.valid[1:]]
    rest = math.floor((views.tiles + 1) * 36 * ratio + 1e-9) - thumbnail
    assert thumbnail == math.floor(36 * ratio + 1e-9)
    assert all(0 <= t <= v for t, v in zip(tiles, valid, strict=True))
    assert sum(tiles) <= rest
    if remainder == "largest_remainder":
        assert sum(tiles) == min(rest, sum(valid))
    else:
        assert sum(tiles) >= min(rest - views.tiles, sum(valid))


@settings(max_examples=30, deadline=None)
@given(images(), st.floats(0.05, 0.99), st.integers(0, 99))
def test_what_is_kept(views, ratio, seed):
    encoding = random_encoding(views, seed=seed)
    method = hero(ratio)
    kept = method.select(encoding, "q")
    assert kept is not None
    thumbnail, tiles = method.budgets(encoding, "q")
    assert [len(i) for i in kept.indices] == [thumbnail, *tiles]
    for view, index in enumerate(kept.indices):
        assert index.tolist() == sorted(set(index.tolist()))
        assert bool(views.valid[view][index].all())  # no padding is ever kept
        layers = HIGH if view == 0 else LOW
        score = sum(encoding.logits[i][view].softmax(-1)[:, 1:].mean(0) for i in layers) / len(layers)
        left = views.valid[view].clone()
        left[index] = False
        if len(index) and left.any():
            assert score[index].min() >= score[left].max()


def test_identical_tiles_get_equal_budgets_and_heat_makes_them_uniform():
    views = ViewGeometry(6, 2, 2, (100, 100), newline=True)
    encoding = random_encoding(views)
    hot = hero(0.5, temperature_cls=1e6, temperature_clip=1e6)
    assert hot.shares(encoding, "q") == pytest.approx([0.25] * 4, abs=1e-5)
    cold = hero(0.5, temperature_cls=0.01, temperature_clip=0.01)
    assert max(cold.shares(encoding, "q")) > 0.4
    for name in ("pooled", "projected"):
        cls = getattr(encoding, name)
        cls[1:] = cls[1]
    assert len(set(hero(0.5, temperature_cls=0.01).budgets(encoding, "q")[1])) == 1


def test_alpha_decides_who_is_heard():
    views = ViewGeometry(6, 2, 2, (100, 100), newline=True)
    encoding = random_encoding(views)
    image, text = (hero(0.5, alpha=a, temperature_cls=0.1, temperature_clip=0.1) for a in (1.0, 0.0))
    before = image.shares(encoding, "q"), text.shares(encoding, "q")
    encoding.embed_text = lambda question: torch.randn(8, generator=torch.Generator().manual_seed(9))
    assert image.shares(encoding, "q") == before[0]  # alpha = 1 ignores the text
    assert text.shares(encoding, "q") != before[1]
    before_text = text.shares(encoding, "q")
    encoding.pooled = encoding.pooled.flip(0)
    assert text.shares(encoding, "q") == before_text  # alpha = 0 ignores CLS
    assert image.shares(encoding, "q") != before[0]
    assert sum(hero(0.5).shares(encoding, "q")) == pytest.approx(1)
    assert not hero(0.5, alpha=1.0).needs.text
    assert hero(0.5, alpha=0.5).needs.text


def test_shares_by_hand():
    """Two tiles whose CLS has cosine 1 and 0 with the thumbnail's, and cosines 0 and 0.6 with the text."""
    views = ViewGeometry(6, 1, 2, (24, 48), newline=True)
    encoding = random_encoding(views, width=2, text=torch.tensor([0.0, 2.0]))
    encoding.pooled = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    encoding.projected = torch.tensor([[1.0, 1.0], [5.0, 0.0], [0.8, 0.6]])
    visual = math.e / (math.e + 1)
    textual = 1 / (1 + math.exp(0.6 / 0.5))
    got = hero(0.5, alpha=0.25, temperature_clip=0.5).shares(encoding, "q")
    assert got == pytest.approx([0.25 * visual + 0.75 * textual, 0.25 * (1 - visual) + 0.75 * (1 - textual)])


def test_the_thumbnail_does_not_depend_on_l_nor_the_tiles_on_h():
    encoding = random_encoding(ViewGeometry(6, 2, 2, (100, 100), newline=True))
    base = hero(0.3).select(encoding, "q").indices
    other_low = Hero(0.3, frozenset({3}), HIGH).select(encoding, "q").indices
    other_high = Hero(0.3, LOW, frozenset({3})).select(encoding, "q").indices
    assert torch.equal(base[0], other_low[0])
    assert any(not torch.equal(a, b) for a, b in zip(base[1:], other_low[1:], strict=True))
    assert not torch.equal(base[0], other_high[0])
    assert all(torch.equal(a, b) for a, b in zip(base[1:], other_high[1:], strict=True))


def test_padding_moves_budget_away_with_density_and_excess_is_redistributed():
    views = ViewGeometry(6, 2, 2, (30, 100), newline=True)  # half the rows are padding, the same in all tiles
    lopsided = ViewGeometry(6, 1, 3, (20, 24), newline=True)  # the outer tiles are padding only
    encoding = random_encoding(lopsided)
    shown = [int(v.sum()) for v in lopsided.valid[1:]]
    assert shown[0] < 36
    full = hero(0.9, alpha=1.0).budgets(encoding, "q")[1]
    assert sum(full) == min(sum(shown), math.floor(4 * 36 * 0.9 + 1e-9) - 32)
    cut = hero(0.9, alpha=1.0, overflow="truncate").budgets(encoding, "q")[1]
    assert sum(cut) <= sum(full)
    dense = hero(0.5, density_weight=1.0).shares(encoding, "q")
    assert dense == pytest.approx([s / sum(shown) for s in shown])
    assert hero(0.5, density_weight=0.2).shares(random_encoding(views), "q") != hero(0.5).shares(random_encoding(views), "q")


def test_capped_by_hand():
    assert cap_and_redistribute([10, 2, 3], [4, 9, 9], [0.5, 0.25, 0.25], redistribute=True) == [4, 5, 6]
    assert cap_and_redistribute([10, 2, 3], [4, 9, 9], [0.5, 0.25, 0.25], redistribute=False) == [4, 2, 3]
    assert cap_and_redistribute([10, 2, 3], [4, 3, 4], [0.5, 0.25, 0.25], redistribute=True) == [4, 3, 4]
    assert cap_and_redistribute([5, 0, 0], [4, 9, 9], [1.0, 0.0, 0.0], redistribute=True) in ([4, 1, 0], [4, 0, 1])


def test_ratio_1_is_the_untouched_model_and_llava_1_5_has_no_allocation():
    single = random_encoding(ViewGeometry(6))
    assert hero(1.0).select(single, "q") is None
    kept = hero(0.25).select(single, "q")
    assert [len(i) for i in kept.indices] == [9]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hero(0.0), "retention_ratio=0.0 is outside (0, 1]"),
        (lambda: hero(1.2), "retention_ratio=1.2 is outside (0, 1]"),
        (lambda: hero(0.2, alpha=1.5), "hero.alpha=1.5 is outside [0, 1]"),
        (lambda: hero(0.2, temperature_cls=0), "hero.temperature_cls=0 divides scores; use a value above 0"),
        (lambda: hero(0.2, remainder="papre"), "hero.remainder=papre is not known; did you mean paper"),
        (lambda: hero(0.2, newline_policy="rows"), "newline_policy=rows is not known"),
        (lambda: relative_layers("hero_low.layers", [], 24), "hero_low.layers=[] names no layer; use layers from 1 to 24"),
        (lambda: relative_layers("hero_high.layers", [25], 24), "hero_high.layers holds layer 25, outside the encoder's 1 to 24"),
        (
            lambda: hero(0.001).select(random_encoding(ViewGeometry(6)), "q"),
            "retention_ratio=0.001 rounds to no token of 36; use at least 0.0278",
        ),
    ],
)
def test_bad_values_say_what_to_do(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value)


def test_layer_sets_scale_to_another_encoder():
    assert relative_layers("L", [6, 7, 8, 9, 10], 24) == {6, 7, 8, 9, 10}
    assert relative_layers("L", [6, 7, 8, 9, 10], 12) == {3, 4, 5}
    assert relative_layers("H", [22], 12) == {11}
    assert relative_layers("H", [1], 2) == {1}


# The tower and the packing.


@pytest.fixture(scope="module")
def model():
    return random_next(side=6)


def pixels(views: ViewGeometry, seed=0) -> torch.Tensor:
    return torch.randn(views.count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


SIZES = [(24, 24), (40, 60), (20, 90), (100, 30), (77, 50), (1, 1), (4, 80)]


@pytest.mark.parametrize("size", SIZES)
def test_packing_everything_is_the_stock_sequence_bit_for_bit(model, size):
    views = ViewGeometry.of(model.config, size)
    stock = model.get_image_features(pixel_values=pixels(views)[None], image_sizes=torch.tensor([size])).pooler_output[0]
    encoding = encode(model, pixels(views), [views], EncoderRequirements(frozenset({1, 2})))[0]
    source = pack(views, all_tokens(views))
    projected = model.model.multi_modal_projector(encoding.hidden.flatten(0, 1)[source.clamp(min=0)])
    ours = torch.where((source == NEWLINE)[:, None], model.model.image_newline, projected)
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("policy", ["valid_rows", "none", "all_rows"])
def test_newlines_by_policy(model, policy):
    for size in ((20, 40), (30, 100)):  # nothing padded; a part of the rows
        views = ViewGeometry.of(model.config, size)
        kept = hero(0.3).select(random_encoding(views), "q")
        source = pack(views, kept, policy)
        rows = {"valid_rows": views.unpadded.shape[0], "none": 0, "all_rows": 6 * views.rows}[policy]
        assert int((source == NEWLINE).sum()) == rows
        tokens = source[source >= 0]
        assert sorted(tokens.tolist()) == sorted(v * 36 + int(i) for v, index in enumerate(kept.indices) for i in index)
        tiles = tokens[tokens >= 36]
        order = {int(t): n for n, t in enumerate(views.stitched.flatten())}
        assert [order[int(t)] for t in tiles] == sorted(order[int(t)] for t in tiles)  # raster order of the stitched grid


def test_the_recorded_cls_row_is_the_eager_attention_of_the_tower(model):
    views = ViewGeometry.of(model.config, (40, 60))
    encoding = encode(model, pixels(views), [views], EncoderRequirements(frozenset({1, 2})))[0]
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    maps = tower(pixels(views), output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    for layer in (1, 2):
        assert torch.allclose(encoding.attention(layer), maps[layer - 1][:, :, 0, 1:], atol=1e-6)


def test_the_tower_runs_once_on_sdpa_and_only_needed_layers_are_hooked(model, monkeypatch):
    from transformers.models.clip import modeling_clip

    def never(*args, **kwargs):
        raise AssertionError("the eager path makes a full attention matrix")

    monkeypatch.setattr(modeling_clip, "eager_attention_forward", never)
    views = ViewGeometry.of(model.config, (40, 60))
    tower = model.model.vision_tower
    runs, hooked = [], []
    inner = getattr(tower, "vision_model", tower)
    count = inner.embeddings.register_forward_hook(lambda *a: runs.append(len(a[2])))
    watch = inner.embeddings.register_forward_hook(
        lambda *a: hooked.extend(len(layer.self_attn.q_proj._forward_hooks) for layer in tower_layers(tower))
    )
    encode(model, pixels(views), [views], EncoderRequirements(frozenset({1}), cls=True))
    count.remove()
    watch.remove()
    assert runs == [5]  # one pass over thumbnail and tiles
    assert hooked == [1, 0]
    assert not any(layer.self_attn.q_proj._forward_hooks for layer in tower_layers(tower))  # and nothing stays behind


def test_several_images_in_one_pass_are_each_what_they_are_alone(model):
    sizes = [(40, 60), (20, 90)]
    views = [ViewGeometry.of(model.config, s) for s in sizes]
    x = [pixels(v, seed=i) for i, v in enumerate(views)]
    needs = EncoderRequirements(frozenset({1, 2}), cls=True)
    together = encode(model, torch.cat(x), views, needs)
    for both, v, p in zip(together, views, x, strict=True):
        alone = encode(model, p, [v], needs)[0]
        assert torch.allclose(both.hidden, alone.hidden, atol=1e-5)
        assert torch.allclose(both.logits[2], alone.logits[2], atol=1e-4)
        assert torch.allclose(both.pooled, alone.pooled, atol=1e-5)
        no_text = Hero(0.3, frozenset({1}), frozenset({2}), alpha=1.0)
        assert all(torch.equal(a, b) for a, b in zip(no_text.select(both, "q").indices, no_text.select(alone, "q").indices, strict=True))
