"""The layer-wise decoder against the stock model: off means off, cached equals recomputed, batches equal single runs, clean exit.

On random models of several shapes, so that nothing is true by accident of one of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import one, prompts, random_llava

from blink_exp.core.method import Method
from blink_exp.core.saliency import SCORERS, PatchGrid
from blink_exp.core.sequence import Expand, Keep, Layout
from blink_exp.decoder.attach import attach
from blink_exp.decoder.visual_states import visual_states
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.none import none
from blink_exp.tokensr.modules import build_all

SHAPES = {
    "plain": {},
    "grouped-query": {"width": 48, "heads": 6, "kv_heads": 2},
    "one key head": {"width": 32, "heads": 4, "kv_heads": 1, "layers": 3},
}
TEXTS = [[9, 10, 11], [12, 13, 14, 15, 16], [17], [18, 19, 20, 21]]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def model(request):
    return random_llava(**SHAPES[request.param])


def amplifiers(model, layers):
    torch.manual_seed(5)
    return build_all("conv", model.config.text_config.hidden_size, layers)


POLICIES = {
    "threshold": {"tau_expand": 0.3, "tau_drop": 0.28},
    "cycle": {"resolution": "cycle"},
    "expand_once": {"resolution": "expand_once"},
    "copy": {"resolution": "copy"},
    "random": {"saliency": "random"},
    "append": {"tau_expand": 0.25, "on_reexpand": "append"},
    "keep": {"tau_expand": 0.25, "on_reexpand": "keep"},
    "inherit": {"tau_expand": 0.25, "inherit_positions": True},
    "visual_and_expanded": {"tau_expand": 0.26, "scan_expanded": True, "tau_drop": 0.26},
    "no interpolation": {"tau_expand": 0.25, "interpolate": False},
    "3x3": {"tau_expand": 0.15, "tau_drop": 0.12, "p": 3},
    "attention_visual": {"tau_expand": 0.3, "tau_drop": 0.3, "saliency": "attention_visual"},
    "text_mean": {"tau_expand": 0.3, "tau_drop": 0.3, "saliency": "text_mean"},
    "dot_product": {"tau_expand": 0.28, "tau_drop": 0.28, "saliency": "dot_product"},
}


# every policy on one shape in turn, the main one on all: what generating costs is time, and shapes have tests of their own below
TURNS = [(s, n) for k, n in enumerate(POLICIES) for i, s in enumerate(SHAPES) if n == "threshold" or i == k % len(SHAPES)]


def method_of(model, name: str) -> Method:
    layers = tuple(range(1, model.config.text_config.num_hidden_layers))
    return blink(BlinkPolicy(layers, **POLICIES[name]), amplifiers(model, layers))


@torch.no_grad()
def test_off_is_bit_identical_and_never_met_is_the_same_to_rounding(model):
    for images in (1, 2, 3):
        batch = prompts(model, TEXTS, images)
        stock = model(**batch).logits
        real = batch["attention_mask"].bool()
        for method in (none(), blink(BlinkPolicy(()))):
            with attach(model, method):
                assert torch.equal(model(**batch).logits, stock)
        with attach(model, blink(BlinkPolicy((0, 1, 2), 1.0, 0.0))) as run:
            logits = model(**batch).logits
        assert {type(r.decision) for r in run.records} == {Keep}
        assert len(run.records) == 3 * images * len(TEXTS)
        assert (logits - stock)[real].abs().max() < 1e-5
        assert torch.equal(logits[real].argmax(-1), stock[real].argmax(-1))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("model", "name"), TURNS, indirect=["model"])
def test_cached_generation_equals_recomputation(model, name):
    """Every policy by sampled beams, whose cache is reordered and whose tokens are no argmax; the main one also by each way alone."""
    batch, sampled = prompts(model, TEXTS, images=[1, 2, 1, 2]), {"do_sample": True, "temperature": 1.5}
    alone = ({"do_sample": False}, {"num_beams": 3}, sampled) if name == "threshold" else ()
    for settings in (sampled | {"num_beams": 3}, *alone):
        sequences = []
        with attach(model, method_of(model, name)) as run:
            for use_cache in (True, False):
                torch.manual_seed(11)
                sequences.append(model.generate(**batch, max_new_tokens=4, use_cache=use_cache, suppress_tokens=[3], **settings))
        assert torch.equal(*sequences), settings
        assert run.records


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("model", "name"), TURNS, indirect=["model"])
def test_a_batch_equals_single_runs(model, name):
    """Sixteen rows of different lengths and numbers of images, in logits and in what was decided."""
    counts = [1, 2, 1, 3] * 4
    batch = prompts(model, [[t + i // 4 for t in TEXTS[i % 4]] for i in range(16)], counts)
    names = [f"sample {i}" for i in range(16)]
    with attach(model, method_of(model, name)) as run:
        run.samples = names
        together, decided = model(**batch).logits[:, -1], run.records
        for i in range(16):
            run.samples = names[i : i + 1]
            alone = model(**one(batch, i, counts)).logits[:, -1]
            assert (alone - together[i]).abs().max() < 1e-4
            assert [(r.scan.layer, r.scan.image, r.decision) for r in run.records] == [
                (r.scan.layer, r.scan.image, r.decision) for r in decided if r.row == i
            ]


@torch.no_grad()
@pytest.mark.parametrize("name", ["threshold", "append", "inherit"])
def test_where_nobody_decides_an_unpadded_row_runs_as_one_segment(name):
    """Expanded segments among them, and to the same numbers as segment by segment, which padding asks for."""
    model, counts = random_llava(layers=6), [1, 2, 1, 3]
    batch = prompts(model, TEXTS, counts)
    calls: list[int] = []
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(lambda module, args: calls.append(module.self_attn.layer_idx))
    with attach(model, blink(BlinkPolicy((1, 3), **POLICIES[name]), amplifiers(model, (1, 3)))) as run:
        run.samples = names = [f"sample {i}" for i in range(4)]
        together, decided = model(**batch).logits[:, -1], run.records
        assert calls.count(0) == 4  # three images and the text
        for i in range(4):
            calls.clear()
            run.samples = names[i : i + 1]
            alone = model(**one(batch, i, counts)).logits[:, -1]
            assert [calls.count(layer) for layer in range(6)] == [1, 2, 1, 2, 1, 1]  # what stands before a decision, and behind it
            assert (alone - together[i]).abs().max() < 1e-4
    assert any(isinstance(r.decision, Expand) for r in decided)


@torch.no_grad()
def test_decisions_differ_between_rows_so_the_tests_above_test_something():
    model = random_llava()
    batch = prompts(model, [[t + i for t in TEXTS[i % 4]] for i in range(16)])
    with attach(model, method_of(model, "threshold")) as run:
        model(**batch)
    kinds = {type(r.decision).__name__ for r in run.records}
    assert kinds == {"Expand", "Drop", "Keep"}
    assert len({r.visual_tokens for r in run.records if r.scan.layer == 1}) == 2


@torch.no_grad()
def test_expansion_stands_where_the_paper_puts_it_and_positions_move_the_text():
    """Against the sequence written out in full: system | visual | expanded | text through stock layers, with a causal mask."""
    model = random_llava(layers=2)
    llm, batch = model.model.language_model, prompts(model, [[9, 10, 11]])
    with attach(model, blink(BlinkPolicy((1,), tau_expand=0.25))) as run:
        ours = model(**batch).logits[0, -1]
    (record,) = run.records
    hidden = model(**batch, output_hidden_states=True).hidden_states[1]  # the input of layer 1
    grid = PatchGrid(2, 6, 6)
    patch = hidden[:, 2:38][:, grid.indices(record.decision.region)].mT.view(1, -1, 3, 3)
    fine = torch.nn.functional.interpolate(patch, size=(6, 6), mode="bilinear", align_corners=False).flatten(2).mT
    full = torch.cat([hidden[:, :38], fine, hidden[:, 38:]], dim=1)
    rope = llm.rotary_emb(full, position_ids=torch.arange(full.shape[1])[None])
    wanted = model.lm_head(llm.norm(llm.layers[1](full, attention_mask=None, position_embeddings=rope)))[0, -1]
    assert (ours - wanted).abs().max() < 1e-5
    assert (ours - model(**batch).logits[0, -1]).abs().max() > 1e-3  # and it does change the answer


@torch.no_grad()
def test_the_scan_is_the_attention_that_the_layer_itself_computes():
    eager = random_llava(attn="eager", kv_heads=2)
    batch = prompts(eager, TEXTS)
    attention = eager(**batch, output_attentions=True).attentions
    model = random_llava(kv_heads=2)
    with attach(model, blink(BlinkPolicy((0, 1, 2, 3), 1.0, 0.0))) as run:
        model(**batch)
    grid = PatchGrid(2, 6, 6)
    for r in run.records:
        start = int((batch["input_ids"][r.row] == 3).nonzero()[0])
        weights = attention[r.scan.layer][r.row, :, -1, start : start + 36].mean(0)
        assert torch.allclose(torch.tensor(r.scan.patch_scores), grid.sums(weights), atol=1e-5)


@torch.no_grad()
def test_no_attention_matrix_is_made_and_sdpa_stays_in_use(monkeypatch):
    from transformers.models.llama import modeling_llama

    model = random_llava()
    batch = prompts(model, TEXTS, 2)

    def refuse(*args, **kwargs):
        raise AssertionError("the eager path makes full attention matrices")

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", refuse)
    calls = []
    stock = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or stock(*a, **k))
    shapes = []
    for name, scorer in SCORERS.items():
        watched = replace(scorer, score=lambda seen, columns, scorer=scorer: shapes.append(seen.visible.shape[1]) or scorer(seen, columns))
        monkeypatch.setitem(SCORERS.functions, name, watched)
        with attach(model, blink(BlinkPolicy((0, 2), 0.25, saliency=name))):
            model.generate(**batch, max_new_tokens=2)
    assert calls
    assert 1 in shapes and set(shapes) <= {1, *map(len, TEXTS)}


@torch.no_grad()
def test_leaving_restores_the_model_also_after_an_exception(model):
    batch = prompts(model, TEXTS)
    stock = model(**batch).logits  # first: transformers hooks its own modules at a model's first call
    before = {k: dict(m.__dict__) for k, m in model.named_modules()}
    hooks = {k: (len(m._forward_pre_hooks), len(m._forward_hooks)) for k, m in model.named_modules()}
    with pytest.raises(ZeroDivisionError), attach(model, method_of(model, "threshold")):
        model(**batch)
        raise ZeroDivisionError
    assert {k: (len(m._forward_pre_hooks), len(m._forward_hooks)) for k, m in model.named_modules()} == hooks
    assert all(m.__dict__.keys() == before[k].keys() for k, m in model.named_modules())
    assert torch.equal(model(**batch).logits, stock)


def test_attaching_twice_is_an_error_that_says_so(model):
    with attach(model, method_of(model, "threshold")), pytest.raises(RuntimeError, match="'blink' is attached already"):
        with attach(model, method_of(model, "cycle")):
            pass
    with attach(model, method_of(model, "cycle")):
        pass  # the first one has left, so this works


@torch.no_grad()
def test_what_a_changing_sequence_cannot_do_is_refused(model):
    batch = prompts(model, TEXTS)
    with attach(model, method_of(model, "threshold")):
        for settings, word in (
            ({"cache_implementation": "static"}, "static cache"),
            ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
            ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ):
            with pytest.raises(ValueError, match=word):
                model.generate(**batch, max_new_tokens=2, **settings)
        with pytest.raises(ValueError, match="output_attentions"):
            model(**batch, output_attentions=True)


@torch.no_grad()
def test_layers_outside_the_backbone_are_refused(model):
    depth = model.config.text_config.num_hidden_layers
    with pytest.raises(ValueError, match=f"layer={depth} is outside"), attach(model, blink(BlinkPolicy((depth,)))):
        pass


@torch.no_grad()
def test_rows_without_an_image_run_as_they_are():
    model = random_llava()
    batch = prompts(model, TEXTS, images=[1, 0, 1, 0])
    stock = model(**batch).logits[:, -1]
    with attach(model, method_of(model, "expand_once")) as run:
        ours = model(**batch).logits[:, -1]
        assert {r.row for r in run.records} == {0, 2}
        text = {"input_ids": torch.tensor([[1, 5, 9, 10]])}
        assert torch.equal(model(**text).logits, type(model).forward(model, **text).logits)
    assert (ours - stock)[[1, 3]].abs().max() < 1e-5
    assert (ours - stock)[[0, 2]].abs().max() > 1e-3


@torch.no_grad()
def test_visual_states_stop_early_and_are_those_of_the_full_model():
    model = random_llava()
    llm, batch = model.model.language_model, prompts(model, [[9, 10]])
    hidden = model(**batch, output_hidden_states=True).hidden_states
    embeds = hidden[0][:, :38]
    ran = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(llm.layers)]
    states = visual_states(llm, embeds, 36, [0, 2])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]  # the input of layer 2 needs no layer 2
    for layer in (0, 2):
        assert (states[layer] - hidden[layer][:, 2:38]).abs().max() < 1e-5


def test_upstream_facts_that_the_loop_leans_on():
    """Each line names what breaks if transformers changes it."""
    model = random_llava()
    llm = model.model.language_model
    layer = llm.layers[0]
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= set(dict(layer.self_attn.named_children()))  # scan and scorers
    assert layer.self_attn.scaling == layer.self_attn.head_dim**-0.5
    assert isinstance(
        layer(torch.zeros(1, 2, 32), position_embeddings=llm.rotary_emb(torch.zeros(1, 2, 32), torch.arange(2)[None])), torch.Tensor
    )
    assert llm.config._attn_implementation == "sdpa"
    assert model.config.image_token_id == 3  # where the images stand in a prompt
    cos, _ = llm.rotary_emb(torch.zeros(1, 1, 32), position_ids=torch.tensor([[1.5]]))  # fractional positions (inherit)
    assert torch.allclose(cos[0, 0, 0], torch.tensor(1.5).cos())


def test_expand_is_hashable_and_layout_refuses_half_an_image():
    assert len({Expand(1), Expand(1), Expand(2)}) == 2
    with pytest.raises(AssertionError, match="no multiple"):
        Layout.of(torch.tensor([[True, True, True, False]]), None, 2)
