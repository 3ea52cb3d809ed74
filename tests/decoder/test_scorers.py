"""A scorer of another package: added by the recipe of docs/extending.md, it works alone, shared with other points, and in the viewer."""

from __future__ import annotations

import re
import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from support.models import prompts, random_llava
from support.scripts import ROOT

from blink_exp import plugins
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.core import saliency
from blink_exp.core.saliency import Scorer, scorer
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError
from blink_exp.evaluation.answering import answers
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.viewer.trace import trace

LAYERS = (12, 14)


def recipe() -> str:
    """The Python of the recipe for a scorer."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = re.search(r"^## A scorer\n.*?```python[^\n]*\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert code
    return code[1]


@scorer(raw=True)
def raw_softmax(seen, columns):
    """Over all keys that the last token may see, the text's own among them."""
    logits = seen.raw_logits().masked_fill(~seen.visible[:, -1:], float("-inf"))
    return logits.softmax(-1).mean(1).gather(1, columns.expand(len(logits), -1))


@scorer()
def sharpened(seen, columns):
    logits = (2 * seen.logits(slice(None))[:, :, -1]).masked_fill(~seen.visible[:, -1:], float("-inf"))
    return logits.softmax(-1).amax(1).gather(1, columns.expand(len(logits), -1))


@pytest.fixture
def installed(monkeypatch) -> dict[str, Scorer]:
    """A package with a scorer of each kind, found by its entry points."""
    module = types.ModuleType("my_package")
    exec(recipe(), module.__dict__)
    module.raw_softmax, module.sharpened, module.broken = raw_softmax, sharpened, len
    monkeypatch.setitem(sys.modules, "my_package", module)
    names = ("mine", "raw_softmax", "sharpened", "broken", "gone")
    points = {name: EntryPoint(name, f"my_package:{name}", plugins.SCORERS) for name in names}
    stock = plugins.installed
    monkeypatch.setattr(plugins, "installed", lambda group: points if group == plugins.SCORERS else stock(group))
    monkeypatch.setattr(saliency.SCORERS, "functions", dict(saliency.SCORERS.functions))  # what is imported is forgotten afterwards
    return {"mine": module.mine, "raw_softmax": raw_softmax, "sharpened": sharpened}


def test_the_three_are_of_three_kinds(installed):
    assert {(s.queries, s.raw) for s in installed.values()} == {("text", False), ("last", True), ("last", False)}
    assert all(saliency.find_scorer(name) is s for name, s in installed.items())


@pytest.mark.slow
def test_alone_shared_and_in_the_viewer_they_see_the_same(installed, scale):
    benchmark = MosaicMME()
    samples = benchmark.samples()[:4]
    methods = [blink(BlinkPolicy(LAYERS, 0.3, 0.28, saliency=name, scan_expanded=expanded)) for name in installed for expanded in (0, 1)]
    images = {s.image_id: s.image() for s in samples}
    prompts_ = [benchmark.prompt(s) for s in samples]
    scale.forget()
    asked = [PointQuestion(s.image_id, prompt, s.id, tuple(range(len(methods)))) for s, prompt in zip(samples, prompts_, strict=True)]
    shared = answer(scale, methods, images, asked, benchmark.max_new_tokens, 32)
    ratios = set()
    for p, method in enumerate(methods):
        with attach(scale.model, method) as attached:
            attached.samples = [s.id for s in samples]
            texts, _ = answers(scale, method, attached, images, [(a.image, a.question) for a in asked], benchmark.max_new_tokens)
            records = attached.records
        for n, text in enumerate(texts):
            alone, row_records = shared[n, p].decisions, [r for r in records if r.row == n]
            assert shared[n, p].text == text
            assert [r.decision for r in alone] == [r.decision for r in row_records]
            assert [r.scan.rho for r in alone] == pytest.approx([r.scan.rho for r in row_records], abs=1e-4)
            ratios |= {round(r.scan.rho, 3) for r in row_records}
        followed = trace(scale, method, benchmark, samples[0], images[samples[0].image_id])
        assert [step["rho"] for step in followed.record["layers"]] == pytest.approx([r.scan.rho for r in shared[0, p].decisions], abs=1e-4)
    assert len(ratios) > 20


def test_a_scorer_is_shown_exactly_what_it_declares(monkeypatch):
    """Against the layer's own projections, of one prompt: all text queries, or the last; raw products with every key, the text's too."""
    model = random_llava(kv_heads=2)
    llm, seen = model.model.language_model, {}

    def look(name, **declared):
        def score(scan, columns):
            seen[name] = scan.logits(slice(None)), scan.raw_logits() if declared.get("raw") else None, scan.visible
            return torch.zeros(len(scan.visible), 36)

        return Scorer(score, **declared)

    batch = prompts(model, [[9, 10, 11, 12]])
    hidden = model(**batch, output_hidden_states=True).hidden_states[2]
    for name, declared in (("last", {}), ("text", {"queries": "text"}), ("raw", {"raw": True})):
        monkeypatch.setitem(saliency.SCORERS.functions, name, look(name, **declared))
        with attach(model, blink(BlinkPolicy((2,), 1.0, 0.0, saliency=name))), torch.no_grad():
            model(**batch)
    attention = llm.layers[2].self_attn
    query = attention.q_proj(hidden[:, -1:]).view(1, 1, 4, -1).transpose(1, 2)
    keys = attention.k_proj(hidden).view(1, hidden.shape[1], 2, -1).transpose(1, 2).repeat_interleave(2, dim=1)
    torch.testing.assert_close(seen["raw"][1], (query @ keys.mT)[:, :, 0], atol=1e-4, rtol=1e-4)
    assert [seen[name][0].shape[2] for name in ("last", "text", "raw")] == [1, 4, 1]
    torch.testing.assert_close(seen["text"][0][:, :, -1:], seen["last"][0])
    assert seen["text"][2].sum(-1).tolist() == [[39, 40, 41, 42]]


def test_what_is_wrong_with_a_foreign_scorer_is_one_line(installed, monkeypatch):
    for name, words in (
        ("broken", r"saliency=broken: what the installed package calls so is no scorer; put @blink_exp.core.saliency.scorer\(\) on it"),
        ("gone", r"gone of the installed package my_package:gone cannot be imported .*has no attribute 'gone'.*install it again"),
        ("mime", r"saliency=mime is not known; .*mine"),
    ):
        with pytest.raises(UserError, match=words):
            BlinkPolicy((1,), saliency=name)
    with pytest.raises(TypeError, match=r"declares it: @scorer\(raw=True\)"):
        model = random_llava()
        monkeypatch.setitem(saliency.SCORERS.functions, "undeclared", Scorer(lambda seen, columns: seen.raw_logits()))
        with attach(model, blink(BlinkPolicy((1,), saliency="undeclared"))):
            model(**prompts(model, [[9]]))
