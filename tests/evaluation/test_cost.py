"""The cost meter: the papers' arithmetic, and what the running model really does."""

from __future__ import annotations

import pytest
import torch

from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.tokens import layer_flops
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.dart import DARTPolicy
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.hero import Hero
from blink_exp.methods.none import none
from blink_exp.methods.pyramiddrop import PyramidDropPolicy
from blink_exp.tokensr import modules


def prefill_flops(tokens: int, d: int, m: int, layers: int) -> int:
    """An ordinary prompt of ``tokens`` through ``layers`` (HERO, Table VIII)."""
    return layers * layer_flops(tokens, tokens, d, m)


def kv_bytes(tokens: int, d: int, layers: int, size: int = 2) -> int:
    """Keys and values of ``tokens`` in all layers, ``size`` bytes a number, without grouped queries."""
    return 2 * layers * d * size * tokens


@pytest.mark.parametrize(("tokens", "tera", "mib"), [(2673, 38.37, 1336.5), (1105, 14.95, 552.5), (583, 7.73, 291.5), (322, 4.22, 161.0)])
def test_hero_s_table_8_by_its_own_accounting(tokens, tera, mib):
    """7B: 32 layers, width 4096, MLP 11008. (The paper prints 14.1 TFLOPs for 1105 tokens, which is not what its formula gives.)"""
    assert prefill_flops(tokens, 4096, 11008, 32) / 1e12 == pytest.approx(tera, abs=0.005)
    assert kv_bytes(tokens, 4096, 32) / 2**20 == mib
    assert 61 + round(0.4 * 2610) == 1105


torch.manual_seed(0)
EXPAND = BlinkPolicy((10, 12), tau_expand=0.26, tau_drop=0.25)
METHODS = {
    "none": none(),
    "blink_interp": blink(EXPAND),
    "blink": blink(EXPAND, torch.nn.ModuleDict({"10": modules.conv(64), "12": modules.mlp(64)}).eval()),
    "hero": Method(name="hero", pruner=Hero(0.25, frozenset({6}), frozenset({22}), alpha=1.0)),
    "fastv": Method(FastVPolicy(2, 0.25)),
    "pyramiddrop": Method(PyramidDropPolicy()),
    "dart": Method(DARTPolicy(2, 0.25)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_formula_counter_and_cache_agree(scale, name):
    sample = MosaicMME().samples()[0]
    cost = measure_cost(scale, METHODS[name], [(sample.image(), sample.question)])
    assert cost["prefill_flops_counted"] == pytest.approx(cost["prefill_flops_formula"], rel=0.02)
    text = cost["prompt_tokens"] - cost["visual_tokens"]
    layers = cost["tokens_by_layer"]
    assert len(layers) == 32
    assert cost["visual_tokens_nominal"] == 144
    if name.startswith("blink"):
        assert layers[:10] == [144 + text] * 10
        assert max(layers[10:]) == 288 + text
    elif METHODS[name].drops_inside:
        assert layers == [visual + text for visual in METHODS[name].policy.layer_tokens(144, 32)]
        assert cost["prefill_flops_formula"] == sum(prefill_flops(n, scale.width, 160, 1) for n in layers)
    else:
        entering = {"none": 144, "hero": 36}[name]
        assert cost["visual_tokens"] == entering
        assert layers == [entering + text] * 32
        width = scale.width
        assert cost["prefill_flops_formula"] == prefill_flops(entering + text, width, 160, 32)
    assert cost["kv_bytes"] == kv_bytes(1, scale.width, 1, size=4) * sum(layers)
    assert min(cost[k] for k in ("encode_seconds", "prefill_seconds", "decode_tokens_per_second", "peak_memory_bytes")) > 0
