"""What questions and points share is run once, and changes nothing: against the same points run alone through Hugging Face's generate()."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from support.shared_execution import LAYERS, modules, taken, together

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.decoder import answers as sharing
from blink_exp.decoder.attach import attach
from blink_exp.decoder.branch_decoder import BranchBatch
from blink_exp.evaluation.answering import answers
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.dart import DARTPolicy
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.pyramiddrop import PyramidDropPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy

# By what could go wrong: which segments a text stands behind, where its tokens are numbered, what a scan reads, who shares with whom.
POLICIES = {
    "default": {},
    "eager": {"tau_expand": 0.3, "tau_drop": 0.4},
    "append": {"on_reexpand": "append", "tau_expand": 0.4},
    "keep": {"on_reexpand": "keep", "tau_expand": 0.4},
    "scan expanded": {"scan_expanded": True, "tau_expand": 0.4},
    "inherit": {"inherit_positions": True, "tau_expand": 0.4},
    "small": {"interpolate": False, "tau_expand": 0.4},
    "random": {"saliency": "random"},
    "random region": {"saliency": "random_region", "tau_expand": 0.4},
    "products": {"saliency": "dot_product", "tau_expand": 0.3, "tau_drop": 0.27},
    "text mean": {"saliency": "text_mean", "tau_expand": 0.4},
    "cycle": {"resolution": "cycle"},
    "3 x 3": {"p": 3, "tau_expand": 0.3, "tau_drop": 0.2},
}


def blinks(backbone) -> dict[str, Method]:
    methods = {name: blink(BlinkPolicy(layers=LAYERS, **words), modules(backbone)) for name, words in POLICIES.items()}
    dropping = {
        "fastv": Method(FastVPolicy(2, 0.5), name="fastv"),
        "fastv, few": Method(FastVPolicy(2, 0.1), name="fastv"),
        "sparsevlm": Method(SparseVLMPolicy((2, 6, 15), (60, 30, 12)), name="sparsevlm"),
        "sparsevlm, shares": Method(SparseVLMPolicy((6, 12), None, (0.5, 0.2)), name="sparsevlm"),
        "pyramiddrop": Method(PyramidDropPolicy(), name="pyramiddrop"),
        "pyramiddrop, early": Method(PyramidDropPolicy((1, 11), (0.5, 0.2)), name="pyramiddrop"),
        "dart": Method(DARTPolicy(2, 0.4), name="dart"),
        "dart, late": Method(DARTPolicy(7, 0.1, mode="reference"), name="dart"),
    }
    return {"none": Method(), "interpolated": blink(BlinkPolicy(layers=LAYERS, tau_expand=0.3)), **methods, **dropping}


def alone(backbone, method: Method, samples, benchmark) -> list[tuple]:
    """(answer, decisions) of each sample, through generate()."""
    images = {s.image_id: s.image() for s in samples}
    with attach(backbone.model, method) as attached:
        if attached is not None:
            attached.samples = [s.id for s in samples]
        texts, _ = answers(
            backbone, method, attached, images, [(s.image_id, benchmark.prompt(s)) for s in samples], benchmark.max_new_tokens
        )
        records = attached.records if attached is not None else []
        return [(text, taken([r for r in records if r.row == b])) for b, text in enumerate(texts)]


@pytest.fixture(scope="module")
def shared_run(scale):
    """All points of ``blinks`` on a few questions, alone and together."""
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:5]
    methods = blinks(scale)
    scale.forget()
    return methods, samples, {name: alone(scale, m, samples, benchmark) for name, m in methods.items()}


@pytest.mark.slow
@pytest.mark.parametrize("room", [None, 12_000])
def test_points_together_answer_and_decide_as_alone(scale, shared_run, monkeypatch, room):
    """``room``: tokens times layers, for six texts with nothing expanded; what does not fit runs in parts, which must not show either."""
    methods, samples, wanted = shared_run
    scale.forget()
    ran: list[tuple[int, int]] = []
    if room:
        samples = samples[:2]
        budget, run = sharing.MemoryBudget.of, BranchBatch._run
        monkeypatch.setattr(sharing.MemoryBudget, "of", lambda *a: replace(budget(*a), texts=3, room=room, decoding=2, prefixes=1))

        def watched(self, i, first):
            ran.append((len(self.branches), self.decoder.memory.needed(i, self.branches, self.text.length, room)))
            return run(self, i, first)

        monkeypatch.setattr(BranchBatch, "_run", watched)
    shared = together(scale, list(methods.values()), samples, MosaicMME(), batch_size=2)
    for (p, name), n in itertools.product(enumerate(methods), range(len(samples))):
        assert shared[n, p] == wanted[name][n], (name, n)
    if room:
        most = max(number for number, _ in ran)
        assert 2 < most < 10 and all(number <= 2 or needed <= room for number, needed in ran)


@pytest.mark.slow
def test_the_points_differ_so_the_test_above_tests_something(shared_run):
    methods, _, wanted = shared_run
    decided = {name: [[step[3] for step in steps] for _, steps in rows] for name, rows in wanted.items()}
    kinds = {type(d).__name__ for rows in decided.values() for steps in rows for d in steps}
    assert kinds == {"Expand", "Drop", "Keep", "Retain"}
    assert len({repr(rows) for rows in decided.values()}) >= len(methods) - 3
    lengths = {step[4] for rows in wanted.values() for _, steps in rows for step in steps}
    assert {144, 288, 180, 72, 14} <= lengths and max(lengths) > 288  # nothing, a patch, a small one; half, a tenth; several


@pytest.mark.slow
def test_pruned_images_and_base_views_with_gaps():
    """HERO's kept sets depend on the question; Blink behind it scans what is left and gets back what was dropped."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from blink_exp.cli import CONF

    backbone = load("scale_next", clip="scale")
    benchmark = MosaicHR(images=2)
    samples = list(benchmark.samples())[:6]
    words = [
        ["method=hero"],
        ["method=blink_hero", "thresholds=gqa"],
        ["method=blink_hero", "fill=recall"],
        ["method=none"],
        ["method=blink"],
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = [compose("evaluate", overrides=["model=scale_llava_next", *more, "thresholds=always_expand"]) for more in words]
    methods = [instantiate(c.method, _partial_=True, _convert_="all")(backbone) for c in configs]
    wanted = [alone(backbone, m, samples, benchmark) for m in methods]
    backbone.forget()
    shared = together(backbone, methods, samples, benchmark)
    for p, n in itertools.product(range(len(methods)), range(len(samples))):
        assert shared[n, p] == wanted[p][n], (words[p], n)
    assert any(step[3].__class__.__name__ == "Expand" for n in range(len(samples)) for step in shared[n, 1][1])


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [8, 24])
def test_the_worst_moment_stays_within_a_quarter_of_the_budget(scale, shared_run, monkeypatch, mebibytes):
    """Prefixes, texts, expanded segments, the tower and what runs inside a layer, together; and nothing of it changes an answer."""
    from bench.meters import peak_bytes

    methods, samples, wanted = shared_run
    chosen = ("none", "interpolated", "append")
    monkeypatch.setattr(scale, "shared_bytes", mebibytes * 2**20)
    scale.forget()
    shared: dict = {}
    peak = peak_bytes(lambda: shared.update(together(scale, [methods[name] for name in chosen], samples, MosaicMME())))
    assert peak <= 1.25 * scale.shared_bytes
    for (p, name), n in itertools.product(enumerate(chosen), range(len(samples))):
        assert shared[n, p] == wanted[name][n], (name, n)
