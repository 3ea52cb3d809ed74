"""FastV, SparseVLM, PyramidDrop and DART in the decoder loop, against layers run one by one with full attention maps."""

from __future__ import annotations

import pytest
import torch
from support.drop import BY_HAND, Depth, fastv_by_hand
from support.models import IMAGE, PAD, one, prompts, random_llava, random_next
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.backbone.cache_name import CACHE
from blink_exp.core.method import Method
from blink_exp.core.views import ViewGeometry, all_tokens, pack
from blink_exp.decoder.attach import attach
from blink_exp.methods import fastv
from blink_exp.methods.dart import DARTPolicy
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.pyramiddrop import PyramidDropPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy, counts

TEXTS = [[9, 10, 11], [12, 13, 14, 15, 16], [17], [18, 19, 20, 21]]
SHAPES = {"plain": {}, "grouped-query": {"width": 48, "heads": 6, "kv_heads": 2}}
METHODS = {
    "fastv": FastVPolicy(2, 0.5),
    "fastv, early and few": FastVPolicy(1, 0.1),
    "sparsevlm": SparseVLMPolicy((0, 1, 2), (20, 12, 6)),
    "sparsevlm, few": SparseVLMPolicy((0, 2), (3, 2)),  # prunes 33 of 36: 10 candidates, 2 clusters
    "sparsevlm, shares": SparseVLMPolicy((1, 2), None, (0.4, 0.1)),
    "pyramiddrop": PyramidDropPolicy((0, 1, 2)),
    "pyramiddrop, first image, counts": PyramidDropPolicy((0, 2), None, (20, 5), mode="reference"),
    "dart": DARTPolicy(2, 0.5),
    "dart, early, in the authors' order": DARTPolicy(1, 0.3, mode="reference"),
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def model(request):
    return random_llava(**SHAPES[request.param])


def method(name: str) -> Method:
    return Method(METHODS[name], name=name.split(",")[0])


# --- the decoder against layers run by hand ---------------------------------------------------------------------------------------


def oracle(model, batch, policy) -> torch.Tensor:
    return BY_HAND[type(policy)](model, batch, policy)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_full_attention_maps(shape, name):
    model, eager = random_llava(**SHAPES[shape]), random_llava(**SHAPES[shape], attn="eager")
    for images, text in ((1, [9, 10, 11, 12]), (3, [13, 14]), (1, [15])):
        batch = prompts(model, [text], images, seed=images)
        with attach(model, method(name)) as run:
            ours = model(**batch).logits[0, -1]
        wanted = oracle(eager, batch, METHODS[name])
        assert (ours - wanted).abs().max() < 1e-4
        assert (ours - model(**batch).logits[0, -1]).abs().max() > 1e-3  # and it changes the answer
        assert [r.scan.layer for r in run.records] == list(METHODS[name].layers)
        with attach(eager, method(name)):
            assert (eager(**batch).logits[0, -1] - wanted).abs().max() < 1e-4


def next_prompts(model, sizes: list[list[tuple[int, int]]], texts: list[list[int]]) -> dict[str, torch.Tensor]:
    """A left-padded LLaVA-NeXT batch; ``sizes``: (height, width) of the images of each row."""
    views = [[ViewGeometry.of(model.config, size) for size in row] for row in sizes]
    rows = []
    for row, text in zip(views, texts, strict=True):
        rows.append([1, 5] + [t for v in row for t in [IMAGE] * len(pack(v, all_tokens(v))) + [7]] + text)
    length = max(map(len, rows))
    flat = [v for row in views for v in row]
    side = model.config.vision_config.image_size
    pixels = torch.zeros(len(flat), max(v.count for v in flat), 3, side, side)
    for k, v in enumerate(flat):
        pixels[k, : v.count] = torch.randn(v.count, 3, side, side, generator=torch.Generator().manual_seed(v.count))
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows]),
        "pixel_values": pixels,
        "image_sizes": torch.tensor([size for row in sizes for size in row]),
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "sparsevlm, shares", "pyramiddrop", "dart"])
def test_llava_next_with_images_of_different_sizes(name):
    """A batch equals single runs, those equal the oracle, and generation is the same with and without a cache."""
    model = random_next(side=4)
    sizes, texts = [[(16, 32)], [(48, 16), (27, 27)], [(13, 40)]], [[9, 10, 11], [12, 13], [14, 15, 16, 17]]
    batch = next_prompts(model, sizes, texts)
    assert len({int((ids == IMAGE).sum()) for ids in batch["input_ids"]}) == 3
    singles = [next_prompts(model, sizes[b : b + 1], texts[b : b + 1]) for b in range(3)]
    with attach(model, method(name)) as run:
        together, records = model(**batch).logits[:, -1], run.records
        settings = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE]}
        sequences = [model.generate(**batch, use_cache=cached, **settings) for cached in (True, False)]
        for b, single in enumerate(singles):
            assert (model(**single).logits[0, -1] - together[b]).abs().max() < 1e-4
            assert [r.decision for r in run.records] == [r.decision for r in records if r.row == b]
    assert torch.equal(*sequences)
    model.set_attn_implementation("eager")
    for b, single in enumerate(singles):
        assert (oracle(model, single, METHODS[name]) - together[b]).abs().max() < 1e-4


