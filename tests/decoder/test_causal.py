"""Every pass over the decoder's layers is causal, whatever kernel they attend with: eager attention has no causal rule of its own."""

from __future__ import annotations

import pytest
import torch
from support.features import scenes
from support.models import prompts, random_llava
from support.shared_execution import LAYERS, modules, together

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core.method import Method
from blink_exp.decoder.attach import attach
from blink_exp.decoder.layers import run_prefixes
from blink_exp.decoder.visual_states import visual_states
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.training.capture import Ranks, prepare_features
from blink_exp.training.module import TokenSRTraining

TRAINED = [0, 1, 5, 12, 18]


@pytest.fixture(scope="module")
def eager():
    return load.__wrapped__("scale", "scale-llava-1.5", attn_implementation="eager")


@torch.no_grad()
def test_a_token_behind_changes_no_state_in_front_of_it():
    """By the definition of causal, and against the whole model; not against the other kernel, which could be wrong too."""
    for attn in ("eager", "sdpa"):
        model = random_llava(attn=attn)
        llm, batch = model.model.language_model, prompts(model, [[9, 10]])
        hidden = model(**batch, output_hidden_states=True).hidden_states
        embeds = hidden[0][:, :38]
        by_layer = visual_states(llm, embeds, 36, [0, 1, 3])
        for layer, states in by_layer.items():
            assert (states - hidden[layer][:, 2:38]).abs().max() < 1e-5
        changed = torch.cat([embeds[:, :-1], embeds[:, -1:] + 1], dim=1)
        for layer, states in visual_states(llm, changed, 36, [0, 1, 3]).items():
            assert (states - by_layer[layer])[:, :-1].abs().max() < 1e-5
            assert (states - by_layer[layer])[:, -1].abs().max() > 1e-2
        (prefix,) = run_prefixes(llm, [hidden[0][0, :38]], [36], [1, 3], [4], 1)
        assert sorted(prefix.inputs) == [1, 3]
        for layer in prefix.inputs:
            assert (prefix.visual_at(layer) - hidden[layer][0, 2:38]).abs().max() < 1e-5


@pytest.mark.slow
def test_training_features_are_those_of_the_fused_kernel(scale, eager, tmp_path):
    """Without a cache, as captured, and read from a cache."""
    (batch,) = scenes(scale).train_dataloader()
    modules_ = [TokenSRTraining(backbone, TRAINED) for backbone in (scale, eager)]
    wanted, computed = (module.frozen(batch) for module in modules_)
    captured = modules_[1].capture(batch)
    made = scenes(eager, cache_features=True, cache_path=str(tmp_path), cache_dtype="float32")
    made.stored = prepare_features(eager, TRAINED, modules_[1].capture, made, "32-true", Ranks())
    stored = made.stored["train"][list(range(8))]
    for k, layer in enumerate(TRAINED):
        patch, teacher = wanted[layer]
        for other in (computed[layer], (captured.patch[:, k], captured.teacher[:, k]), (stored.patch[:, k], stored.teacher[:, k])):
            torch.testing.assert_close(other[0], patch, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(other[1], teacher, atol=2e-4, rtol=1e-4)


def test_features_of_an_eager_pass_without_a_mask_are_stale(eager, tmp_path, capsys):
    """A cache that was made before eager passes had a mask says nothing of it, and is not read."""
    from blink_exp.training import capture

    module, made = TokenSRTraining(eager, [1]), scenes(eager, cache_features=True, cache_path=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        described = capture.plan_contents
        patch.setattr(
            capture, "plan_contents", lambda *a: (described(*a)[0], {k: v for k, v in described(*a)[1].items() if k != "attention"})
        )
        prepare_features(eager, [1], module.capture, made, "32-true", Ranks())
    capsys.readouterr()
    prepare_features(eager, [1], module.capture, made, "32-true", Ranks())
    assert "are stale (another attention)" in capsys.readouterr().out


def test_branches_over_shared_prefixes_answer_and_decide_as_with_the_fused_kernel(scale, eager):
    benchmark, shared = MosaicMME(), []
    samples = list(benchmark.samples())[:3]
    for backbone in (scale, eager):
        backbone.forget()
        methods = [Method(), blink(BlinkPolicy(layers=LAYERS, tau_expand=0.3), modules(backbone))]
        shared.append(together(backbone, methods, samples, benchmark))
    assert shared[0] == shared[1]


@torch.no_grad()
def test_a_method_on_padded_rows_has_the_logits_of_the_fused_kernel():
    logits = []
    for attn in ("eager", "sdpa"):
        model = random_llava(attn=attn)
        with attach(model, blink(BlinkPolicy((1, 2, 3), tau_expand=0.25, on_reexpand="append"))):
            out = model(**prompts(model, [[8, 9, 10, 11], [12, 13]]))
            logits.append(out.logits[:, -1])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_blink_on_the_eager_path_has_a_causal_mask():
    """One row without padding: kernels with a causal rule need no mask then, the eager path does."""
    eager = random_llava(attn="eager")
    batch = prompts(eager, [[9, 10, 11]])
    stock = eager(**batch).logits
    with attach(eager, blink(BlinkPolicy((0, 2), 1.0, 0.0))):
        assert (eager(**batch).logits - stock).abs().max() < 1e-5
