"""What a TokenSR training runs of the frozen backbone, counted; and that the ways which save work give the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.composing import config
from support.features import scenes
from support.training_runs import train
from torch.utils.flop_counter import FlopCounterMode

from bench import tokensr, tokensr_cuda
from bench.shapes import TINY
from blink_exp.commands.train import job_of
from blink_exp.errors import UserError
from blink_exp.flops import CPU_ATTENTION
from blink_exp.training import module as training_module
from blink_exp.training.capture import Ranks, prepare_features
from blink_exp.training.feature_cache import Features
from blink_exp.training.module import TokenSRTraining
from blink_exp.training.pairs import PairBatch
from blink_exp.training.recipe import check_recipe


@pytest.mark.parametrize(("quadrants", "views"), [("all", 2 + 8), ("one", 8 + 8)])
def test_an_image_runs_once_no_text_runs_and_the_forward_stops_at_the_last_layer(scale, quadrants, views):
    """Eight pairs: two images with all four quadrants each, or eight images. A sequence is the prompt's opening and 144 visual tokens;
    layers 1 and 3 need the input of layer 3, so layers 0 to 2 run."""
    (batch,) = scenes(scale, quadrants=quadrants).train_dataloader()
    opening = len(scale.processor.tokenizer(scale.prompt("").split(scale.processor.image_token)[0]).input_ids)
    ran: list[tuple[str, tuple[int, ...]]] = []
    named = {"tower": scale.model.model.vision_tower, "norm": scale.llm.norm, "head": scale.model.lm_head}
    named |= {f"layer {i}": layer for i, layer in enumerate(scale.llm.layers)}

    def watch(name):
        def hook(module, args, kwargs, out):
            first = args[0] if args else next(iter(kwargs.values()))
            ran.append((name, tuple(first.shape)))

        return hook

    hooks = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in named.items()]
    try:
        TokenSRTraining(scale, [1, 3]).losses(batch)
    finally:
        for hook in hooks:
            hook.remove()
    size = scale.model.config.vision_config.image_size
    tokens = (views, opening + 144, scale.width)
    assert ran == [("tower", (views, 3, size, size)), *((f"layer {i}", tokens) for i in range(3))]


def test_all_quadrants_are_cut_from_one_image_and_share_its_view(scale):
    made = scenes(scale, quadrants="all")
    (batch,) = made.train_dataloader()
    assert batch.quadrant.tolist() == [0, 1, 2, 3] * 2
    assert batch.owner.tolist() == [0] * 4 + [1] * 4
    module = TokenSRTraining(scale, [1])
    together = module.pairs(batch)[1]
    alone = [
        module.pairs(PairBatch(batch.full[i // 4][None], batch.crop[i][None], batch.quadrant[[i]], torch.tensor([0])))[1] for i in (0, 6)
    ]
    for i, (patch, teacher) in zip((0, 6), alone, strict=True):
        torch.testing.assert_close(together[0][i], patch[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together[1][i], teacher[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_seven_layers_in_one_pass_have_the_losses_of_seven_runs(scale):
    """Each from the same weights. Catches a layer that gets another's module or features, and gradients that leak from loss to loss."""
    layers = [6, 0, 1, 2, 3, 4, 5]
    batches = list(scenes(scale, train_size=8, global_batch=4).train_dataloader())
    together = TokenSRTraining(scale, layers)
    start = {k: v.clone() for k, v in together.amplifiers.state_dict().items()}
    losses = tokensr.epoch(together, batches, start)
    for k, layer in enumerate(layers):
        single = TokenSRTraining(scale, [layer])
        torch.testing.assert_close(tokensr.epoch(single, batches, start)[:, 0], losses[:, k], rtol=1e-5, atol=1e-6)
    assert len({round(x, 4) for x in losses[1].tolist()}) == 7


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_from_the_cache_is_the_step_without(scale, tmp_path, monkeypatch, dtype):
    """Bit for bit in float32, to bf16's rounding (8 bits) else; and the backbone is not there to be run."""
    module = TokenSRTraining(scale, [2, 1])
    plain, cached = scenes(scale, workers=0), scenes(scale, cache_features=True, cache_path=str(tmp_path), cache_dtype=dtype)
    cached.stored = prepare_features(scale, module.layers, module.capture, cached, "32-true", Ranks())
    wanted = [module.losses(batch) for loader in (plain.train_dataloader(), plain.val_dataloader()) for batch in loader]
    monkeypatch.setattr(training_module, "image_states", lambda *args: pytest.fail("the backbone was run"))
    losses = [module.losses(batch) for loader in (cached.train_dataloader(), cached.val_dataloader()) for batch in loader]
    assert len(losses) == len(wanted) == 2
    for a, b in zip(losses, wanted, strict=True):
        assert torch.equal(a, b) == (dtype == "float32")
        torch.testing.assert_close(a, b, rtol=2**-7, atol=0)


