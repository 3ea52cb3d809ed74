"""What FasterVLM, HiRED and GlobalCom2 have in common; each one's own laws are in the file of its name."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import random_encoding, random_next
from support.view_pruners import ALL, MODES, best, command, faster, few, full, hi, images, lists, modes, probabilities, ratios, seeds

from blink_exp.backbone.encode import encode
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import NEWLINE, ViewGeometry, pack
from blink_exp.errors import UserError
from blink_exp.methods import fastervlm, globalcom2, hired
from blink_exp.methods.hired import HiRED


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
    views = ViewGeometry(6)
    encoding = random_encoding(views)
    for layer in encoding.logits:
        encoding.logits[layer] = torch.zeros(1, 2, 37)
    assert lists(make(0.25, mode).select(encoding, "q")) == [list(range(9))]


@few
@given(ratios, seeds, modes)
def test_one_view_keeps_its_best_patches(ratio, seed, mode):
    encoding = random_encoding(ViewGeometry(6), seed=seed)
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
        assert make(1.0).select(random_encoding(ViewGeometry(6)), "q") is None
        assert make(1.0).select(random_encoding(ViewGeometry(6, newline=True)), "q") is None
        kept = make(1.0, newline_policy="none").select(random_encoding(ViewGeometry(6, newline=True)), "q")
        assert lists(kept) == [list(range(36))]  # the untouched model would end the view with a newline


def test_each_reads_its_layers_only():
    assert faster(0.5).needs == EncoderRequirements(attention=frozenset({3}))
    assert hi(0.5).needs == EncoderRequirements(attention=frozenset({1, 3}))
    assert command(0.5).needs == EncoderRequirements(attention=frozenset({4}))
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
    views = ViewGeometry.of(model.config, (40, 30))
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
    (
        lambda: fastervlm.configure(backbone(24), retention_ratio=0.5, layer=25),
        "fastervlm.layer holds layer 25, outside the encoder's 1 to 24",
    ),
    (lambda: hired.configure(backbone(4), retention_ratio=0.5, allocation_layer=0), "hired.allocation_layer holds layer 0"),
    (lambda: hired.configure(backbone(4), retention_ratio=0.5, selection_layer=23), "hired.selection_layer holds layer 23"),
    (lambda: globalcom2.configure(backbone(4), retention_ratio=0.5, layer=5), "globalcom2.layer holds layer 5"),
    (
        lambda: faster(0.02).select(random_encoding(ViewGeometry(6)), "q"),
        "retention_ratio=0.02 rounds to no token of 36; use at least 0.0278",
    ),
    (lambda: hi(0.001).select(random_encoding(full(2, 2)), "q"), "retention_ratio=0.001 rounds to no token of 180; use at least 0.0056"),
    (lambda: command(0.01).select(random_encoding(full(2, 2)), "q"), "retention_ratio=0.01 rounds to no token of 36; use at least 0.0278"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)