@torch.no_grad()
def test_fastv_removes_what_could_as_well_be_masked():
    eager = random_llava(attn="eager")
    batch = prompts(eager, [[9, 10, 11]], 2)
    for policy in (METHODS["fastv"], METHODS["fastv, early and few"]):
        masked = fastv_by_hand(eager, batch, policy, masked=True)
        with attach(eager, Method(policy)):
            assert (eager(**batch).logits[0, -1] - masked).abs().max() < 1e-4


@torch.no_grad()
def test_keeping_everything_is_the_untouched_model_bit_for_bit(model):
    batch = prompts(model, TEXTS, 2)
    stock = model(**batch).logits
    with attach(model, fastv.configure(Depth(4), retention_ratio=1)) as run:
        assert run is None
        assert torch.equal(model(**batch).logits, stock)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_cached_generation_equals_recomputation(name):
    model = random_llava(**SHAPES["grouped-query"])
    batch = prompts(model, TEXTS[:3], images=[1, 2, 1])
    for settings in ({"do_sample": False}, {"num_beams": 2}, {"do_sample": True, "temperature": 1.5}):
        outputs = []
        with attach(model, method(name)) as run:
            for use_cache in (True, False):
                torch.manual_seed(11)
                out = model.generate(
                    **batch,
                    max_new_tokens=4,
                    use_cache=use_cache,
                    suppress_tokens=[IMAGE],
                    output_logits=True,
                    return_dict_in_generate=True,
                    **settings,
                )
                outputs.append((out.sequences, torch.stack(out.logits)))
        assert torch.equal(outputs[0][0], outputs[1][0]), settings
        assert (outputs[0][1] - outputs[1][1]).abs().max() < 1e-3
        assert run.records


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_single_runs(model, name):
    images = [1, 2, 1, 3]
    batch = prompts(model, TEXTS, images)
    with attach(model, method(name)) as run:
        together, decided = model(**batch).logits[:, -1], run.records
        for b in range(4):
            assert (model(**one(batch, b, images)).logits[0, -1] - together[b]).abs().max() < 1e-4
            assert [(r.decision, r.visual_tokens) for r in run.records] == [(r.decision, r.visual_tokens) for r in decided if r.row == b]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_rows_pruned_in_front_of_the_llm_and_rows_without_an_image(model, name):
    """Features of 36 and of 11 tokens in one batch, as a pruner in front leaves them; a row without an image runs as it is."""
    features = [torch.randn(n, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(n)) for n in (36, 11)]
    rows = [[1, 5] + [IMAGE] * 36 + [9, 10], [1] + [IMAGE] * 11 + [12, 13, 14], [1, 5, 9, 10, 11]]

    def logits(chosen):
        length = max(len(rows[b]) for b in chosen)
        batch = {
            "input_ids": torch.tensor([[PAD] * (length - len(rows[b])) + rows[b] for b in chosen]),
            "attention_mask": torch.tensor([[0] * (length - len(rows[b])) + [1] * len(rows[b]) for b in chosen]),
        }
        given = [features[b] for b in chosen if b < 2]
        if given:
            batch["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=given)}
        out = model.generate(**batch, max_new_tokens=2, output_logits=True, return_dict_in_generate=True, do_sample=False)
        return out.logits[1]  # of the generated token, so the cache has been used

    stock = logits([2])
    with attach(model, method(name)) as run:
        together = logits([0, 1, 2])
        assert {r.row for r in run.records} == {0, 1}
        for b in range(3):
            assert (logits([b])[0] - together[b]).abs().max() < 1e-4
    assert (together[2] - stock[0]).abs().max() < 1e-4


# --- bookkeeping ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fastv_caches_positions_and_records(model):
    placed = []
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_hook(lambda m, args, kwargs, out: placed.append(kwargs["position_ids"]), with_kwargs=True)
    batch = prompts(model, [[9, 10, 11]])
    n, v = batch["input_ids"].shape[1], 36
    with attach(model, Method(FastVPolicy(2, 0.3))) as run:
        cache = model(**batch, use_cache=True)[CACHE]
        hook.remove()
        assert [layer.keys.shape[2] for layer in cache.layers] == [n, n, n - v + 10, n - v + 10]
        assert [layer.next_position.tolist() for layer in cache.layers] == [[n]] * 4  # an answer goes on behind the full prompt
        model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
        assert [layer.next_position.tolist() for layer in cache.layers] == [[n + 1]] * 4
    (record,) = run.records
    assert (record.visual_tokens, len(record.decision.indices)) == (10, 10)
    assert (record.scan.rho, record.scan.region, record.scan.distances) == (None, None, None)
    first, _, second = (p[0].tolist() for p in placed)  # of the prompt, of the token that is asked by, of what is left
    assert first == list(range(n))
    assert second == [0, 1, *(2 + i for i in record.decision.indices), *range(n - 3, n)]  # gaps stay; the last is n - 1


@torch.no_grad()
def test_sparsevlm_caches_positions_and_records(model):
    batch = prompts(model, [[9, 10, 11]])
    n, schedule = batch["input_ids"].shape[1], (20, 12, 6)
    with attach(model, Method(SparseVLMPolicy((0, 1, 2), schedule))) as run:
        cache = model(**batch, use_cache=True)[CACHE]
        lengths = [n, *(n - 36 + left for left in counts(36, schedule))]  # a pruning layer has cached what it saw
        assert [layer.keys.shape[2] for layer in cache.layers] == lengths
        model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
        assert [layer.next_position.item() for layer in cache.layers] == [length + 1 for length in lengths]
    assert [r.visual_tokens for r in run.records] == counts(36, schedule)
    for record in run.records:
        clustered = [i for cluster in record.decision.clusters for i in cluster]
        assert not set(clustered) & set(record.decision.indices)
        assert len(clustered) == len(set(clustered))
        assert hash(record.decision) == hash(record.decision)


@torch.no_grad()
def test_pyramiddrop_caches_positions_and_records(model):
    """Positions are renumbered at each stage, so a generated token's shrinks by what was dropped in front of its layer."""
    placed = []
    rotary = model.model.language_model.rotary_emb
    hook = rotary.register_forward_hook(lambda m, args, kwargs, out: placed.append(kwargs["position_ids"]), with_kwargs=True)
    batch = prompts(model, [[9, 10, 11]])
    n = batch["input_ids"].shape[1]
    with attach(model, Method(PyramidDropPolicy((0, 1, 2)))) as run:
        cache = model(**batch, use_cache=True)[CACHE]
        hook.remove()
        lengths = [n, n - 18, n - 27, n - 32]
        assert [layer.keys.shape[2] for layer in cache.layers] == lengths
        assert [layer.next_position.item() for layer in cache.layers] == lengths
        model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
        assert [layer.next_position.item() for layer in cache.layers] == [length + 1 for length in lengths]
    assert [r.visual_tokens for r in run.records] == [18, 9, 4]
    assert all(len(r.scan.token_scores) == left for r, left in zip(run.records, (36, 18, 9), strict=True))
    asked = [length for length in lengths[:3] if any(p.tolist() == [list(range(length - 3, length))] for p in placed)]
    assert asked == lengths[:3]  # the next layer is asked at the positions that hold before its stage drops


@torch.no_grad()
def test_dart_caches_positions_and_records(model):
    batch = prompts(model, [[9, 10, 11]])
    n = batch["input_ids"].shape[1]
    with attach(model, Method(DARTPolicy(2, 0.5))) as run:
        cache = model(**batch, use_cache=True)[CACHE]
        assert [layer.keys.shape[2] for layer in cache.layers] == [n, n, n - 16, n - 16]  # 4 + 8 * 2 of 36
        assert [layer.next_position.item() for layer in cache.layers] == [n] * 4  # an answer goes on behind the full prompt
    (record,) = run.records
    assert record.visual_tokens == 20 and record.scan.token_scores == () and record.scan.keys is None


@torch.no_grad()
def test_permuting_heads_changes_no_decision():
    batch = prompts(random_llava(), [[9, 10, 11]])
    decisions = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        model = random_llava()
        attention = model.model.language_model.layers[1].self_attn
        rows = torch.tensor([8 * h + i for h in order for i in range(8)])
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.copy_(projection.weight[rows])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows])
        with attach(model, method("fastv")) as run:
            model(**batch)
        decisions.append(run.records[0].decision)
    assert decisions[0] == decisions[1]


