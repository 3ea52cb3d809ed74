"""What questions and points share is run once, and changes nothing: against the same points run alone through Hugging Face's generate()."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from support.shared_execution import LAYERS, modules, taken, together
from torch.utils.hooks import RemovableHandle

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.method import Method
from blink_exp.decoder import answers as sharing
from blink_exp.decoder.attach import attach
from blink_exp.decoder.branch_batch import BranchBatch
from blink_exp.decoder.branch_decoder import BranchDecoder
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import answers
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.fastv import FastVPolicy
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


@pytest.fixture(scope="module")
def scale():
    return load("scale")


def blinks(backbone) -> dict[str, Method]:
    found = {name: blink(BlinkPolicy(layers=LAYERS, **words), modules(backbone)) for name, words in POLICIES.items()}
    dropping = {
        "fastv": Method(FastVPolicy(2, 0.5), name="fastv"),
        "fastv, few": Method(FastVPolicy(2, 0.1), name="fastv"),
        "sparsevlm": Method(SparseVLMPolicy((2, 6, 15), (60, 30, 12)), name="sparsevlm"),
        "sparsevlm, shares": Method(SparseVLMPolicy((6, 12), None, (0.5, 0.2)), name="sparsevlm"),
    }
    return {"none": Method(), "interpolated": blink(BlinkPolicy(layers=LAYERS, tau_expand=0.3)), **found, **dropping}


def alone(backbone, method: Method, samples, benchmark) -> list[tuple]:
    """(answer, decisions) of each sample, through generate()."""
    images = {s.image_id: s.image() for s in samples}
    with attach(backbone.model, method) as attached:
        if attached is not None:
            attached.samples = [s.id for s in samples]
        said, _ = answers(
            backbone, method, attached, images, [(s.image_id, benchmark.prompt(s)) for s in samples], benchmark.max_new_tokens
        )
        records = attached.records if attached is not None else []
        return [(text, taken([r for r in records if r.row == b])) for b, text in enumerate(said)]


@pytest.fixture(scope="module")
def shared_run(scale):
    """All points of ``blinks`` on a few questions, alone and together."""
    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:5]
    methods = blinks(scale)
    scale.forget()
    return methods, samples, {name: alone(scale, m, samples, benchmark) for name, m in methods.items()}


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
            ran.append((len(self.branches), self.decoder.needed(i, self.branches, self.text.length)))
            return run(self, i, first)

        monkeypatch.setattr(BranchBatch, "_run", watched)
    found = together(scale, list(methods.values()), samples, MosaicMME(), batch_size=2)
    for (p, name), n in itertools.product(enumerate(methods), range(len(samples))):
        assert found[n, p] == wanted[name][n], (name, n)
    if room:
        most = max(number for number, _ in ran)
        assert 2 < most < 10 and all(number <= 2 or needed <= room for number, needed in ran)


def test_the_points_differ_so_the_test_above_tests_something(shared_run):
    methods, _, wanted = shared_run
    decided = {name: [[step[3] for step in steps] for _, steps in rows] for name, rows in wanted.items()}
    kinds = {type(d).__name__ for rows in decided.values() for steps in rows for d in steps}
    assert kinds == {"Expand", "Drop", "Keep", "Retain"}
    assert len({repr(rows) for rows in decided.values()}) >= len(methods) - 3
    lengths = {step[4] for rows in wanted.values() for _, steps in rows for step in steps}
    assert {144, 288, 180, 72, 14} <= lengths and max(lengths) > 288  # nothing, a patch, a small one; half, a tenth; several


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
    found = together(backbone, methods, samples, benchmark)
    for p, n in itertools.product(range(len(methods)), range(len(samples))):
        assert found[n, p] == wanted[p][n], (words[p], n)
    assert any(step[3].__class__.__name__ == "Expand" for n in range(len(samples)) for step in found[n, 1][1])


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


def test_what_is_shared_runs_once(scale):
    """One image, five questions, three points that decide alike and one that does nothing: one prefix; an expansion a region and layer."""
    benchmark = MosaicMME()
    every = benchmark.samples()
    samples = [s for s in every if s.image_id == every[0].image_id]
    alike = [blink(BlinkPolicy(layers=(12,), tau_expand=tau, tau_drop=0.0), modules(scale)) for tau in (0.0, 0.01, 0.02)]
    scale.forget()
    with Counted(scale) as counted:
        found = together(scale, [*alike, Method()], samples, benchmark)
    regions = {found[n, 0][1][0][3].region for n in range(len(samples))}
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
            found = together(scale, methods, samples, benchmark)
        assert counted.by_length[ahead + 144] == depth
        for ratio, point in ((0.5, 0), (0.25, 2)):
            kept = {found[n, point][1][0][3] for n in range(len(samples))}
            assert counted.by_length[ahead + int(144 * ratio)] == len(kept) * 30
        assert all(found[n, 0] == found[n, 1] for n in range(len(samples)))
    with Counted(scale) as counted:  # the whole prefix is at hand now, and serves those that need less of it
        together(scale, fastv, samples, benchmark)
    assert ahead + 144 not in counted.by_length


@torch.no_grad()
def test_prefixes_of_near_lengths_run_as_one_batch(scale):
    """Padded on the right, which changes nothing: against each alone."""
    from blink_exp.decoder.prefixes import run_prefixes

    def prefix(tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(tokens)
        return scale.model.get_input_embeddings()(torch.randint(5, 100, (tokens,), generator=generator))

    lengths = (50, 55, 57, 90)
    alone = [run_prefixes(scale.llm, [prefix(n)], [n - 2], (3,), [5], 4)[0] for n in lengths]
    calls: list[tuple[int, ...]] = []
    hook = scale.llm.layers[0].register_forward_pre_hook(lambda module, args: calls.append(tuple(args[0].shape[:2])))
    batch = run_prefixes(scale.llm, [prefix(n) for n in lengths], [n - 2 for n in lengths], (3,), [5] * 4, 4)
    hook.remove()
    assert calls == [(3, 57), (1, 90)]
    for one, same, n in zip(alone, batch, lengths, strict=True):
        assert same.tokens == n and same.reached == 5 and same.visual_at(3).shape[0] == n - 2
        for i in range(5):
            assert same.keys[i].shape[1] == n
            torch.testing.assert_close(same.keys[i], one.keys[i], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(same.values[i], one.values[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(same.at(3), one.at(3), atol=1e-4, rtol=1e-4)


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


def test_what_is_held_from_batch_to_batch_stays_within_the_budget(scale, monkeypatch):
    """Prefixes, features and encodings of images seen before, of many more images than there is room for."""
    benchmark = MosaicMME(images=6)
    samples = benchmark.samples()[::2]
    monkeypatch.setattr(scale, "shared_bytes", 16 * 2**20)
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


@pytest.mark.parametrize("mebibytes", [8, 24])
def test_the_worst_moment_stays_within_a_quarter_of_the_budget(scale, shared_run, monkeypatch, mebibytes):
    """Prefixes, texts, expanded segments, the tower and what runs inside a layer, together; and nothing of it changes an answer."""
    from bench.meters import peak_bytes

    methods, samples, wanted = shared_run
    chosen = ("none", "interpolated", "append")
    monkeypatch.setattr(scale, "shared_bytes", mebibytes * 2**20)
    scale.forget()
    found: dict = {}
    peak = peak_bytes(lambda: found.update(together(scale, [methods[name] for name in chosen], samples, MosaicMME())))
    assert peak <= 1.25 * scale.shared_bytes
    for (p, name), n in itertools.product(enumerate(chosen), range(len(samples))):
        assert found[n, p] == wanted[name][n], (name, n)


def test_what_is_kept_of_an_image_does_not_keep_its_batch(scale):
    images = {s.image_id: s.image() for s in MosaicMME(images=1).samples()}
    scale.forget()
    needs = EncoderRequirements(attention=frozenset({3}), keys=frozenset({4}), cls=True)
    encodings = scale.encodings(images, needs).values()
    tensors = [(e.hidden, *e.logits.values(), *e.queries.values(), *e.keys.values(), e.last_hidden, e.pooled) for e in encodings]
    assert len(tensors) > 4
    for encoding, own in zip(encodings, tensors, strict=True):
        assert sum(t.untyped_storage().nbytes() for t in own) == encoding.nbytes
    assert all(f.untyped_storage().nbytes() == f.nbytes for f in scale.features(images).values())


def test_logits_are_those_of_the_whole_prompt_in_one_piece(scale):
    """The state that the first token is read from, against the stock forward: within 1e-4."""
    from blink_exp.decoder.branches import QuestionInputs
    from blink_exp.decoder.prefixes import run_prefixes

    benchmark = MosaicMME()
    samples = list(benchmark.samples())[:3]
    asked = [benchmark.prompt(s) for s in samples]
    visual = scale.visual({s.image_id: s.image() for s in samples}, [(s.image_id, q) for s, q in zip(samples, asked, strict=True)], None)
    embed = scale.model.get_input_embeddings()
    around = scale.around(asked)
    with torch.no_grad():
        openings = [torch.cat([embed(ahead), v.features]) for (ahead, _), v in zip(around, visual, strict=True)]
        prefixes = run_prefixes(scale.llm, openings, [144] * 3, (), [32] * 3, 2)
        questions = [QuestionInputs((p,), embed(behind), s.id, (0,)) for p, (_, behind), s in zip(prefixes, around, samples, strict=True)]
        leaves = []
        BranchDecoder(scale.llm, questions, [Method()], [None]).run(leaves.append)
        (leaf,) = leaves
        for branch, hidden in zip(leaf.branches, scale.llm.norm(leaf.text.states[:, -1]), strict=True):
            batch = scale.batch([visual[branch.question].features], [asked[branch.question]])
            whole = torch.cat([openings[branch.question], questions[branch.question].text])[None]
            stock = scale.llm(inputs_embeds=whole).last_hidden_state[0, -1]
            assert batch["input_ids"].shape[1] == whole.shape[1]
            assert torch.allclose(scale.model.lm_head(hidden), scale.model.lm_head(stock), atol=1e-4)
    assert scale.llm.config._attn_implementation == "sdpa"  # given back


def test_a_question_that_speaks_of_the_placeholder_is_refused(scale):
    with pytest.raises(UserError, match="2 placeholders <image> where it shows one image; reword"):
        scale.around(["What does <image> show?"])


def test_token_ids_around_the_image_are_those_of_the_batch(scale):
    asked = ["Is there a red circle?", "What shape is at the top left of it?"]
    rows = scale.batch([torch.zeros(3, 1)] * 2, asked)
    for (ahead, behind), ids, real in zip(scale.around(asked), rows["input_ids"], rows["attention_mask"], strict=True):
        image = torch.full((3,), scale.model.config.image_token_id)
        assert torch.equal(torch.cat([ahead, image, behind]), ids[real.bool()])
