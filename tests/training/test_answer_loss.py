"""A TokenSR trained on answers: its loss is inference's cross-entropy, its gradient is whole and goes to the modules alone, and train.py
trains by it on scenes and on LLaVA's conversations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from support.instruction_data import picture
from support.refusals import refusal
from support.training_runs import train
from torch.nn import functional as F

from blink_exp.backbone.cache_name import CACHE
from blink_exp.backbone.load import load
from blink_exp.backbone.pictures import prepare_image
from blink_exp.decoder.attach import attach
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.tokensr import checkpoint
from blink_exp.tracking.names import answer_metrics
from blink_exp.training import dialogues as dialogues_module
from blink_exp.training.answer_module import NONE, TOKENSR, AnswerTraining, answer_row
from blink_exp.training.dialogues import Conversations, Dialogue, SceneDialogues, turns_of
from blink_exp.training.quality import INTERPOLATION

SMALL = ("loss=answer", "data.train_size=2", "data.held_out_size=1", "data.questions=2")


@pytest.fixture(scope="module")
def scale():
    return load("scale")


def dialogues(backbone, scenes: int = 2, each: int = 2) -> list[Dialogue]:
    source = SceneDialogues(scenes, each, seed=0, sizes=(5,), small=True)
    return [d._replace(image=prepare_image(d.image, backbone.processor.image_processor)) for d in map(source, range(scenes))]


def training(backbone, layers: tuple[int, ...] = (12,), architecture: str = "conv", **policy) -> AnswerTraining:
    torch.manual_seed(0)
    return AnswerTraining(backbone, BlinkPolicy(layers, **{"tau_expand": 0.25, **policy}), architecture=architecture)


def by_inference(backbone, module: AnswerTraining, batch: list[Dialogue]) -> list[float]:
    """The cross-entropies by Hugging Face's forward under the attached method: the prompt, then the answer over its cache."""
    out = []
    with attach(backbone.model, module.methods[TOKENSR]) as run, torch.no_grad():
        for dialogue in batch:
            (features,) = backbone.features({dialogue.key: dialogue.image}).values()
            for n, turns in enumerate(dialogue.asked):
                prompt = backbone.batch([features], [turns[-1][0]])
                run.samples = [f"{dialogue.key}/{n}"]
                done = backbone.model(**prompt, pixel_values=dialogue.image.views, use_cache=True)
                ids = backbone.around_answered(turns)[2]
                behind = backbone.model(input_ids=ids[None, :-1], use_cache=True, **{CACHE: done[CACHE]})
                logits = torch.cat([done.logits[0, -1:], behind.logits[0]])
                out.append(F.cross_entropy(logits.float(), ids).item())
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "policy"),
    [((12,), {}), ((12, 13, 16), {"tau_expand": 0.5, "tau_drop": 0.45}), ((12, 14), {"on_reexpand": "append", "tau_expand": 0.4})],
)
def test_the_loss_is_the_cross_entropy_of_inference(scale, layers, policy):
    """Answers of two and more tokens in one batch. Catches another region, place in the sequence or position, answers that are scanned
    instead of prompts, and padding that is seen."""
    module = training(scale, layers, **policy)
    batch = dialogues(scale)
    batch[0] = batch[0]._replace(asked=[*batch[0].asked, (("describe the image.", "a red circle, a blue triangle"),)])
    with torch.no_grad():
        assert module.answer_loss(batch).item() == pytest.approx(sum(wanted := by_inference(scale, module, batch)) / len(wanted), rel=1e-4)


def test_the_prompt_is_that_of_an_evaluation_and_earlier_turns_stand_in_front(scale):
    (before, text, answer), (ahead, behind) = scale.around_answered([("what color?", "red")]), scale.around(["what color?"])[0]
    assert torch.equal(before, ahead) and torch.equal(text, behind)
    assert answer[-1].item() in scale.ends and scale.processor.tokenizer.decode(answer[:-1]).strip() == "red"
    _, text, answer = scale.around_answered([("is there a circle?", "yes"), ("what color?", "red")])
    shown = scale.processor.tokenizer.decode(text)
    assert "is there a circle?" in shown and "ASSISTANT: yes" in shown and shown.endswith("what color? ASSISTANT:")
    assert torch.equal(answer, scale.around_answered([("what color?", "red")])[2])


