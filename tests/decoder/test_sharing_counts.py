"""What questions and points share is run once, by count."""

from __future__ import annotations

import pytest
import torch
from support.shared_execution import modules, together
from torch.utils.hooks import RemovableHandle

from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.method import Method
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy


class Counted:
    """Token-layers that a decoder's layers run, and calls of the vision tower."""

    def __init__(self, backbone):
        self.tokens, self.by_length, self.towers = 0, {}, 0
        self.hooks: list[RemovableHandle] = [layer.register_forward_pre_hook(self.layer, with_kwargs=True) for layer in backbone.llm.layers]
        self.hooks.append(backbone.model.model.vision_tower.register_forward_pre_hook(self.tower))

    def layer(self, module, args, kwargs):
        rows, length = (args[0] if args else kwargs["hidden_states"]).shape[:2]
        self.tokens += rows * length
        self.by_length[length] = self.by_length.get(length, 0) + rows

    def tower(self, module, args):
        self.towers += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.slow
def test_what_is_shared_runs_once(scale):
    """One image, five questions, three points that decide alike and one that does nothing: one prefix; an expansion a region and layer."""
    benchmark = MosaicMME()
    every = benchmark.samples()
    samples = [s for s in every if s.image_id == every[0].image_id]
    alike = [blink(BlinkPolicy(layers=(12,), tau_expand=tau, tau_drop=0.0), modules(scale)) for tau in (0.0, 0.01, 0.02)]
    scale.forget()
    with Counted(scale) as counted:
        shared = together(scale, [*alike, Method()], samples, benchmark)
    regions = {shared[n, 0][1][0][3].region for n in range(len(samples))}
    prefix = 144 + len(scale.around(["?"])[0][0])
    assert counted.by_length[prefix] == 32  # of one row in every layer
    assert counted.by_length[144] == len(regions) * (32 - 12)  # an expansion for each region that any question wants
    texts = sum(rows for length, rows in counted.by_length.items() if length not in (prefix, 144, 1))
    assert texts == len(samples) * (12 + 2 * (32 - 12))  # one branch up to the layer, then two: three points stay together
    assert counted.towers == 1


def test_an_expansion_stops_where_every_point_has_dropped_it(scale):
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:1]
    cycle = blink(BlinkPolicy(layers=(12, 15), resolution="cycle"))
    scale.forget()
    with Counted(scale) as counted:
        together(scale, [cycle], samples, benchmark)
    assert counted.by_length[144] == 3  # layers 12, 13 and 14


def test_methods_that_drop_inside_the_llm_share_their_layers_before_the_first_cut(scale):
    """Three questions about one image, FastV twice and SparseVLM: what stands in front of a cut runs once, what is left by points and
    questions that keep the same tokens too, and the prefix goes no further than somebody needs it."""
    benchmark = MosaicMME()
    every = benchmark.samples()
    samples = [s for s in every if s.image_id == every[0].image_id][:3]
    fastv = [Method(FastVPolicy(2, ratio), name="fastv") for ratio in (0.5, 0.5, 0.25)]
    sparse = Method(SparseVLMPolicy((5,), (40,)), name="sparsevlm")
    ahead = len(scale.around(["?"])[0][0])
    for methods, depth in (([*fastv, sparse], 6), (fastv, 2), ([*fastv, Method()], 32)):
        scale.forget()
        with Counted(scale) as counted:
            shared = together(scale, methods, samples, benchmark)
        assert counted.by_length[ahead + 144] == depth
        for ratio, point in ((0.5, 0), (0.25, 2)):
            decisions = {shared[n, point][1][0][3] for n in range(len(samples))}
            assert counted.by_length[ahead + int(144 * ratio)] == len(decisions) * 30
        assert all(shared[n, 0] == shared[n, 1] for n in range(len(samples)))
    with Counted(scale) as counted:  # the whole prefix is at hand now, and serves those that need less of it
        together(scale, fastv, samples, benchmark)
    assert ahead + 144 not in counted.by_length


def test_prefixes_are_remembered_within_their_memory(scale):
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:4]
    scale.forget()
    together(scale, [Method()], samples, benchmark)
    with Counted(scale) as counted:
        together(scale, [Method()], samples, benchmark)
    assert not any(length > 100 for length in counted.by_length)
    with Counted(scale) as counted:  # a scan reads states that nobody had asked for
        together(scale, [blink(BlinkPolicy(layers=(12,)))], samples, benchmark)
    assert any(length > 144 for length in counted.by_length)
    held, scale.shared_bytes = scale.shared_bytes, 1
    try:
        together(scale, [Method()], samples, benchmark)
        assert not scale.prefixes
    finally:
        scale.shared_bytes = held


def held_bytes() -> int:
    """Bytes of all tensors that Python can reach; a view counts as all of what it is a view of."""
    import gc

    gc.collect()
    tensors = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
def test_what_is_held_from_batch_to_batch_stays_within_the_budget(scale, monkeypatch):
    """Prefixes, features and encodings of images seen before, of many more images than there is room for."""
    benchmark = MosaicMME(images=3)
    samples = benchmark.samples()[::2]
    monkeypatch.setattr(scale, "shared_bytes", 8 * 2**20)
    methods = [Method(), blink(BlinkPolicy(layers=(12, 13), tau_expand=0.3))]
    scale.forget()
    together(scale, methods, samples[:1], benchmark)  # what the backbone computes once and keeps for itself
    scale.forget()
    before, held = held_bytes(), []
    for start in range(0, len(samples), 8):
        together(scale, methods, samples[start : start + 8], benchmark)
        held.append(held_bytes() - before)
    one = next(iter(scale.prefixes.values())).nbytes
    assert len(samples) * one > 6 * scale.shared_bytes  # without a bound it would be so much
    assert scale.shared_bytes / 4 < max(held) <= scale.shared_bytes
    scale.forget()
    assert held_bytes() - before < one


def test_what_is_kept_of_an_image_does_not_keep_its_batch(scale):
    images = {s.image_id: s.image() for s in MosaicMME(images=1).samples()}
    scale.forget()
    needs = EncoderRequirements(attention=frozenset({3}), keys=frozenset({4}), cls=True)
    encodings = scale.encodings(images, needs).values()
    tensors = [
        (e.hidden, *e.logits.values(), *e.queries.values(), *e.keys.values(), e.last_hidden, e.pooled, e.hidden_cls) for e in encodings
    ]
    assert len(tensors) > 4
    for encoding, parts in zip(encodings, tensors, strict=True):
        assert sum(t.untyped_storage().nbytes() for t in parts) == encoding.nbytes
    assert all(f.untyped_storage().nbytes() == f.nbytes for f in scale.features(images).values())
