"""VisPruner: the rounds by hand and against a plain reading of them, lists of odd length, budgets, modes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.models import random_encoding
from support.view_pruners import best, lists, probabilities, with_logits

from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods import vispruner
from blink_exp.methods.budgets import view_budget
from blink_exp.methods.vispruner import VisPruner, configure

WIDE = ViewGeometry(4, 1, 2, (100, 400), newline=True)  # the image fills rows 1 and 2 of 4 of both tiles


def exact_features(tokens: int, seed: int = 0) -> torch.Tensor:
    """(tokens, 64) of -1 and 1: every norm is 8 and every cosine a multiple of 1/32, so that no order of sums changes a bit."""
    return torch.randint(0, 2, (tokens, 64), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1


def diverse(features: torch.Tensor, count: int) -> list[int]:
    """Places that remain of one view."""
    return vispruner.most_diverse(features[None], count)[0].tolist()


def chosen(scores: torch.Tensor, features: torch.Tensor, count: int, important_ratio: float) -> list[int]:
    return vispruner.important_and_diverse(scores[None], features[None], count, important_ratio)[0].tolist()


def plain_rounds(features: torch.Tensor, count: int) -> list[int]:
    """The published rounds, token by token. Raises AssertionError where the published code fails."""
    cosines = (features @ features.T / 64).tolist()
    places = list(range(len(features)))
    while len(places) > count:
        assert len(places) % 2 == 0
        a, b = places[::2], places[1::2]
        redundant = {i: max(cosines[i][j] for j in b) for i in a}
        order = sorted(a, key=lambda i: -redundant[i])  # stable: ties go to the earlier place
        places = order[min(8, len(places) - count) :] + b
    return places


def test_a_round_by_hand():
    """a = 0, 2, 4, whose largest cosines with b = 1, 3, 5 are 0.6, 1 and 0.8: 2 is the most redundant, then 4, then 0."""
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0], [0.0, -2.0], [-0.8, -0.6], [-1.0, 0.0]])
    assert diverse(features, 5) == [4, 0, 1, 3, 5]
    assert diverse(features, 4) == [0, 1, 3, 5]
    assert diverse(features, 3) == [1, 3, 5]
    assert diverse(features, 6) == list(range(6))
    assert diverse(features, 0) == []


def test_what_is_left_of_a_stands_by_falling_redundancy_in_front_of_b():
    features = torch.tensor([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [0.8, 0.0, 0.6], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    # a = 0, 2, 4 at 0.6, 0.8, 1: 4 goes, 2 stands before 0
    assert diverse(features, 5) == [2, 0, 1, 3, 5]


@pytest.mark.parametrize(("tokens", "count"), [(144, 18), (80, 8), (64, 40), (62, 9), (40, 33)])
@pytest.mark.parametrize("seed", [0, 1])
def test_rounds_are_the_published_ones_where_those_run(tokens, count, seed):
    features = exact_features(tokens, seed)
    assert diverse(features, count) == plain_rounds(features, count)


@pytest.mark.parametrize(("tokens", "count"), [(63, 16), (5, 1), (571, 8), (572, 2), (3, 2)])
def test_lists_that_the_published_code_fails_on(tokens, count):
    """Odd lists, and rounds that would take more than all of a."""
    features = exact_features(tokens)
    with pytest.raises(AssertionError):
        plain_rounds(features, count)
    places = diverse(features, count)
    assert len(set(places)) == count and set(places) <= set(range(tokens))


def test_the_last_place_of_an_odd_list_is_in_a():
    """a = 0, 2, 4 and b = 1, 3: the last one is compared like the others, and goes for its copy in b."""
    features = torch.eye(4)[[0, 1, 2, 3, 3]]
    assert diverse(features, 4) == [0, 2, 1, 3]


def test_important_ones_by_attention_and_diverse_ones_of_the_others():
    """Attention falls with the index, but that of 5 and 3 is larger. k = 4: 5 and 3 are important; of 0, 1, 2, 4 two are left: 0 and 2 are
    compared with 1 and 4, and copies of them."""
    scores = torch.tensor([0.5, 0.4, 0.3, 0.8, 0.2, 0.9])
    features = torch.eye(4)[[0, 0, 1, 2, 1, 3]]
    assert chosen(scores, features, 4, 0.5) == [1, 3, 4, 5]
    assert chosen(scores, features, 4, 1.0) == [0, 1, 3, 5]
    assert chosen(scores, features, 5, 0.5)[-1] == 5  # int(2.5) important ones
    assert chosen(scores, features, 9, 0.5) == list(range(6))


def test_equal_attention_goes_to_the_lower_index():
    assert chosen(torch.ones(6), torch.eye(6), 3, 1.0) == [0, 1, 2]


def test_views_choose_alone_and_padding_is_kept_by_the_code_alone():
    rows = [[0.0] * 16, [9.0] * 4 + [0.0] * 12, [0.0] * 12 + [9.0] * 4]  # attention of the tiles is on padding
    encoding = with_logits(WIDE, rows, layer=3)
    paper, reference = (VisPruner(0.5, 1.0, 3, mode).select(encoding, "q") for mode in ("paper", "reference"))
    assert lists(paper) == [list(range(8)), list(range(4, 12)), list(range(4, 12))]
    assert lists(reference)[1:] == [list(range(8)), [0, 1, 2, 3, 12, 13, 14, 15]] and reference.padding
    assert len(pack(WIDE, reference, "none")) == 24


def test_views_together_as_one_by_one_with_exact_features():
    features = torch.stack([exact_features(64, seed) for seed in range(4)])
    scores = torch.rand(4, 64, generator=torch.Generator().manual_seed(9))
    together = vispruner.important_and_diverse(scores, features, 16, 0.5).tolist()
    assert together == [chosen(s, f, 16, 0.5) for s, f in zip(scores, features, strict=True)]
    assert len({tuple(row) for row in together}) == 4


def test_all_of_the_budget_by_attention_is_fastervlm_s_choice():
    encoding = random_encoding(ViewGeometry(6), seed=3)
    kept = VisPruner(0.25, 1.0, 3).select(encoding, "q")
    assert lists(kept) == [best(probabilities(encoding, 3)[0], 9)]


def test_the_modes_differ_in_tiles_and_newlines():
    paper, reference = VisPruner(0.5), VisPruner(0.5, mode="reference")
    assert paper.needs == EncoderRequirements(attention=frozenset({23}))
    assert reference.needs == EncoderRequirements(attention=frozenset({23}), tile_grid=(2, 2))
    assert (paper.newline_policy, reference.newline_policy) == ("valid_rows", "none")


def test_at_ratio_1():
    assert VisPruner(1.0, layer=3).select(random_encoding(WIDE), "q") is None
    kept = VisPruner(1.0, layer=3, mode="reference").select(random_encoding(WIDE), "q")
    assert lists(kept) == [list(range(16))] * 3


def backbone(tiled=False):
    vision = SimpleNamespace(num_hidden_layers=24)
    config = SimpleNamespace(vision_config=vision, **({"image_grid_pinpoints": [[672, 672]]} if tiled else {}))
    seen: list[EncoderRequirements] = []
    return SimpleNamespace(model=SimpleNamespace(config=config), grid=(24, 24), check=seen.append, seen=seen)


@pytest.mark.parametrize(("tokens", "tiled", "of_a_view"), [(128, False, 128), (10, False, 10), (640, True, 128), (320, True, 64)])
def test_tokens_are_those_of_a_view_exactly(tokens, tiled, of_a_view):
    on = backbone(tiled)
    method = configure(on, retention_ratio=0.2, tokens=tokens, mode="reference")
    assert view_budget(method.pruner.ratio, 576) == of_a_view and method.pruner.layer == 23
    assert on.seen == [method.pruner.needs] and method.tile_grid == (2, 2)


BAD = [
    ({"important_ratio": 1.5}, r"vispruner.important_ratio=1.5 is outside \[0, 1\]"),
    ({"layer": 25}, "vispruner.layer holds layer 25, outside the encoder's 1 to 24"),
    ({"layer": 0}, "vispruner.layer holds layer 0"),
    ({"mode": "code"}, "vispruner.mode=code is not known"),
    ({"retention_ratio": 2}, "retention_ratio=2 is outside"),
    ({"tokens": 0}, "tokens=0 is outside 1 to 576"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_input(settings, message):
    with pytest.raises(UserError, match=message):
        configure(backbone(), **({"retention_ratio": 0.5} | settings))
