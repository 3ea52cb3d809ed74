"""Position numbers of kept tokens: where they stand in the unpruned sequence, and one result alone, in batches, shared and generated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from support.shared_execution import together
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.backbone.cache_name import CACHE
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.core.sequence import Retain
from blink_exp.core.views import EXTRA, NEWLINE, TokenSelection, ViewGeometry, all_tokens, original_positions, pack
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.decoder.attach import attach
from blink_exp.decoder.layers import PrefixInputs
from blink_exp.decoder.segments import Segment, numbered, retain
from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.evaluation.answering import answers
from blink_exp.evaluation.cost import measure_cost
from blink_exp.evaluation.evaluator import build_method
from blink_exp.methods.blink import BlinkPolicy
from blink_exp.methods.controls import Downsample, RandomTokens
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.hero import Hero
from blink_exp.methods.sparsevlm import SparseVLMPolicy
from blink_exp.settings.compose import composed

ONE, TILED = ViewGeometry(2), ViewGeometry(2, 2, 1, (2, 2), newline=True)  # the tiles' upright grid shows its middle rows only

# where a token stands


def test_one_view_by_hand():
    assert original_positions(torch.tensor([0, 1, 2, 3]), ONE) is None
    some = original_positions(torch.tensor([1, 3, EXTRA]), ONE)
    assert some is not None and some.numbers.tolist() == [1, 3, 3] and some.length == 4  # an added token has the number in front of it
    assert original_positions(torch.tensor([EXTRA, 2]), ONE).numbers.tolist() == [0, 2]
    assert original_positions(torch.tensor([3, 0]), ONE).numbers.tolist() == [3, 0]  # in another order, each keeps its own


def test_tiles_and_newlines_by_hand():
    full = pack(TILED, all_tokens(TILED))
    assert full.tolist() == [0, 1, 2, 3, 6, 7, NEWLINE, 8, 9, NEWLINE]  # rows 1 and 2 of four show the image
    selection = TokenSelection((torch.tensor([2]), torch.tensor([3]), torch.tensor([], dtype=torch.long)))
    source = pack(TILED, selection, "valid_rows")
    assert source.tolist() == [2, 7, NEWLINE, NEWLINE]
    assert original_positions(source, TILED).numbers.tolist() == [2, 5, 6, 9] and original_positions(source, TILED).length == 10
    assert original_positions(pack(TILED, selection, "none"), TILED).numbers.tolist() == [2, 5]
    every = pack(TILED, selection, "all_rows")  # a newline of a padded row has the number in front of it
    assert every.tolist() == [2, NEWLINE, 7, NEWLINE, NEWLINE, NEWLINE]
    assert original_positions(every, TILED).numbers.tolist() == [2, 2, 5, 6, 9, 9]


@pytest.mark.parametrize("size", [(40, 40), (40, 90), (90, 30), (33, 47)])
@pytest.mark.parametrize("policy", ["valid_rows", "none", "all_rows"])
def test_every_kept_token_has_the_place_that_it_has_in_the_unpruned_image(size, policy):
    views = ViewGeometry(4, *{True: (2, 2), False: (1, 2) if size[1] > size[0] else (2, 1)}[size[0] == size[1]], size, newline=True)
    full = pack(views, all_tokens(views)).tolist()
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        kept = tuple(valid.nonzero()[:, 0][torch.rand(int(valid.sum()), generator=generator) < 0.5] for valid in views.valid)
        source = pack(views, TokenSelection(kept), policy)
        positions = original_positions(source, views)
        assert positions is not None and positions.length == len(full)
        patches = [(s, n) for s, n in zip(source.tolist(), positions.numbers.tolist(), strict=True) if s >= 0]
        assert patches == [(s, full.index(s)) for s, _ in patches]
        assert positions.numbers.diff().ge(0 if policy == "all_rows" else 1).all()
        if policy == "valid_rows":
            lines = [n for s, n in zip(source.tolist(), positions.numbers.tolist(), strict=True) if s == NEWLINE]
            assert lines == [n for n, s in enumerate(full) if s == NEWLINE]


def test_a_merged_token_of_a_policy_has_the_mean_of_its_members_numbers():
    places = original_positions(torch.tensor([1, 3]), ONE)
    numbers, takes = numbered(2, places, torch.device("cpu"))
    assert numbers.tolist() == [0, 1, 3, 5] and takes == 6
    block = Segment(torch.randn(4, 8), 2, numbers, takes)
    (left,) = retain([block], Retain((1,), ((0, 1),)), 0, inherit=True)
    assert left.numbers.tolist() == [0, 1, 5, 4] and left.taken == 6
    (anew,) = retain([block], Retain((1,)), 0, inherit=False)
    assert anew.numbers is None and anew.taken == 3


def test_prefixes_of_one_content_differ_by_their_positions():
    ids, features = torch.arange(3), torch.randn(2, 8)
    places = [None, *(original_positions(torch.tensor(source), ONE) for source in ([0, 1], [1, 3], [2, 3]))]
    assert len({PrefixInputs(ids, features, None, p).digest() for p in places}) == 4


# what is chosen


def test_the_group_sets_both_and_the_default_is_the_authors_own():
    pruner, fastv, sparsevlm = RandomTokens(0.5), FastVPolicy(2, 0.5), SparseVLMPolicy()

    def chosen(positions, **parts):
        method = Method(positions=positions, **parts)
        return method.original_positions, method.inherits_positions

    assert chosen(None, pruner=pruner) == chosen("contiguous", pruner=pruner) == (False, False)
    assert chosen("original", pruner=pruner) == (True, False)
    assert chosen(None, policy=fastv) == chosen("original", policy=fastv) == (False, True)
    assert chosen(None, policy=sparsevlm) == chosen("contiguous", policy=fastv) == (False, False)
    assert chosen("original", policy=sparsevlm, pruner=pruner) == (True, True)


@pytest.mark.slow
def test_positions_make_another_point_of_methods_that_drop_only():
    def point(*words):
        settings = composed("evaluate", list(words))
        return identity.config_hash(settings, {})

    for method in ("hero", "fastv", "uniform", "blink_hero", "thumbnail"):
        assert point(f"method={method}", "positions=original") != point(f"method={method}")
        assert point(f"method={method}", "positions=default") == point(f"method={method}")
    for method in ("none", "blink"):
        assert point(f"method={method}", "positions=original") == point(f"method={method}")


# the model


def methods(tiled: bool) -> dict[str, Method]:
    pruner, fewer = RandomTokens(0.4, newline_policy="valid_rows"), Downsample(0.3)
    blink = BlinkPolicy((12, 15), tau_expand=0.3)
    out = {
        "pruner": Method(pruner=pruner),
        "merging": Method(pruner=fewer),
        "fastv": Method(FastVPolicy(2, 0.4)),
        "sparsevlm": Method(SparseVLMPolicy((2, 6), None, (0.5, 0.2))),
        "pair": Method(FastVPolicy(2, 0.4), pruner=pruner),
        "pair that merges": Method(SparseVLMPolicy((2, 6), None, (0.5, 0.2)), pruner=pruner),
        "blink": Method(blink, pruner=pruner),
    }
    if not tiled:
        out["blink, inherit"] = Method(replace(blink, inherit_positions=True), pruner=pruner)
    return {name: replace(method, positions="original", name=name) for name, method in out.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, True])
def test_alone_in_a_batch_shared_and_generated_are_one(tiled, scale, scale_next):
    backbone, benchmark = (scale_next, MosaicHR(2)) if tiled else (scale, MosaicMME(1))
    samples = list(benchmark.samples())[:4]
    images = {s.image_id: s.image() for s in samples}
    points = methods(tiled)
    backbone.forget()
    shared = together(backbone, list(points.values()), samples, benchmark)
    contiguous = together(backbone, [replace(m, positions="contiguous") for m in points.values()], samples, benchmark)
    for p, method in enumerate(points.values()):
        backbone.forget()
        with attach(backbone.model, method) as attached:
            prompts = [(s.image_id, benchmark.prompt(s)) for s in samples]
            attached.samples = [s.id for s in samples]
            batched, _ = answers(backbone, method, attached, images, prompts, benchmark.max_new_tokens)
            single = []
            for sample, prompt in zip(samples, prompts, strict=True):
                attached.samples = [sample.id]
                single += answers(backbone, method, attached, images, [prompt], benchmark.max_new_tokens)[0]
        assert batched == single == [shared[n, p][0] for n in range(len(samples))], method.name
    scans = [[step[-1] for step in run[n, p][1]] for run in (shared, contiguous) for n in range(4) for p in range(len(points))]
    assert scans[: len(scans) // 2] != scans[len(scans) // 2 :] or shared != contiguous, "positions change nothing here"


def test_the_next_tokens_are_those_of_the_stock_model_with_these_position_ids(scale_next):
    """Prompt and two further tokens: kept tokens at their places, the text behind the full length."""
    backbone, method = scale_next, Method(pruner=RandomTokens(0.3), positions="original")
    sample = MosaicHR(1).samples()[0]
    visual = backbone.visual({"a": sample.image()}, [("a", sample.question)], method.pruner)[0]
    places, before = visual.original_positions, len(backbone.around([sample.question])[0][0])
    batch = backbone.batch([visual.features], [sample.question])
    ids = torch.cat([batch["input_ids"], torch.tensor([[7, 9]])], dim=1)
    embeds = backbone.model.get_input_embeddings()(ids)
    embeds[ids == backbone.model.config.image_token_id] = visual.features
    text = torch.arange(ids.shape[1] - before - len(visual.features)) + before + places.length
    numbers = torch.cat([torch.arange(before), before + places.numbers, text])
    with torch.no_grad():
        whole = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(ids), "use_cache": False}  # a mask: gaps are no packed rows
        wanted = backbone.llm(**whole, position_ids=numbers[None]).last_hidden_state[0, -3:]
        plain = backbone.llm(**whole).last_hidden_state[0, -3:]
        with attach(backbone.model, method) as attached:
            attached.see([visual])
            encoded = {"image": BaseModelOutputWithPooling(pooler_output=[visual.features])}
            out = backbone.model(**batch, mm_encoder_outputs=encoded, use_cache=True)
            states = [out.logits[0, -1:]]
            for token in (7, 9):
                out = backbone.model(input_ids=torch.tensor([[token]]), use_cache=True, **{CACHE: out[CACHE]})
                states.append(out.logits[0, -1:])
    logits = backbone.model.lm_head(wanted)
    torch.testing.assert_close(torch.cat(states), logits, atol=2e-4, rtol=1e-4)
    assert (backbone.model.lm_head(plain) - logits).abs().max() > 1e-2


def test_keeping_everything_is_the_untouched_model_bit_for_bit(scale):
    sample = MosaicMME(1).samples()[0]
    asked = [PointQuestion("a", sample.question, sample.id, (0, 1))]
    points = [Method(), Method(pruner=RandomTokens(1.0), positions="original")]
    results = answer(scale, points, {"a": sample.image()}, asked, 4, 2)
    assert results[0, 0].text == results[0, 1].text and results[0, 0].visual.features is results[0, 1].visual.features


@pytest.mark.slow
def test_costs_are_those_of_contiguous_positions(scale):
    sample = MosaicMME(1).samples()[0]
    method = Method(pruner=Hero(0.4, frozenset({3}), frozenset({4}), alpha=1.0), name="hero")
    costs = [measure_cost(scale, replace(method, positions=p), [(sample.image(), sample.question)]) for p in ("contiguous", "original")]
    for key in ("visual_tokens", "tokens_by_layer", "kv_bytes", "prefill_flops_formula"):
        assert costs[0][key] == costs[1][key], key


def test_a_prompt_without_places_is_refused(scale):
    method = Method(pruner=RandomTokens(0.5), positions="original", name="random")
    sample = MosaicMME(1).samples()[0]
    visual = scale.visual({"a": sample.image()}, [("a", "q")], method.pruner)[0]
    with attach(scale.model, method) as attached:
        with pytest.raises(UserError, match=r"positions=original needs the places .* method=random"):
            scale.generate([visual.features], ["q"], 1)
        attached.see([visual, visual])
        with pytest.raises(ValueError, match="give one for each row"):
            scale.generate([visual.features], ["q"], 1)
    with attach(scale.model, replace(method, positions=None)) as attached:
        assert attached is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "positions"), list(itertools.product(("hero", "fastv", "sparsevlm", "pair"), ("contiguous", "original")))
)
def test_the_group_reaches_every_method(method, positions, scale):
    settings = composed("evaluate", [f"method={method}", f"positions={positions}", "retention_ratio=0.5"])
    built = build_method(settings, scale)
    assert built.positions == positions and (built.policy is None or built.inherits_positions == (positions == "original"))
