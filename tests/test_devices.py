"""Nothing is left on the CPU when the model is elsewhere, and methods decide there as here. No GPU is needed: see ``elsewhere``."""

from __future__ import annotations

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, There, move
from test_methods import method_of

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_hr import MosaicHR

SAMPLE = MosaicHR().samples()[0]
# One of each kind: what it reads, and whether it works before the LLM or in it.
CASES = [("scale", name) for name in ("none", "blink", "hero", "hired", "prumerge_plus", "sparsevlm", "random")]
CASES += [("scale_next", name) for name in ("blink_hero", "fastv", "globalcom2")]


def test_the_make_believe_device_tells_devices_apart():
    a, b = There(torch.ones(3)), torch.ones(3)
    with Elsewhere():
        assert (a + a).device == DEVICE and (a + a).tolist() == [2, 2, 2]
        assert torch.equal(a.cpu(), b) and b.to(DEVICE).device == DEVICE
        assert torch.arange(3, device=DEVICE).tolist() == torch.tensor([0, 1, 2], device=DEVICE).tolist() == [0, 1, 2]
        assert (a + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a scalar may come from the CPU
        assert a[torch.tensor([0, 1])].tolist() == a[[0, 1]].tolist() == [1, 1]  # and so may an index
        for wrong in (lambda: a + b, lambda: torch.cat([a, b]), lambda: b[torch.arange(2, device=DEVICE)]):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            a[torch.tensor([0, 1])] = torch.ones(2)


def answer(backbone, method):
    """(text, decisions) of one question."""
    image, question = SAMPLE.image(), SAMPLE.question
    with method.attach(backbone.model) as run:
        (visual,) = backbone.visual({"a": image}, [("a", question)], method.pruner, method.recall)
        if run is not None:
            run.images, run.samples = [[visual.shown]], ["a"]
        said = backbone.generate([visual.features], [question], 3)
        return said, visual.source.tolist(), [] if run is None else [r.decision for r in run.records], visual.features.device


@pytest.fixture(scope="module")
def here():
    """{(path, method): what it answers on the CPU}."""
    found = {}
    for path in ("scale", "scale_next"):
        backbone = load.__wrapped__(path, clip="scale")
        for where, name in CASES:
            if where == path:
                found[path, name] = answer(backbone, method_of(name, backbone))[:3]
    return found


@pytest.fixture(scope="module")
def there():
    """{path: the backbone on the other device}."""
    found = {}
    for path in ("scale", "scale_next"):
        found[path] = load.__wrapped__(path, clip="scale")
        move(found[path].model)
    return found


@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_method_works_where_the_model_is(path, name, here, there):
    backbone = there[path]
    with Elsewhere():
        method = method_of(name, backbone)
        if method.amplifiers is not None:
            move(method.amplifiers)
        *found, device = answer(backbone, method)
    assert device == DEVICE
    assert tuple(found) == here[path, name]


def test_training_features_are_made_where_the_model_is(there):
    backbone = there["scale"]
    with Elsewhere():
        states = backbone.visual_states(torch.stack([backbone.transform(SAMPLE.image())]), [0, 3])
    assert {layer: (x.device, tuple(x.shape)) for layer, x in states.items()} == dict.fromkeys((0, 3), (DEVICE, (1, 144, 64)))


def test_load_puts_the_model_where_it_is_told():
    assert load.__wrapped__("scale", device="meta").model.device.type == "meta"
    assert load.__wrapped__("scale").model.device.type == "cpu"
