"""The benchmark of DivPrune's choice compares what it says, at published budgets in proportion."""

from __future__ import annotations

import pytest
import torch

from bench import divprune, shapes, ways
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.methods.divprune import DivPrune
from blink_exp.methods.visionzip import VisionZip


def test_what_is_saved_and_what_the_choice_takes_come_from_the_rounds(monkeypatch):
    """By the stand-in all tokens take 10 s, fewer 4 s, the matrix 1 s, a loop 2 s: 6 s are saved, 3 s spent."""
    seconds = {"prefill": 4.0, "loop": 2.0, "matrix": 1.0, divprune.UNTOUCHED: 10.0}
    monkeypatch.setattr(divprune, "rounds", lambda works, repeats, clock: {name: [seconds[name.split()[0]]] for name in works})
    result = divprune.measure("small", repeats="1")
    whole, *rows = result["rows"]
    assert whole == {"tokens kept": 180, "prefill s": 10.0}
    assert [row["tokens kept"] for row in rows] == [40, 20, 12, 10]  # 640, 320, 192 and 160 of 2,880
    for row in rows:
        assert (row["matrix s"], row["loop s"], row["prefill s"], row["saved s"]) == (1.0, 2.0, 4.0, 6.0)
        assert (row["loop / saved"], row["choice / saved"]) == pytest.approx((1 / 3, 1 / 2))
    assert [line["met"] for line in result["bars"]] == [True, True]


def test_a_replayed_tower_serves_pruners_that_read_the_projector_or_add_tokens():
    ground = ways.Ground.of(shapes.TINY)
    for pruner, added in ((DivPrune(0.2), 0), (VisionZip(0.2, layer=shapes.TINY.vision_layers - 1), 5 * (1 + 1))):
        real = ground.projected(ground.encoding(pruner.needs, real=True), pruner)
        torch.testing.assert_close(ground.pruned(pruner).features, real.features)
        assert added == sum(map(len, pruner.select(ground.encoding(pruner.needs), "").extra or ()))
    kept = VisionZip(0.2, layer=23).select(ground.encoding(VisionZip(0.2, 23).needs), "")
    features, source = shapes.packed(ground.model, ground.encoding(EncoderRequirements()), kept)
    torch.testing.assert_close(features[0], ground.model.model.multi_modal_projector(kept.extra[0])[0])
    assert int(source[0]) < 0