class Width:
    width, grid, identity = 16, (8, 8), "random"


def random_features(pairs: int, layers: int) -> Features:
    torch.manual_seed(1)
    return Features(torch.randn(pairs, layers, 16, 16), torch.randn(pairs, layers, 64, 16))


def test_checkpointing_keeps_less_and_has_the_same_gradients():
    batch, gradients, sizes = random_features(4, 2), [], []
    for again in (False, True):
        torch.manual_seed(0)
        module = TokenSRTraining(Width(), [0, 1], checkpoint_activations=again)
        held: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            losses = module.losses(batch)
        losses.sum().backward()
        sizes.append(sum(held.values()))
        gradients.append([p.grad for p in module.amplifiers.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert sizes[1] == 2 * 2 * 4 * 64 * 16 * 4  # input and teacher of two layers: 4 pairs, 64 tokens, 16 wide, 4 bytes
    assert sizes[0] > 2 * sizes[1]


def test_channels_last_changes_the_layout_and_not_the_loss():
    batch = random_features(2, 1)
    plain, other = (TokenSRTraining(Width(), [0], channels_last=last) for last in (False, True))
    other.amplifiers.load_state_dict(plain.amplifiers.state_dict())
    first = other.amplifiers["0"][0].weight
    assert first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    torch.testing.assert_close(other.losses(batch), plain.losses(batch), rtol=1e-5, atol=1e-6)


def test_words_of_a_recipe_that_nothing_follows_are_refused():
    words = ("channels_last=true", "trainer.strategy=deepspeed_zero2")
    check_recipe(job_of(config("train", words[0]), Path("run")).settings)
    with pytest.raises(UserError, match="channels_last=true has no effect under ZeRO"):
        check_recipe(job_of(config("train", *words), Path("run")).settings)


@pytest.mark.slow
def test_trainings_are_the_same_without_a_cache_from_a_new_one_and_from_one_that_was_there(tmp_path, monkeypatch, capsys):
    """Two epochs each, by the Trainer that train.py makes. The third run's backbone is not there to be run."""
    words = ["layers.indices=[1,2]", "data.train_size=8", "data.held_out_size=4", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    cache = ["data.cache_features=true", "data.cache_dtype=float32", f"data.cache_path={tmp_path / 'cache'}"]
    output = []
    for name, more in (("plain", []), ("made", cache), ("read", cache)):
        if name == "read":
            monkeypatch.setattr(training_module, "image_states", lambda *args: pytest.fail("the backbone was run"))
        train(tmp_path / name, *words, *more)
        output.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("features are")])
    assert [len(lines) for lines in output] == [0, 2, 1]
    assert "made in" in output[1][0] and "read from" in output[2][0]
    plain, made, read = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))["layers"] for name in ("plain", "made", "read")
    )
    assert plain == made == read
    for layer in ("01", "02"):
        a, b, c = (load_file(tmp_path / name / "tokensr" / f"layer_{layer}.safetensors") for name in ("plain", "made", "read"))
        assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)


# ---- the benchmark's numbers


def test_the_work_that_mfu_is_of_is_what_torch_counts():
    """A step of 8 pairs of 2 images, counted on a tiny model with eager attention, whose products all show; norms are none."""
    frozen = tokensr_cuda.Frozen(TINY, "cpu")
    frozen.model.set_attn_implementation("eager")
    module = TokenSRTraining(frozen, [2, 5])
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        module.losses(tokensr_cuda.batch_of(frozen, 8, 2)).sum().backward()
    assert tokensr_cuda.flops(TINY, [2, 5], 8, 2 + 8) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_what_no_gpu_measured_stays_empty():
    rows = tokensr_cuda.rows(None)
    assert len(rows) == 6 and all(list(row) == ["what"] for row in rows)
    with pytest.raises(UserError, match="device=cpu is no GPU that torch can use"):
        tokensr.measure(device="cpu")
