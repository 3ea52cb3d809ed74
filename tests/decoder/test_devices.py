"""Nothing is left on the CPU when the model is elsewhere, and methods decide there as here. No GPU is needed: see ``pretend``."""

from __future__ import annotations

import pytest
import torch
from support.methods import method_of
from support.pretend import pretend

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.decoder.attach import attach
from blink_exp.decoder.visual_states import image_states
from blink_exp.errors import UserError

SAMPLE = MosaicHR().samples()[0]
# One of each kind: what it reads, and whether it works before the LLM or in it.
CASES = [
    ("scale", name) for name in ("none", "blink", "hero", "hired", "prumerge_plus", "visionzip", "sparsevlm", "dart", "random", "vispruner")
]
CASES += [("scale_next", name) for name in ("blink_hero", "fastv", "pyramiddrop", "globalcom2", "visionzip", "divprune", "cdpruner")]


def test_the_make_believe_device_tells_devices_apart():
    b = torch.ones(3)
    with pretend() as away:
        a = b.to(away)
        assert (a + a).device == away and (a + a).tolist() == [2, 2, 2]
        assert torch.equal(a.cpu(), b) and b.device.type == "cpu"
        made = [make([0, 1, 2], device=away) for make in (torch.tensor, torch.as_tensor)]
        assert [x.tolist() for x in (torch.arange(3, device=away), *made)] == [[0, 1, 2]] * 3
        assert (a + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a scalar may come from the CPU
        assert a[torch.tensor([0, 1])].tolist() == a[[0, 1]].tolist() == [1, 1]  # and so may an index
        assert (a[0].item(), int(a[1]), bool(a[2] > 1), b[: made[0][2]].tolist()) == (1, 1, False, [1, 1])  # numbers leave it
        with pytest.raises(AssertionError, match="no numbers"):
            a + a.new_tensor([1.0])  # torch made it, and forgot the 1
        for wrong in (lambda: a + b, lambda: torch.cat([a, b]), lambda: b[torch.arange(2, device=away)]):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            a[torch.tensor([0, 1])] = torch.ones(2)
        a[[0, 2]] = torch.tensor(5.0)
        assert a.tolist() == [5, 1, 5]


def answer(backbone, method):
    """(text, decisions) of one question."""
    image, question = SAMPLE.image(), SAMPLE.question
    with attach(backbone.model, method) as run:
        (visual,) = backbone.visual({"a": image}, [("a", question)], method.pruner, method.restore_dropped)
        if run is not None:
            run.images, run.samples = [[visual.base_map]], ["a"]
        texts = backbone.generate([visual.features], [question], 3)
        return texts, visual.source.tolist(), [] if run is None else [r.decision for r in run.records], visual.features.device


@pytest.fixture(scope="module")
def here():
    """{(path, method): what it answers on the CPU}."""
    answers = {}
    for path in ("scale", "scale_next"):
        backbone = load.__wrapped__(path, clip="scale")
        for where, name in CASES:
            if where == path:
                answers[path, name] = answer(backbone, method_of(name, backbone))[:3]
    return answers


@pytest.fixture(scope="module")
def there():
    """{path: the backbone on the other device}."""
    backbones = {}
    for path in ("scale", "scale_next"):
        backbones[path] = load.__wrapped__(path, clip="scale")
        with pretend() as away:
            backbones[path].model.to(away)
    return backbones


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_method_works_where_the_model_is(path, name, here, there):
    backbone = there[path]
    with pretend() as away:
        method = method_of(name, backbone)
        *outcome, device = answer(backbone, method)
    assert device == away
    assert tuple(outcome) == here[path, name]


def test_training_features_are_made_where_the_model_is(there):
    backbone = there["scale"]
    with pretend() as away:
        states = image_states(backbone, torch.stack([backbone.transform(SAMPLE.image())]), [0, 3])
    assert {layer: (x.device, tuple(x.shape)) for layer, x in states.items()} == dict.fromkeys((0, 3), (away, (1, 144, 64)))


def test_load_puts_the_model_where_it_is_told():
    with pytest.raises(UserError, match="model.device=meta"):  # a model without weights answers nothing
        load.__wrapped__("scale", device="meta")
    assert load.__wrapped__("scale").model.device.type == "cpu"