def test_only_the_modules_have_gradients_and_a_step_lowers_the_loss(scale):
    module = training(scale, (12, 14))
    optimizer = torch.optim.SGD(module.amplifiers.parameters(), lr=0.05)
    batch = {"answers": dialogues(scale)}
    before = module.training_step(batch, 0)
    before.backward()
    assert all(p.grad is None and not p.requires_grad for p in scale.model.parameters())
    for p in module.amplifiers.parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
    optimizer.step()
    assert module.training_step(batch, 0) < before


def test_the_gradient_is_the_slope_of_the_loss(scale):
    """Along the gradient itself. Catches paths without a gradient: attention merged by log-sum-exps, rows that are views of one storage,
    regions and forks that cut the graph."""
    module, batch = training(scale, (12, 13)), dialogues(scale)
    module.answer_loss(batch).backward()
    weights = list(module.amplifiers.parameters())
    direction = [p.grad.clone() for p in weights if p.grad is not None]
    slope = sum(d.square().sum().item() for d in direction)
    step, ends = 0.001 / slope, []  # the loss changes by about 0.001 each way
    with torch.no_grad():
        for way in (step, -2 * step):
            for p, d in zip(weights, direction, strict=True):
                p += way * d
            ends.append(module.answer_loss(batch).item())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.01)


def test_a_layer_that_expands_nowhere_has_a_gradient_of_zero(scale):
    module = training(scale, (12,), tau_expand=1.0)
    loss = module.training_step({"answers": dialogues(scale, 1)}, 0)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and not p.grad.any() for p in module.amplifiers.parameters())


def test_a_row_of_answers_by_hand():
    row = answer_row({NONE: [4, 8, 1, 0], INTERPOLATION: [4, 4, 2, 4], TOKENSR: [4, 3, 3, 2]})
    assert (row["none"], row["interpolation"], row["tokensr"], row["gain"]) == (2, 1, 0.75, 0.25)
    assert (row["accuracy_none"], row["accuracy_interpolation"], row["accuracy_tokensr"]) == (0.25, 0.5, 0.75)
    assert (row["expanded"], row["questions"]) == (0.5, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("loss.weights.mse=0.1", "tokensr=residual_conv", "data.sizes=[5]", "data.small=true"),
        ("model=scale_llava_next",),  # its tiles are in the prompt, its thumbnail is expanded
        ("trainer.precision=bf16-mixed", "model.dtype=bfloat16"),
    ],
)
def test_train_py_trains_on_answers_about_scenes(tmp_path, capsys, more):
    train(tmp_path, *SMALL, *more)
    out = capsys.readouterr().out
    assert "held out: answers to 2 questions, 100 % with an expansion" in " ".join(out.split())
    row = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["layers"]["1"]
    assert {f"accuracy_{way}" for way in ("none", "interpolation", "tokensr")} <= row.keys() and "cosine_tokensr" in row
    assert row["questions"] == 2 and row["tokensr"] > 0
    with open(tmp_path / "log" / "metrics.csv", encoding="utf-8") as file:
        logged = [{k: float(v) for k, v in line.items() if v and k in answer_metrics(row)} for line in csv.DictReader(file)]
    assert next(filter(None, logged)) == pytest.approx(answer_metrics(row))
    assert (tmp_path / "tokensr" / "layer_01.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=folder", "data.path=."), "data=folder has no questions to train answers on; use data=scenes or data=llava_665k"),
        (("data.cache_features=true",), "data.cache_features=true keeps no features of text"),
        (("checkpoint_activations=true",), "checkpoint_activations=true has no effect"),
        (("resolution=copy",), "resolution.policy=copy inserts tokens without TokenSR"),
        (("loss.weights.answer=0",), "gives every loss the weight 0"),
    ],
)
def test_what_cannot_train_on_answers_is_one_line(tmp_path, words, message):
    assert message in refusal(lambda: train(tmp_path, *SMALL, *words))


# ---- where the questions come from


