"""Methods at equal tokens: what a record says a layer worked on, and the search for the setting that keeps a share."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from PIL import Image
from support.models import random_next

from blink_exp.benchmarks.base import ExactMatch, Sample
from blink_exp.core.views import ViewGeometry, all_tokens, pack
from blink_exp.errors import UserError
from blink_exp.evaluation import evaluator, tokens
from blink_exp.methods.blink import BlinkPolicy
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.sparsevlm import SparseVLMPolicy, counts, scaled_schedule
from blink_exp.settings import compose
from blink_exp.studies import matching, plan
from blink_exp.studies.experiments import load_experiment


def composed(label: str, *overrides: str):
    """A point of the matched table, as sweep.py composes it."""
    table = load_experiment("table", "hero_table4_matched")
    point = next(p for p in table["points"] if p["label"] == label)
    return compose.composed("sweep", [*plan.words(table, point, "mosaic_hr"), *overrides])


def test_layer_average_of_a_record_by_hand():
    untouched = {"visual_tokens": 100, "newline_tokens": 10, "layers": []}
    assert tokens.layer_average(untouched, None) == 100
    fastv = untouched | {"layers": [{"layer": 1, "decision": "retain", "visual_tokens": 20}]}
    assert tokens.layer_average(fastv, 10) == (2 * 110 + 8 * 20) / 10  # layers 0 and 1 see all, newlines among them
    assert tokens.layer_average(fastv, None) is None
    steps = [{"layer": 2, "decision": "expand", "visual_tokens": 200}, {"layer": 4, "decision": "drop", "visual_tokens": 100}]
    assert tokens.layer_average(untouched | {"layers": steps}, 10) == (2 * 100 + 2 * 200 + 6 * 100) / 10
    realised = tokens.realised([untouched, fastv], 10)
    assert realised == {"entering": 100, "newlines": 10, "layer": (100 + 38) / 2}
    assert tokens.realised([{"layers": []}], 10) == {}  # of an older version, which did not note them


class Halves(ExactMatch):
    name = "halves"

    def samples(self):
        sizes = ((40, 40), (40, 80), (90, 30))
        return [Sample(f"{s}/{q}", str(s), lambda s=s: Image.new("RGB", s), "q", "a", "c") for s in sizes for q in "ab"]


@pytest.fixture
def stub(monkeypatch):
    """A backbone that is all geometry: 32 layers, views of 36 tokens."""
    processor = SimpleNamespace(image_token="<image>")
    backbone = SimpleNamespace(depth=32, model=random_next(layers=1), processor=processor, check=lambda needs: None)
    monkeypatch.setattr(evaluator, "prepare", lambda cfg: (backbone, None, Halves()))
    return backbone


def test_matched_fastv_has_a_layer_average_of_a_fifth(stub, tmp_path):
    (word,) = matching.matched(composed("FastV", f"store={tmp_path}"), "method.retention_ratio")
    ratio = float(word.removeprefix("method.retention_ratio="))
    views = [ViewGeometry.of(stub.model.config, size) for size in ((40, 40), (80, 40), (30, 90))]
    sizes = [len(pack(v, all_tokens(v))) for v in views]
    worked_on = sum(2 * n + 30 * int(n * ratio) for n in sizes) / 32
    assert worked_on / sum(sizes) == pytest.approx(0.2, abs=1 / min(sizes))
    assert ratio == pytest.approx((0.2 * 32 - 2) / 30, abs=1 / min(sizes))  # far from 0.2, which would make 0.25
    (stored,) = (tmp_path / "matched").glob("*.json")
    stored.write_text(json.dumps({"value": 0.5, "share": 0.2}), encoding="utf-8")  # and it is searched once
    again = matching.matched(composed("FastV", f"store={tmp_path}"), "method.retention_ratio")
    assert again == ["method.retention_ratio=0.5"]
    more = composed("FastV", f"store={tmp_path}", "retention_ratio=0.4")
    assert matching.matched(more, "method.retention_ratio") != again


def test_matched_controls_keep_a_fifth_of_what_is_shown(stub, tmp_path):
    encoding = {}

    def encodings(images, needs):
        for key, image in images.items():
            encoding[key] = SimpleNamespace(views=ViewGeometry.of(stub.model.config, (image.height, image.width)))
        return {key: encoding[key] for key in images}

    stub.encodings = encodings
    (word,) = matching.matched(composed("random", f"store={tmp_path}"), "method.ratio")
    ratio = float(word.removeprefix("method.ratio="))
    assert len(encoding) == 3  # an image, not a question, each
    shown = [n for e in encoding.values() for n in e.views.valid.sum(1).tolist()]
    assert sum(int(n * ratio + 1e-9) for n in shown) / sum(shown) == pytest.approx(0.2, abs=0.02)


def test_a_question_is_matched_as_it_is_asked(stub, monkeypatch):
    """Without the image's placeholder; one that cannot be asked is left out, as an evaluation leaves it out."""

    class Placed(Halves):
        def prompt(self, sample):
            return {"0": "<image>\nq", "1": "q", "2": "<image> and <image>"}[sample.image_id]

        def samples(self):
            return [dataclasses.replace(s, image_id=str(k // 2)) for k, s in enumerate(super().samples())]

    questions = []

    def select(encoding, question):
        questions.append(question)
        return None

    pruner = SimpleNamespace(needs=None, newline_policy="none", select=select)
    method = SimpleNamespace(policy=None, pruner=pruner)
    stub.encodings = lambda images, needs: {
        key: SimpleNamespace(views=ViewGeometry.of(stub.model.config, (image.height, image.width))) for key, image in images.items()
    }
    monkeypatch.setattr(evaluator, "prepare", lambda cfg: (stub, None, Placed()))
    monkeypatch.setattr("hydra.utils.instantiate", lambda *_, **__: lambda backbone: method)
    cfg = composed("random")
    matching.share_by(cfg, "method.ratio")(0.5)
    assert questions == ["q", "q"]


def test_policy_tokens_by_hand():
    assert matching.policy_tokens(FastVPolicy(2, 0.5), 100, 32) == (2 * 100 + 30 * 50) / 32
    assert matching.policy_tokens(FastVPolicy(2, 1.0), 100, 32) == 100
    policy = SparseVLMPolicy(schedule=None, shares=scaled_schedule(0.3))
    a, b, c = counts(576, [int(s * 576 + 1e-9) for s in policy.shares])
    assert matching.policy_tokens(policy, 576, 32) == (3 * 576 + 4 * a + 9 * b + 16 * c) / 32  # layers 0 to 2 see all
    with pytest.raises(UserError, match="leave match away"):
        matching.policy_tokens(BlinkPolicy((0,)), 1, 1)


def test_search_finds_the_nearest_also_on_steps_and_backwards_and_says_what_is_out_of_reach():
    assert matching.search(lambda x: x / 2, 0.2, 0.0, 1.0)[0] == pytest.approx(0.4, abs=1e-4)
    assert matching.search(lambda x: 1 - x / 50, 0.2, 50.0, 0.0)[0] == pytest.approx(40, abs=1e-2)
    assert matching.search(lambda x: int(10 * x) / 10, 0.27, 0.0, 1.0)[1] == 0.3
    with pytest.raises(UserError, match=r"retention_ratio=0.9 cannot be met: k gives 0.000 to 0.500"):
        matching.search(lambda x: x / 2, 0.9, 0.0, 1.0, name="k")


@pytest.mark.slow
def test_every_method_of_the_matched_table_but_the_untouched_one_is_matched():
    points = load_experiment("table", "hero_table4_matched")["points"]
    assert [p["label"] for p in points if not p.get("match")] == ["none"]
    for point in points[1:]:
        group, key = point["match"].split(".")
        assert group == "method" and key in composed(point["label"]).method
