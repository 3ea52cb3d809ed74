"""The recorder of attention against eager attention, and which token stands where it looks, by hand."""

from __future__ import annotations

import pytest
import torch
from support.models import prompts, random_llava

from blink_exp.core.method import Record, Scan
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.sequence import Drop, Expand, Keep, Origin, Retain
from blink_exp.core.views import EXTRA, NEWLINE
from blink_exp.decoder.attach import attach
from blink_exp.decoder.attention import record_attention, replay
from blink_exp.methods.blink import BlinkPolicy, blink


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_recorded_attention_is_eager_s_last_row_padded_rows_included(kv_heads):
    model = random_llava(kv_heads=kv_heads, attn="eager")
    batch = prompts(model, [[8, 9, 10, 11], [12, 13]])
    full = model(**batch, output_attentions=True).attentions
    for attn in ("eager", "sdpa"):
        other = random_llava(kv_heads=kv_heads, attn=attn)
        for use_cache in (True, False):
            with record_attention(other.model.language_model) as rows, torch.no_grad():
                other(**batch, use_cache=use_cache)
            assert sorted(rows) == [0, 1, 2, 3]
            for layer, row in rows.items():
                torch.testing.assert_close(row, full[layer][:, :, -1].mean(1), atol=2e-6, rtol=0)


def test_recorded_attention_is_the_layer_s_own_while_blink_expands_and_drops():
    """The eager kernel gives the weights of the text segment over everything in front of it: system, visual, expanded."""
    model = random_llava(attn="eager")
    llm = model.model.language_model
    policy = BlinkPolicy((1, 2, 3), tau_expand=0.0, resolution="cycle", on_reexpand="append")
    weights = {}
    hooks = [
        layer.self_attn.register_forward_hook(lambda m, _, out: weights.__setitem__(m.layer_idx, out[1][:, :, -1].mean(1)))
        for layer in llm.layers
    ]
    batch = prompts(model, [[8, 9, 10, 11]])
    with attach(model, blink(policy)), record_attention(llm) as rows, torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    assert [rows[i].shape[1] for i in range(4)] == [42, 42 + 36, 42, 42 + 36]
    for layer in range(4):
        torch.testing.assert_close(rows[layer], weights[layer], atol=2e-6, rtol=0)


def eager(model, states, i):
    """(keys,) attention of the last token, heads averaged, by a layer's own eager kernel over the whole sequence."""
    llm = model.model.language_model
    rope = llm.rotary_emb(states, position_ids=torch.arange(states.shape[1])[None])
    mask = torch.full((states.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    layer = llm.layers[i]
    weights = layer.self_attn(layer.input_layernorm(states), attention_mask=mask, position_embeddings=rope)[1]
    return weights[0, :, -1].mean(0), layer(states, attention_mask=mask, position_embeddings=rope)


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"width": 48, "heads": 6, "kv_heads": 2}], ids=["plain", "grouped-query"])
def test_recorded_attention_is_eager_attention_of_the_sequence_written_out(shape):
    """Blink runs system | visual | expanded | text segment by segment; here they are one piece, the expansion made by hand."""
    model, reference = random_llava(**shape), random_llava(attn="eager", **shape)
    batch = prompts(model, [[9, 10, 11]])
    with attach(model, blink(BlinkPolicy((1,), resolution="expand_once"))) as run, record_attention(model.model.language_model) as rows:
        model.generate(**batch, max_new_tokens=1)
        (record,) = run.records
    hidden = reference(**batch, output_hidden_states=True).hidden_states[1]
    patch = hidden[:, 2:38][:, PatchGrid(2, 6, 6).indices(record.decision.region)].mT.view(1, -1, 3, 3)
    fine = torch.nn.functional.interpolate(patch, size=(6, 6), mode="bilinear", align_corners=False).flatten(2).mT
    states = torch.cat([hidden[:, :38], fine, hidden[:, 38:]], dim=1)
    for i in range(1, 4):
        row, states = eager(reference, states, i)
        torch.testing.assert_close(rows[i][0], row, atol=1e-5, rtol=0)
    made = (Origin(1, record.decision.region, 36),)
    assert [parts for _, parts in replay([record], torch.arange(36), 4)] == [(), made, made, made]


def test_only_the_prompt_is_recorded_and_the_hooks_leave():
    model = random_llava()
    llm = model.model.language_model
    batch = prompts(model, [[8, 9, 10]])
    recorded = []
    for tokens in (1, 4):
        with record_attention(llm) as rows:
            model.generate(**batch, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
        recorded.append(rows)
    assert all(torch.equal(recorded[0][i], recorded[1][i]) for i in range(4))
    with pytest.raises(RuntimeError), record_attention(llm):
        raise RuntimeError
    with record_attention(llm, [1, 3]) as rows, torch.no_grad():
        model(**batch)
    assert sorted(rows) == [1, 3] and all(torch.equal(rows[i], recorded[0][i]) for i in rows)
    assert not llm._forward_hooks and not any(layer.self_attn._forward_hooks for layer in llm.layers)


def decided(layer, decision, tokens):
    return Record(0, Scan(layer, "s", 0, False), decision, tokens)


def test_replay_follows_blink_by_hand():
    decisions = [
        decided(1, Expand(2), 10 + 4),
        decided(2, Keep(), 10 + 4),
        decided(3, Expand(0), 10 + 6),  # replaces: a module may give another number of tokens
        decided(4, Expand(1, "keep"), 10 + 6),  # something is there: no effect
        decided(5, Expand(3, "append"), 10 + 10),
        decided(6, Drop(), 10),
        decided(7, Drop(), 10),
    ]
    layers = replay(decisions, torch.arange(10), 9)
    a, b = Origin(3, 0, 6), Origin(5, 3, 4)
    assert [parts for _, parts in layers] == [(), (Origin(1, 2, 4),), (Origin(1, 2, 4),), (a,), (a,), (a, b), (), (), ()]
    assert all(torch.equal(source, torch.arange(10)) for source, _ in layers)


def test_replay_follows_methods_that_decide_behind_a_layer():
    decisions = [decided(0, Retain((1, 2, 4), ((0, 3),)), 4), decided(2, Retain((0, 3)), 2)]
    sources = [source.tolist() for source, _ in replay(decisions, torch.tensor([7, 5, NEWLINE, 9, 2]), 4)]
    assert sources == [[7, 5, NEWLINE, 9, 2], [5, NEWLINE, 2, EXTRA], [5, NEWLINE, 2, EXTRA], [5, EXTRA]]
