"""VisionZip. Oracles are written out by hand or as plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from support.layouts import LETTERBOX, NARROW, layouts
from support.models import random_encoding, random_llava, random_next

from blink_exp.backbone.encode import encode
from blink_exp.backbone.model import Backbone
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import EXTRA, NEWLINE, ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods import visionzip
from blink_exp.methods.visionzip import VisionZip, contextual_share, contextual_tokens, mean_keys

MODES = ("paper", "reference")


# Contextual tokens


def test_published_budgets_are_split_as_published():
    assert [contextual_share(k) for k in (192, 128, 64, 32)] == [30, 20, 10, 5]
    for k, split in ((192, (162, 30)), (128, (108, 20)), (64, (54, 10)), (32, (27, 5))):
        assert VisionZip(k / 576).budget(576) == split


def test_contextual_tokens_by_hand():
    """Seven patches and three targets: step 2, so the targets are 0, 2, 4, and the fourth of every second one, 6, is none."""
    features = torch.tensor([[1.0], [10], [2], [20], [4], [30], [40]])
    east, north, west = [1.0, 0], [0.0, 1], [-1.0, 0]
    keys = torch.tensor([east, north, north, north, west, east, north])
    merged = contextual_tokens(features, keys, 3)
    # 1, 3 and 6 point north as target 2 does, 5 points east as target 0; nobody joins target 4
    torch.testing.assert_close(merged[:, 0], torch.tensor([1 + 30, 2 + (10 + 20 + 40) / 3, 4]))


def test_similarity_is_of_directions_and_ties_go_to_the_first_target():
    features = torch.tensor([[1.0], [100], [1000], [10000]])
    keys = torch.tensor([[1.0, 0], [3.0, 1], [9.0, 9], [0.0, 1]])  # targets 0 and 2; by products 1 and 3 would both join 2
    assert contextual_tokens(features, keys, 2)[:, 0].tolist() == [1 + 100, 1000 + 10000]
    keys = torch.tensor([[1.0, 0], [0.0, 1], [1.0, 0], [0.0, 1]])
    assert contextual_tokens(features, keys, 2)[:, 0].tolist() == [1 + (100 + 10000) / 2, 1000]


@pytest.mark.parametrize("contextual", [3, 4, 9])
def test_as_many_targets_as_patches_or_more_leave_each_patch_alone(contextual):
    features = torch.randn(3, 4)
    assert torch.equal(contextual_tokens(features, torch.randn(3, 2), contextual), features)


def test_no_contextual_tokens_of_no_budget_and_of_no_patches():
    assert contextual_tokens(torch.randn(5, 4), torch.randn(5, 2), 0).shape == (0, 4)
    assert contextual_tokens(torch.randn(0, 4), torch.randn(0, 2), 3).shape == (0, 4)


def test_keys_are_averaged_over_heads():
    assert mean_keys(torch.tensor([[1.0, 2, 3, 4, 5, 9]]), 3).tolist() == [[3, 5]]  # three heads of width 2
    # Two heads that cancel in the mean: by full keys patch 1 is like target 0, by averaged ones like target 2.
    keys = torch.tensor([[4.0, 0, 1, 0], [4.0, 0, -4, 1], [0.0, 1, 0, 1], [4.0, 0, 1, 0]])
    features = torch.tensor([[1.0], [10], [100], [0]])
    full, mean = contextual_tokens(features, keys, 2), contextual_tokens(features, mean_keys(keys, 2), 2)
    assert (full[:, 0].tolist(), mean[:, 0].tolist()) == ([1 + (10 + 0) / 2, 100], [1 + 0, 100 + 10])


# A whole selection


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def view_by_hand(encoding, v, dominant, contextual, allowed):
    """(CLS rows, kept patches, contextual rows) of a view, patch by patch."""
    if not any(allowed):
        return [], [], []
    logits = encoding.logits[3][v].double()
    total = [0.0] * encoding.views.tokens
    for head in logits:
        powers = [math.exp(x) for x in head.tolist()]
        for i, power in enumerate(powers[1:]):
            total[i] += power / sum(powers)
    best = sorted((i for i in range(len(total)) if allowed[i]), key=lambda i: -total[i])[: dominant - 1]
    rest = [i for i in range(len(total)) if allowed[i] and i not in best]
    keys = encoding.keys[3][v][1:]
    width = keys.shape[1] // len(logits)
    key = {i: sum(keys[i][h * width : (h + 1) * width] for h in range(len(logits))) / len(logits) for i in rest}
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    groups = {t: [] for t in targets}
    for i in rest:
        if i not in groups:
            groups[max(targets, key=lambda t: cosine(key[i], key[t]))].append(i)
    x = encoding.hidden[v]
    merged = [x[t] + (sum(x[i] for i in group) / len(group) if group else 0) for t, group in groups.items()]
    return [encoding.hidden_cls[v]], sorted(best), merged


def rows_of(encoding, selection, source):
    """The features in the order in which they enter, None for a newline."""
    flat, extra = encoding.hidden.flatten(0, 1), iter(torch.cat(selection.extra))
    return [None if s == NEWLINE else next(extra) if s == EXTRA else flat[s] for s in source.tolist()]


@layouts
@pytest.mark.parametrize("mode", MODES)
def test_tokens_and_their_order_are_those_of_the_written_out_method(views, mode):
    encoding, n, paper = random_encoding(views, seed=2), views.tokens, mode == "paper"
    kept = VisionZip(0.4, layer=3, dominant=8, contextual=3, mode=mode).select(encoding, "")
    parts = [view_by_hand(encoding, v, 8, 3, (views.valid[v] if paper else torch.ones(n)).tolist()) for v in range(views.count)]
    flat = encoding.hidden.flatten(0, 1)
    classes, patches, merged = zip(*parts, strict=True)
    wanted = [*classes[0], *(flat[i] for i in patches[0]), *merged[0]]
    if views.tiles:
        chosen = {v * n + i for v in range(1, views.count) for i in patches[v]}
        for row in (views.unpadded if paper else views.stitched).tolist():
            wanted += [flat[i] for i in row if i in chosen] + [None] * paper
        wanted += [c for view in classes[1:] for c in view] + [m for view in merged[1:] for m in view]
    source = pack(views, kept, "valid_rows")
    rows = rows_of(encoding, kept, source)
    assert [row is None for row in rows] == [row is None for row in wanted]
    for row, want in zip(rows, wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(row, want)
    assert [index.tolist() for index in kept.indices] == [list(p) for p in patches]


def test_dominant_counts_cls():
    source = pack(ViewGeometry(6), VisionZip(0.4, 3, dominant=1, contextual=0).select(random_encoding(ViewGeometry(6)), ""))
    assert source.tolist() == [EXTRA]
    source = pack(ViewGeometry(6), VisionZip(0.4, 3, dominant=5, contextual=2).select(random_encoding(ViewGeometry(6)), ""))
    assert source[0] == EXTRA and source[5:].tolist() == [EXTRA] * 2 and len(source) == 7 and bool((source[1:5] >= 0).all())


@pytest.mark.parametrize("mode", MODES)
def test_a_single_view_of_llava_next_ends_with_a_newline(mode):
    views = ViewGeometry(6, newline=True)
    kept = VisionZip(0.25, 3, mode=mode).select(random_encoding(views), "")
    assert pack(views, kept, "none").tolist()[-2:] == [EXTRA, NEWLINE]
    assert int((pack(views, kept, "none") == NEWLINE).sum()) == 1


def test_a_tile_of_padding_has_no_tokens_in_paper_and_all_in_reference():
    encoding = random_encoding(NARROW)  # only the middle of three tiles shows the image
    paper, reference = (VisionZip(0.25, 3, mode=mode).select(encoding, "") for mode in MODES)
    assert [len(index) for index in paper.indices] == [7, 0, 7, 0]  # of 9 a view: CLS, 7 patches, 1 contextual token
    assert [len(part) for part in paper.extra] == [1, 1, 0, 1, 0, 0, 1, 0]
    assert [len(index) for index in reference.indices] == [7] * 4 and sum(map(len, reference.extra)) == 8
    assert len(pack(NARROW, reference)) == 4 * 9


def test_padding_has_no_say_in_the_paper_mode():
    encoding, other = random_encoding(LETTERBOX), random_encoding(LETTERBOX)
    other.hidden[~LETTERBOX.valid] = 50.0
    other.keys[3][:, 1:][~LETTERBOX.valid] *= -1.5
    ours, theirs = (VisionZip(0.25, 3).select(e, "") for e in (encoding, other))
    assert torch.equal(ours.sequence, theirs.sequence)
    for a, b in zip(ours.extra, theirs.extra, strict=True):
        torch.testing.assert_close(a, b)


def test_everything_leaves_the_model_untouched_in_paper_and_not_in_reference():
    encoding = random_encoding(ViewGeometry(6))
    assert VisionZip(1.0, 3).select(encoding, "") is None
    assert len(pack(ViewGeometry(6), VisionZip(1.0, 3, mode="reference").select(encoding, ""))) == 36  # 30 and CLS, 6 + 0 merged


def test_it_reads_its_own_layer_and_no_question():
    pruner = VisionZip(0.25, layer=2)
    assert pruner.needs == EncoderRequirements(frozenset({2}), frozenset({2}), cls=True) and pruner.merges
    encoding = random_encoding(LETTERBOX)
    before = pruner.select(encoding, "q")
    encoding.logits, encoding.keys, encoding.queries = {2: encoding.logits[2]}, {2: encoding.keys[2]}, {}
    again = pruner.select(encoding, "another question")
    assert torch.equal(before.sequence, again.sequence) and torch.equal(torch.cat(before.extra), torch.cat(again.extra))


def test_features_keep_their_precision():
    encoding = random_encoding(ViewGeometry(6))
    encoding.hidden, encoding.hidden_cls = encoding.hidden.bfloat16(), encoding.hidden_cls.bfloat16()
    assert {part.dtype for part in VisionZip(0.25, 3).select(encoding, "").extra} == {torch.bfloat16}


# On a model


@pytest.mark.parametrize("make", [random_llava, random_next])
def test_cls_enters_the_llm_as_the_layer_makes_it_that_the_llm_reads(make):
    model = make(layers=4)
    views = ViewGeometry.of(model.config, (40, 30))
    pixels = torch.randn(views.count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    backbone = Backbone("x", model, None)
    pruner = VisionZip(0.25, 1)
    (encoding,) = encode(model, pixels, [views], pruner.needs)
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(encoding.hidden_cls, states[:, 0])
    visual = backbone.prune(encoding, pruner.select(encoding, ""), pruner.newline_policy)
    assert len(visual.features) == len(visual.source) and visual.source[0] == EXTRA
    torch.testing.assert_close(visual.features[:1], model.model.multi_modal_projector(states[:1, 0]))
    assert visual.base_map.cells[0] == -1
    (plain,) = encode(model, pixels, [views], EncoderRequirements())
    assert plain.hidden_cls is None and torch.equal(plain.hidden, encoding.hidden)


def on(depth=24, side=24, tiles=False):
    config = SimpleNamespace(vision_config=SimpleNamespace(num_hidden_layers=depth), **({"image_grid_pinpoints": []} if tiles else {}))
    return SimpleNamespace(model=SimpleNamespace(config=config), grid=(side, side), check=lambda needs: None)


def test_configured_on_a_backbone():
    method = visionzip.configure(on(), retention_ratio=0.2)
    assert (method.name, method.policy) == ("visionzip", None) and method.pruner == VisionZip(0.2, 23)
    assert visionzip.configure(on(), retention_ratio=0.2, tokens=192).pruner.budget(576) == (162, 30)
    for tokens, split in ((640, (108, 20)), (320, (54, 10)), (160, (27, 5))):
        assert visionzip.configure(on(tiles=True), retention_ratio=0.2, tokens=tokens).pruner.budget(576) == split
    pruner = visionzip.configure(on(6), retention_ratio=0.2, dominant=191, contextual=30, mode="reference").pruner
    assert pruner == VisionZip(0.2, 5, 191, 30, "reference") and pruner.budget(576) == (191, 30)
    assert visionzip.configure(on(), retention_ratio=0.2, tokens=192, contextual=0).pruner.budget(576) == (192, 0)
    assert visionzip.configure(on(), retention_ratio=0.2, tokens=192, dominant=150).pruner.budget(576) == (150, 42)


BAD = [
    ({"mode": "papr"}, "visionzip.mode=papr is not known; did you mean paper?"),
    ({"layer": 25}, "visionzip.layer holds layer 25, outside the encoder's 1 to 24"),
    ({"dominant": 0}, "visionzip.dominant=0 is too small; use at least 1"),
    ({"contextual": -1}, "visionzip.contextual=-1 is too small; use at least 0"),
    ({"retention_ratio": 0}, "retention_ratio=0 is outside (0, 1]"),
    ({"retention_ratio": 0.001}, "retention_ratio=0.001 rounds to no token of 576; use at least 0.0018"),
    ({"dominant": 200}, "visionzip.dominant=200 is more than a budget of 115 tokens a view has room for; use at most 115, or give both"),
    (
        {"contextual": 115},
        "visionzip.contextual=115 is more than a budget of 115 tokens a view has room for; use at most 114",
    ),
    ({"dominant": 560, "contextual": 18}, "visionzip.dominant=560 and contextual=18 are more than the 576 patches of a view and CLS"),
    (
        {"tokens": 192, "dominant": 191, "contextual": 30},
        "tokens=192 is 192 of a view, but visionzip.dominant=191 and contextual=30",
    ),
    ({"tokens": 577}, "tokens=577 is outside 1 to 576"),
    ({"newline_policy": "rows"}, "newline_policy=rows is not known"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input(wrong, message):
    with pytest.raises(UserError) as error:
        visionzip.configure(on(), **{"retention_ratio": 0.2} | wrong)
    assert str(error.value).startswith(message)


def test_a_budget_of_less_than_a_token_a_view_is_refused():
    with pytest.raises(UserError, match="at least"):
        visionzip.configure(on(tiles=True), retention_ratio=0.2, tokens=4)
    assert visionzip.configure(on(tiles=True), retention_ratio=0.2, tokens=5).pruner.budget(576) == (1, 0)  # CLS alone
