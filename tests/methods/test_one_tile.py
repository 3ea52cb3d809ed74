"""The thumbnail with one tile or none: which tile, what of it, and what becomes of images that have fewer."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from support.layouts import LETTERBOX, NARROW, layouts
from support.models import random_encoding

from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import NEWLINE, ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods import one_tile
from blink_exp.methods.hero import Hero
from blink_exp.methods.one_tile import OneTile

SQUARE = ViewGeometry(6, 2, 2, (100, 100), newline=True)  # four tiles, no padding
METRICS = ("clip_score", "cls_similarity")


def toward(cosines: list[float]) -> torch.Tensor:
    """(tiles, 2) vectors of unequal lengths with these cosines to (1, 0)."""
    return torch.tensor([[k * c, k * (1 - c * c) ** 0.5] for k, c in enumerate(cosines, 1)])


def scored(views=SQUARE, clip=(0.1, 0.9, 0.5, 0.3), cls=(0.8, 0.2, 0.4, 0.6)):
    """Tiles whose CLIPscore and CLSsim are these; the thumbnail's own CLIPscore is the best of all and must not count."""
    encoding = random_encoding(views, width=2, text=torch.tensor([3.0, 0.0]))
    here = torch.tensor([[2.0, 0.0]])
    encoding.projected = torch.cat([here, toward(list(clip))])
    encoding.pooled = torch.cat([here, toward(list(cls))])
    encoding.last_hidden = torch.cat([here, toward([0.0, 0.0, 0.0, 1.0])])
    return encoding


def sizes(pruner: OneTile, encoding) -> list[int]:
    return [len(index) for index in pruner.select(encoding, "what is it?").indices]


@pytest.mark.parametrize(
    ("metric", "order"),
    [("clip_score", [2, 3, 4, 1]), ("cls_similarity", [1, 4, 3, 2])],
)
def test_the_kth_tile_stays_whole_and_no_other(metric, order):
    for rank, tile in enumerate(order, 1):
        pruner = OneTile(rank, metric)
        assert pruner.tile(scored(), "") == tile
        assert sizes(pruner, scored()) == [36 if view in (0, tile) else 0 for view in range(5)]  # rank 2 does not hold rank 1's tile


def test_the_thumbnail_alone():
    assert sizes(OneTile(), scored()) == [36, 0, 0, 0, 0]
    assert OneTile().needs == EncoderRequirements()  # nothing of the encoder is recorded, no text tower loaded
    assert OneTile().select(random_encoding(ViewGeometry(6)), "") is None  # a single view is all there is
    assert OneTile(1).select(random_encoding(ViewGeometry(6)), "") is None


def test_equal_tiles_go_to_the_lower_index():
    encoding = scored()
    encoding.pooled[1:] = encoding.pooled[1]
    assert [OneTile(k, "cls_similarity").tile(encoding, "") for k in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_an_image_without_a_kth_tile():
    two = scored(ViewGeometry(6, 1, 2, (50, 100), newline=True), clip=(0.2, 0.7), cls=(0.5, 0.1))
    assert [OneTile(k).tile(two, "") for k in (1, 2, 3, 4)] == [2, 1, None, None]
    assert [OneTile(k, fewer="last").tile(two, "") for k in (1, 2, 3, 4)] == [2, 1, 1, 1]
    assert sizes(OneTile(3), two) == [36, 0, 0] and sizes(OneTile(3, fewer="last"), two) == [36, 36, 0]


def test_padding_is_neither_kept_nor_ranked():
    kept = OneTile(1).select(scored(LETTERBOX), "").indices
    assert kept[2].tolist() == LETTERBOX.valid[2].nonzero()[:, 0].tolist() and len(kept[2]) == 24  # two of its six rows are padding
    padded = scored(NARROW, clip=(0.9, 0.1, 0.5), cls=(0.9, 0.1, 0.5))
    for metric in METRICS:  # the outer tiles score better and show nothing
        assert OneTile(1, metric).tile(padded, "") == 2
        assert OneTile(2, metric).tile(padded, "") is None
        assert OneTile(2, metric, fewer="last").tile(padded, "") == 2


@layouts
@pytest.mark.parametrize("metric", METRICS)
def test_the_order_is_that_of_hero_s_shares(views, metric):
    """HERO's shares are softmaxes of the same scores, so they rank alike."""
    if not views.tiles:
        pytest.skip("one view has no tiles")
    for seed in range(5):
        encoding = random_encoding(views, seed=seed)
        shares = Hero(0.5, frozenset({1}), frozenset({1}), float(metric == "cls_similarity")).shares(encoding, "q")
        wanted = [i + 1 for i in sorted(range(views.tiles), key=lambda i: -shares[i]) if bool(views.valid[i + 1].any())]
        assert OneTile(1, metric).ranked(encoding, "q") == wanted


def test_newlines_are_pack_s_and_can_be_left_out():
    kept = OneTile(1).select(scored(), "")
    source = pack(SQUARE, kept, "valid_rows")
    assert len(source) == 72 + 12 and int((source == NEWLINE).sum()) == 12
    assert source[:36].tolist() == list(range(36))
    # Tile 2 is the upper right one: its six tokens of a row, then the row's newline; the lower six rows are newlines alone.
    assert source[36:43].tolist() == [72, 73, 74, 75, 76, 77, NEWLINE] and source[-6:].tolist() == [NEWLINE] * 6
    assert len(pack(SQUARE, OneTile().select(scored(), ""), "none")) == 36


def test_what_it_asks_the_encoder_for():
    assert OneTile(1).needs == EncoderRequirements(text=True)
    assert OneTile(1, "cls_similarity").needs == EncoderRequirements(cls=True)
    assert OneTile(1, "cls_similarity", cls_source="projected").needs == EncoderRequirements(cls=True, text=True)
    assert OneTile(1, "cls_similarity", cls_source="last_hidden").tile(scored(), "") == 4


def test_it_is_built_by_name_and_refuses_what_it_does_not_know():
    asked = []
    backbone = SimpleNamespace(check=asked.append)
    method = one_tile.thumbnail_plus_tile(backbone, metric="cls_similarity", rank=2, fewer="last", newline_policy="none")
    assert method.name == method.pruner.name == "thumbnail_plus_tile" and asked == [EncoderRequirements(cls=True)]
    assert method.pruner == OneTile(2, "cls_similarity", "last", newline_policy="none")
    alone = one_tile.thumbnail(backbone, newline_policy="none")
    assert alone.name == alone.pruner.name == "thumbnail" and alone.pruner == OneTile(newline_policy="none")
    for wrong in (0, 5, 1.0, True):
        with pytest.raises(UserError, match=r"method.rank=.* from 1 \(the best\) to 4"):
            OneTile(wrong)
    for name in ("metric", "fewer", "cls_source"):
        with pytest.raises(UserError, match=rf"method\.{name}=other is not known"):
            dataclasses.replace(OneTile(1), **{name: "other"})
    with pytest.raises(UserError, match="newline_policy"):
        OneTile(newline_policy="some")
    with pytest.raises(UserError, match=r"method\.rank=null"):
        one_tile.thumbnail_plus_tile(backbone, rank=None)