@torch.no_grad()
def test_only_the_raters_queries_are_made_and_sdpa_stays_in_use(monkeypatch):
    from transformers.models.llama import modeling_llama

    from blink_exp.core import saliency
    from blink_exp.decoder import tiles

    monkeypatch.setattr(tiles, "independent", lambda x: False)  # a CPU fills them up to whole tiles
    model = random_llava()
    batch = prompts(model, TEXTS[1:2], 2)

    def refuse(*args, **kwargs):
        raise AssertionError("the eager path makes full attention matrices")

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", refuse)
    shapes, stock = [], saliency.text_mean
    monkeypatch.setattr(saliency, "text_mean", lambda seen, columns: shapes.append(seen.visible.shape[1]) or stock(seen, columns))
    with attach(model, method("fastv")):
        model.generate(**batch, max_new_tokens=2)
    assert shapes == [1]
    with attach(model, method("sparsevlm")):
        model.generate(**batch, max_new_tokens=2)
    assert len(shapes) == 4  # once a pruning layer, none for generated tokens
    assert set(shapes[1:]) < set(range(1, 5))  # not all five text tokens, and the same ones in each layer
    assert len(set(shapes[1:])) == 1
    with attach(model, method("dart")):
        model.generate(**batch, max_new_tokens=2)
    assert len(shapes) == 4  # no attention is read
    with attach(model, method("pyramiddrop")):
        model.generate(**batch, max_new_tokens=2)
    assert shapes[4:] == [1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "pyramiddrop", "dart"])
def test_leaving_restores_the_model_also_after_an_exception(model, name):
    before = {k: set(m.__dict__) for k, m in model.named_modules()}
    batch = prompts(model, TEXTS)
    stock = model(**batch).logits
    with pytest.raises(ZeroDivisionError), attach(model, method(name)):
        assert not torch.equal(model(**batch).logits, stock)
        raise ZeroDivisionError
    assert {k: set(m.__dict__) for k, m in model.named_modules()} == before
    assert not model.model._forward_pre_hooks
    assert torch.equal(model(**batch).logits, stock)
