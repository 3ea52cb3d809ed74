"""The scale models' recipe: any device, any number of workers and any number of restarts give the same weights."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.pretend import pretend
from torch.nn.attention import SDPBackend, sdpa_kernel

from blink_exp.scale_model import build_models, export, packing, train_clip, train_llava, train_next
from blink_exp.scale_model.recipe import Movable, PhaseRun, cosine_lr
from blink_exp.scenes.questions import SceneQuestion, vocabulary_corpus
from blink_exp.scenes.scenes import random_scene

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return build_models.build_tokenizer(vocabulary_corpus())


@pytest.fixture
def short(monkeypatch):
    """Shallow towers, and measurements of two scenes."""
    monkeypatch.setattr(build_models, "VISION_LAYERS", 3)
    monkeypatch.setattr(train_clip, "zero_shot", functools.partial(train_clip.zero_shot, limit=4))
    llava, next_ = train_llava.held_out, train_next.held_out
    monkeypatch.setattr(train_llava, "held_out", lambda model, tokenizer, n: llava(model, tokenizer, n, scenes=2))
    monkeypatch.setattr(train_next, "held_out", lambda model, processor, scenes, seen: next_(model, processor, 2, seen))


STAGES = [(1, 1e-3, 48, 3, (1.0, 0, 0, 0), 0.0), (1, 1e-3, 96, 2, (0, 1.0, 0, 0), 10.0)]
PHASES = [
    train_llava.Phase(5, 1, (0, 1.0, 0, 0), 1e-3, batch=2, asked=3, two_views=1.0, captions=True, look=0.3),
    train_llava.Phase(10, 1, (1.0, 0, 0, 0), 1e-3, batch=2, asked=3, expanded=1.0, interpolated=0.0, blurred=0.5),
]
NEXT_PHASES = [train_next.Phase(5, 1, 1e-3, 2, 3, dropped=1.0, look=0.2), train_next.Phase(10, 1, 1e-3, 2, 3, dropped=0.0)]


def train(tokenizer, work, device) -> dict[str, torch.Tensor]:
    """Everything that build trains, by name, on the CPU; what it writes lies in ``work``/assets."""
    clip = train_clip.train_clip(tokenizer, work, 0, STAGES, device)
    early = train_llava.train_llava(clip, tokenizer, work, 0, PHASES[:1])
    llava = train_llava.train_llava(clip, tokenizer, work, 0, PHASES)
    next_ = train_next.train_next(early, tokenizer, work, 0, NEXT_PHASES)
    named = {"clip": clip, "early": early, "llava": llava, "next": next_}
    weights = {f"{name} {k}": v.detach().cpu().clone() for name, model in named.items() for k, v in model.state_dict().items()}
    export.export(llava, clip, tokenizer, work / "assets")
    export.export_next(next_, tokenizer, work / "assets")
    assert (llava.device, next_.device) == (CPU, CPU)
    return weights


def all_of(run) -> list[torch.Tensor]:
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_another_device_trains_and_exports_the_cpu_s_weights(short, tokenizer, tmp_path, monkeypatch):
    """A tensor made on the CPU beside a model on a device fails here as it would there; see ``pretend``."""
    trained, update = [], PhaseRun.update
    monkeypatch.setattr(PhaseRun, "update", lambda run, *a: (trained.append({p.device for p in all_of(run)}), update(run, *a)))
    with sdpa_kernel(SDPBackend.MATH):  # the kernel that a device without its own falls back to
        here = train(tokenizer, tmp_path / "cpu", CPU)
        with pretend() as away:
            there = train(tokenizer, tmp_path / "away", away)
            resumed = train_clip.train_clip(tokenizer, tmp_path / "cpu", 0, STAGES, away)  # nothing left to do but load
            assert {p.device for p in resumed.parameters()} == {away}
            resumed = resumed.to("cpu").state_dict()
    steps = len(STAGES) + len(PHASES) + len(NEXT_PHASES)
    assert trained == steps * [{CPU}] + steps * [{away}]
    assert same(here, there)
    assert same({f"clip {k}": v for k, v in resumed.items()}, {k: v for k, v in here.items() if k.startswith("clip ")})
    for file in ("llava/model", "clip/text_and_projections", "llava_next/model"):
        written = [load_file(tmp_path / name / "assets" / f"{file}.safetensors") for name in ("cpu", "away")]
        assert same(*written)
        assert {v.dtype for v in written[1].values()} == {torch.float16}


def test_the_pretended_device_refuses_what_a_real_one_does():
    with pretend() as away:
        x = torch.ones(2, 3).to(away)
        assert (2 * x + torch.tensor(1.0)).sum().item() == 18  # a number may come from the CPU
        assert torch.arange(3, device=away).tolist() == [0, 1, 2]
        for wrong in (lambda: x @ torch.ones(3, 1), lambda: x + torch.arange(3), lambda: torch.cat([x, torch.ones(2, 3)])):
            with pytest.raises(RuntimeError, match="on the CPU"):
                wrong()


def test_workers_draw_the_batches_that_each_step_has_by_itself(tokenizer, tmp_path):
    phase = train_next.Phase(5, 3, 1e-3, batch=2, asked=3, dropped=0.5, look=0.2)
    processor = build_models.build_next_processor(tokenizer)
    make = functools.partial(train_next.example_of, phase=phase, processor=processor)
    run = PhaseRun("", tmp_path / "none.pt", Tiny(1), steps=3, lr=1.0)
    before = torch.get_rng_state()
    drawn = list(run.batches(make, (5, 20), workers=2))
    assert torch.equal(torch.get_rng_state(), before)  # it goes on to initialise weights
    assert [step for step, _ in drawn] == [0, 1, 2]
    for step, batch in drawn:
        alone = make(np.random.default_rng((5, 20, step)))
        assert batch.views == alone.views
        for name in ("pixels", "seen", "at", "wanted"):
            a, b = getattr(batch, name), getattr(alone, name)
            assert (a is None and b is None) or torch.equal(a, b), name
        assert all(torch.equal(v, vars(alone.packed)[k]) for k, v in vars(batch.packed).items())


class Tiny(torch.nn.Linear):
    device = CPU

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        super().__init__(3, 1)


class Drawn(Movable):
    def __init__(self, rng):
        self.x = torch.from_numpy(rng.random((4, 3))).float()

    def to(self, device):
        return self


def tiny_run(path, seed: int, steps: int = 6) -> PhaseRun:
    return PhaseRun("tiny", path, Tiny(seed), steps, lr=0.1, extra=(torch.nn.Parameter(torch.full((1,), float(seed))),))


def tiny_steps(run: PhaseRun, stop: int | None = None) -> list[int]:
    done = []
    (extra,) = run.checkpoint.extra
    for step, batch in run.batches(Drawn, (1, 2)):
        run.update(step, ((run.model(batch.x) + extra - 1) ** 2).mean())
        done.append(step)
        run.keep(step, 2)
        if step == stop:
            break
    return done


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    """Model, extra parameters, moments of the optimizer, learning rate and batches all go on where the last checkpoint has them."""
    whole = tiny_run(tmp_path / "whole.pt", 0)
    assert tiny_steps(whole) == [0, 1, 2, 3, 4, 5]
    assert tiny_steps(tiny_run(tmp_path / "cut.pt", 0), stop=3) == [0, 1, 2, 3]
    cut = tiny_run(tmp_path / "cut.pt", 9)
    assert tiny_steps(cut) == [3, 4, 5]
    assert same(whole.model.state_dict(), cut.model.state_dict())
    assert torch.equal(whole.checkpoint.extra[0], cut.checkpoint.extra[0])
    assert tiny_steps(tiny_run(tmp_path / "cut.pt", 9)) == []


def test_checkpoints_are_kept_behind_every_so_many_steps_and_the_last(tmp_path):
    run = tiny_run(tmp_path / "x.pt", 0, steps=6)
    steps = [step for step in range(6) if run.keep(step, 2)]
    assert steps == [2, 4, 5]
    assert torch.load(tmp_path / "x.pt", weights_only=True)["step"] == 6


def test_the_learning_rate_rises_over_warm_up_and_falls_to_its_floor():
    assert cosine_lr(0, 1000, 2.0) == pytest.approx(0.02)  # 100 steps of warm-up
    assert cosine_lr(99, 1000, 2.0) == pytest.approx(2.0)
    assert cosine_lr(550, 1000, 2.0, floor=0.2) == pytest.approx(1.2)  # half way: the mean of 2 and 0.4
    assert cosine_lr(1000, 1000, 2.0, floor=0.2) == pytest.approx(0.4)
    assert cosine_lr(0, 5, 2.0) == pytest.approx(2.0)  # too short to warm up


def test_an_update_sets_the_rate_limits_the_gradient_and_forgets_the_last_one(tmp_path):
    extra = torch.nn.Parameter(torch.ones(1))
    run = PhaseRun("", tmp_path / "x.pt", Tiny(0), steps=1000, lr=0.1, floor=0.5, extra=(extra,))
    for step, rate in ((49, 0.05), (550, 0.075)):  # half of warm-up; half way from 0.1 to 0.05
        run.update(step, 30 * run.model.weight.sum() + 7 * extra.sum())
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert run.model.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)  # of 30 * sqrt(3)
        assert extra.grad.item() == 7  # no limit, and not 14


def test_a_line_tells_the_running_loss_and_the_look_apart(tmp_path, capsys):
    run = tiny_run(tmp_path / "x.pt", 0, steps=52)
    for step in range(52):
        loss = run.model.weight.sum() * 0 + (1.0 if step == 0 else 3.0)
        run.learn(step, loss, None if step < 50 else loss * 0 + 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s$", "s", line) for line in lines] == [
        "tiny step 0 loss 1.000 s",
        f"tiny step 25 loss {3 - 2 * 0.95**25:.3f} s",
        f"tiny step 50 loss {3 - 2 * 0.95**50:.3f} look 0.50 s",
        f"tiny step 51 loss {3 - 2 * 0.95**51:.3f} look 0.50 s",
    ]


def test_an_answer_is_right_if_the_model_would_say_all_of_its_tokens(tokenizer, monkeypatch):
    """Three questions on two scenes. The model says everything right but one answer's </s>, and nonsense wherever no answer stands."""
    asked = [
        [SceneQuestion("color", "what color is the circle?", "red"), SceneQuestion("count", "how many circles are there?", "2")],
        [SceneQuestion("color", "what color is the triangle?", "blue")],
    ]

    def says(model, tokenizer, visual, packed):
        tokens = packed.labels.clone()
        tokens[tokens < 0] = 7
        last = ((packed.owner[1] == 0) & (packed.labels[1] >= 0)).nonzero()[-1]
        tokens[1, last] = 7
        return torch.nn.functional.one_hot(tokens, len(tokenizer)).float(), []

    monkeypatch.setattr(packing, "hidden_of", says)
    model = torch.nn.Module()
    model.lm_head = torch.nn.Identity()
    accuracy = packing.exact_match(model, tokenizer, [(asked, [torch.zeros(2, 4, 8)])])
    assert accuracy == {"all": pytest.approx(2 / 3), "color": 0.5, "count": 1.0}
    assert list(accuracy) == ["all", "color", "count"]