def test_scenes_held_out_are_other_scenes_of_train_images(monkeypatch):
    splits, real = [], dialogues_module.random_scene

    def noted(rng, split, *args, **words):
        splits.append(split)
        return real(rng, split, *args, **words)

    monkeypatch.setattr(dialogues_module, "random_scene", noted)
    sources = [SceneDialogues(40, 3, 0, held_out) for held_out in (False, True)]
    items = [[source(i) for i in range(5)] for source in sources]
    assert set(splits) == {"train"}
    assert not {d.image.tobytes() for d in items[0]} & {d.image.tobytes() for d in items[1]}
    assert all(len(d.asked) == 3 for d in items[0]) and sources[0](2).asked == items[0][2].asked


HUMAN, GPT = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}


@pytest.mark.parametrize(
    "conversation",
    [None, [], "x", [HUMAN], [GPT, HUMAN], [HUMAN, {"from": "gpt"}], [HUMAN, 3], [{"from": "human", "value": "<image>"}, GPT]],
)
def test_a_conversation_that_cannot_be_used_is_a_value_error(conversation):
    with pytest.raises(ValueError, match="conversation"):
        turns_of(conversation)


def test_turns_behind_one_that_cannot_be_used_are_left_away():
    more = [{"from": "human", "value": "And now?"}, {"from": "gpt", "value": " "}, HUMAN, GPT]
    assert turns_of([HUMAN, GPT, *more]) == (("What is it?", "A cat."),)
    assert turns_of([HUMAN, GPT, {"from": "human", "value": "And now?"}, GPT]) == (("What is it?", "A cat."), ("And now?", "A cat."))


def test_conversations_are_found_by_image_also_under_another_suffix_and_bad_rows_are_named():
    rows = [
        {"id": "a", "image": "f\\1.jpg", "conversations": [HUMAN, GPT]},
        {"id": "b", "image": "f/1.jpg", "conversations": [HUMAN, GPT, HUMAN, GPT]},
        {"id": "c", "image": "g/2.jpg", "conversations": [HUMAN, GPT]},
        {"id": "d", "image": "g/3.jpg", "conversations": [GPT]},
        {"id": "t", "conversations": [HUMAN, GPT]},
        {"id": "e", "image": "gone.jpg", "conversations": [HUMAN, GPT]},
    ]
    conversations = Conversations(rows, ["f/1.jpg", "g/2.png", "g/3.jpg"])
    assert [len(turns) for turns in conversations.of("f/1.jpg")] == [1, 2] and conversations.of("g/2.png") == [(("What is it?", "A cat."),)]
    assert conversations.of("g/3.jpg") == conversations.of("gone.jpg") == []
    assert [row for row, _ in conversations.skipped] == ["d"]


@pytest.mark.slow
def test_train_py_trains_on_answers_of_the_instruction_data(tmp_path, capsys):
    rows: list[dict] = []
    for i in range(12):
        picture(tmp_path / "images" / "coco" / f"{i}.jpg", i)
        turns = [HUMAN, GPT, {"from": "human", "value": "what color?"}, {"from": "gpt", "value": "red"}]
        rows.append({"id": i, "image": f"coco/{i}.jpg", "conversations": turns if i != 3 else [GPT]})
    (tmp_path / "data.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ("data=llava_665k", f"data.json={tmp_path / 'data.json'}", f"data.images={tmp_path / 'images'}", "data.held_out_share=0.3")
    train(tmp_path / "run", *SMALL, *words, "data.held_out_size=2", "data.workers=0", "data.global_batch=2")
    assert "1 rows with an image are left out, first 3: " in capsys.readouterr().out
    finished = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert finished["layers"]["1"]["questions"] == 4 and finished["images"]["images_with_conversation"] == 11
    assert finished["images"]["conversations_left_out"] == 1


def test_modules_trained_on_answers_are_evaluated_like_any(tmp_path, scale):
    train(tmp_path, *SMALL)
    module = checkpoint.load(Path(tmp_path) / "tokensr", 1, scale.identity, scale.width)
    assert blink(BlinkPolicy((1,)), torch.nn.ModuleDict({"1": module})).amplifiers is not None