def test_one_scale_shows_no_larger_scene_and_a_segment_is_mostly_no_help(tokenizer, monkeypatch):
    """Single view as often as a segment, images blurred alike with both, and three of four close-ups of a quadrant not asked about."""
    phase = replace(train_llava.ONE_SCALE[-1], batch=4, asked=2)
    assert all(p.weights[2:] == (0, 0) for p in train_llava.ONE_SCALE)
    drawn: list[int] = []
    blur = train_llava.blurred
    monkeypatch.setattr(train_llava, "random_scene", lambda rng, split, n: drawn.append(n) or random_scene(rng, split, n))
    count = {True: [0, 0], False: [0, 0]}  # by whether there is a segment: images, blurred ones
    blurred = []
    monkeypatch.setattr(train_llava, "blurred", lambda rng, image: blurred.append(1) or blur(rng, image))
    kinds, quadrants = [], []
    for step in range(150):
        blurred.clear()
        batch = train_llava.batch_of(np.random.default_rng((0, step)), phase, tokenizer)
        expanded = batch.regions is not None
        kinds.append((expanded, batch.pixels.shape[1]))
        quadrants += batch.regions.tolist() if expanded else []
        count[expanded] = [count[expanded][0] + 4, count[expanded][1] + len(blurred)]
    assert set(drawn) == {1, 2}
    assert set(kinds) == {(False, 1), (True, 1), (True, 2)}
    assert 0.4 < np.mean([expanded for expanded, _ in kinds]) < 0.6
    assert 0.5 < np.mean([views == 2 for expanded, views in kinds if expanded]) < 0.8  # close-ups; the others are interpolated
    assert np.bincount(quadrants, minlength=4).min() > 0.15 * len(quadrants)
    assert all(0.25 < many / images < 0.45 for images, many in count.values())


def test_token_ids_are_those_of_the_tokenizer_that_is_asked():
    """Catches a memory of ids that is keyed by the text alone."""

    class Tokenizer:
        def __init__(self, first: int):
            self.first = first

        def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[self.first + k for k in range(len(text))])

    one, other = Tokenizer(1), Tokenizer(5)
    assert [packing.ids_of(tokenizer, "ab") for tokenizer in (one, other, one)] == [[1, 2], [5, 6], [1, 2]]
