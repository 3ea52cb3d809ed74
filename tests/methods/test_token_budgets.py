"""Budgets in tokens: what every method keeps of one, schedules by hand, impossible ones, and words that set it twice."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from support.scripts import ROOT

from blink_exp.core.encoding import Encoding
from blink_exp.core.views import ViewGeometry
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.errors import UserError
from blink_exp.evaluation import identity
from blink_exp.evaluation.budget import budget_line, budget_of
from blink_exp.evaluation.evaluator import build_method
from blink_exp.evaluation.tokens import prompt_flops, realised
from blink_exp.methods import controls, dart, fastv, sparsevlm
from blink_exp.methods.budgets import layer_average, schedule_text, token_share, whole_tokens
from blink_exp.methods.sparsevlm import SCHEDULES, SparseVLMPolicy
from blink_exp.settings.budgets import check_budget, displaced
from blink_exp.settings.compose import composed
from blink_exp.settings.words import prepared
from blink_exp.studies import matching, plan
from blink_exp.studies.tables import with_spent

PRUNERS = ("hero", "fastervlm", "hired", "globalcom2", "random", "uniform", "downsample")


def backbone(side: int = 24, tiled: bool = False, depth: int = 32) -> SimpleNamespace:
    """A backbone that is all sizes: LLaVA-1.5's and LLaVA-NeXT's by default."""
    vision = SimpleNamespace(num_hidden_layers=24, image_size=14 * side, patch_size=14)
    config = SimpleNamespace(vision_config=vision, **({"image_grid_pinpoints": [[672, 672]]} if tiled else {}))
    return SimpleNamespace(model=SimpleNamespace(config=config), grid=(side, side), depth=depth, check=lambda needs: None)


# shares and schedules


@pytest.mark.parametrize(("side", "tiled"), [(24, False), (24, True), (12, False), (7, True)])
def test_a_share_rounded_down_is_the_budget_for_every_budget(side, tiled):
    """Also by ``int``, which the authors' codes use: 49 * (1 / 49) is below 1."""
    stub, views = backbone(side, tiled), 5 if tiled else 1
    most = side * side * views
    for tokens in range(views, most + 1, 1 if most < 1000 else 7):
        share = token_share(stub, 0.9, tokens)
        assert int(most * share) == tokens and int(side * side * share) == tokens // views, tokens


def test_a_share_of_the_tokens_is_the_nearest_whole_number():
    assert [whole_tokens(backbone(), share) for share in ("1/3", "2/9", "1/9")] == [192, 128, 64]
    assert [whole_tokens(backbone(tiled=True), share) for share in ("2/9", "1/9", "1/18")] == [640, 320, 160]
    assert [whole_tokens(backbone(side=12), share) for share in ("1/3", "1/7", "1/1000", "1/1")] == [48, 21, 1, 144]  # 20.57; at least one
    assert (whole_tokens(backbone(), 64), whole_tokens(backbone(), None)) == (64, None)


def test_budgets_of_the_literature():
    assert [round(2880 * token_share(backbone(tiled=True), 0.2, n)) for n in (640, 320, 160)] == [640, 320, 160]
    assert [int(576 * token_share(backbone(tiled=True), 0.2, n)) for n in (640, 320, 160)] == [128, 64, 32]
    assert token_share(backbone(), 0.2, None) == 0.2


@pytest.mark.parametrize(("tokens", "behind"), [(192, 166), (128, 98), (64, 30), (576, 576), (300, 282)])
def test_fastv_s_full_layers_count(tokens, behind):
    method = fastv.configure(backbone(), retention_ratio=0.9, tokens=tokens)
    by_layer = method.policy.layer_tokens(576, 32)
    assert by_layer == [576] * 2 + [behind] * 30
    assert layer_average(by_layer) == pytest.approx((576 * 2 + behind * 30) / 32) == pytest.approx(tokens, abs=0.5)


@pytest.mark.parametrize("tokens", [192, 128, 96, 64, 400, 570])
def test_sparsevlm_holds_the_budget_on_average_with_what_it_merges(tokens):
    method = sparsevlm.configure(backbone(), schedule=None, retention_ratio=0.9, tokens=tokens)
    assert layer_average(method.policy.layer_tokens(576, 32)) == pytest.approx(tokens, abs=1)
    named = SparseVLMPolicy(schedule=SCHEDULES[192]).layer_tokens(576, 32)
    assert layer_average(named) == 206.5  # the authors' list of that name holds more: its pruning layers see all that reaches them


def test_a_schedule_in_words():
    assert schedule_text([576, 576, 30, 30]) == "576 in layers 0-1, 30 in 2-3, on average 303.0"
    assert schedule_text([9, 4, 4]) == "9 in layer 0, 4 in 1-2, on average 5.7"
    assert schedule_text([9]) == "9 in layer 0, on average 9.0"


# methods


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_keeps_the_budget_exactly(name, scale):
    for tokens in (7, 64, 143):
        method = build_method(composed("evaluate", [f"method={name}", f"tokens={tokens}"]), scale)
        (encoding,) = scale.encodings({"a": _image()}, method.pruner.needs).values()
        count = sum(map(len, method.pruner.select(encoding, "what is it?").indices))
        rows, columns = controls.cells(12, 12, tokens)
        assert count == (rows * columns if name == "downsample" else tokens), tokens


def _image():
    from PIL import Image

    return Image.new("RGB", (96, 96), (200, 40, 90))


def test_views_of_llava_next_get_a_fifth_each_whatever_their_number():
    for rows, columns in ((2, 2), (1, 2), (3, 1)):
        views = ViewGeometry(4, rows, columns, (4 * rows, 4 * columns), newline=True)
        encoding = Encoding(views, torch.zeros(views.count, 16, 1))
        method = controls.random(backbone(4, tiled=True), ratio=0.9, tokens=20, seed=0)
        assert [len(index) for index in method.pruner.select(encoding, "q").indices] == [4] * views.count


def test_a_pair_holds_the_budget_over_both_halves():
    from blink_exp.methods.pair import configure

    def random_half(stub, tokens=None):
        return controls.random(stub, ratio=0.9, tokens=tokens, seed=0)

    def sparse(stub, **words):
        return sparsevlm.configure(stub, schedule=None, **words)

    for policy, within in ((fastv.configure, 1), (sparse, 1), (dart.configure, 4)):  # DART keeps eight tokens more or less at a time
        for tokens in (192, 128, 64, 500):
            halves = {"pruner": functools.partial(random_half, tokens=tokens), "policy": functools.partial(policy, tokens=tokens)}
            method = configure(backbone(), **halves, fill="neighbours", tokens=tokens)
            views = ViewGeometry(24)
            entering = sum(map(len, method.pruner.select(Encoding(views, torch.zeros(1, 576, 1)), "q").indices))
            assert entering == method.entering == pytest.approx((tokens * 576) ** 0.5, abs=1)
            assert layer_average(method.policy.layer_tokens(entering, 32)) == pytest.approx(tokens, abs=within)


def test_blink_in_a_pair_leaves_the_budget_to_the_pruner(scale):
    method = build_method(composed("evaluate", ["method=pair", "method/policy=blink_interp", "tokens=50"]), scale)
    assert method.entering == 50 and method.pruner.ratio == pytest.approx(50 / 144)
    named = build_method(composed("evaluate", ["method=blink_hero", "tokens=50"]), scale)
    assert named.pruner.ratio == method.pruner.ratio


def test_what_runs_is_what_the_schedule_says(scale):
    """Records of FastV, SparseVLM and a pair, at the same 48 tokens a layer."""
    from blink_exp.benchmarks.mosaic_mme import MosaicMME
    from blink_exp.evaluation.records import record

    samples = MosaicMME(1).samples()[:2]
    settings = [composed("evaluate", [f"method={name}", "tokens=48"]) for name in ("fastv", "sparsevlm", "pair")]
    methods = [build_method(s, scale) for s in settings]
    asked = [PointQuestion(s.image_id, s.question, s.id, (0, 1, 2)) for s in samples]
    answers = answer(scale, methods, {s.image_id: s.image() for s in samples}, asked, 4, 4)
    for p, (words, method) in enumerate(zip(settings, methods, strict=True)):
        budget = budget_of(words, scale, method)
        assert budget["average"] == pytest.approx(48, abs=0.6) and budget["tokens"] == 48 and budget["nominal"] == 144
        assert budget_line(method.name, budget).startswith(f"{method.name}, tokens=48: of 144 visual tokens ")
        for n, sample in enumerate(samples):
            row = record(MosaicMME(1), sample, "yes", answers[n, p].decisions) | {"visual_tokens": len(answers[n, p].visual.source)}
            row["newline_tokens"] = 0
            assert realised([row], scale.depth)["layer"] == pytest.approx(budget["average"])
            assert row["visual_tokens"] == budget["by_layer"][0]


# refusals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=hero", "tokens=145"], r"tokens=145 is outside 1 to 144, the visual tokens of the image; use a value inside"),
        (["method=hero", "budget=192"], r"tokens=192 is outside 1 to 144"),
        (["method=fastv", "tokens=9"], r"tokens=9 is less than fastv can reach: 2 full layers of 144 .* alone make 9.0 .*; use tokens=10"),
        (["method=sparsevlm", "tokens=5"], r"tokens=5 is less than sparsevlm can reach: .*; use tokens=\d+ or more"),
        (["method=sparsevlm", "tokens=50", "method.schedule=192"], r"tokens=50 and sparsevlm.schedule=192 both set the budget"),
        (["method=prumerge_plus", "tokens=50"], r"tokens=50 is no setting of prumerge_plus, .* method.iqr_factor"),
        (["method=hero", "tokens=50", "hero.tokens_per_view=30"], r"tokens=50 and hero.tokens_per_view=30 both set the budget"),
        (["method=pair", "method/pruner=prumerge_plus", "tokens=50"], r"^tokens=50 is no setting of prumerge_plus"),
        (["method=pair", "method.pruner.tokens=30", "tokens=50"], r"tokens=50 and method.pruner.tokens=30 both set the pair's budget"),
    ],
)
def test_an_impossible_budget_is_one_line(words, line, scale):
    with pytest.raises(UserError, match=line) as error:
        build_method(composed("evaluate", words), scale)
    assert "\n" not in str(error.value)


def test_llava_next_needs_a_token_of_every_view():
    with pytest.raises(UserError, match=r"tokens=4 is outside 5 to 2880, the visual tokens of 5 views of 576, at least one of each; use"):
        token_share(backbone(tiled=True), 0.2, 4)


@pytest.mark.parametrize(
    "words",
    [
        ["tokens=192", "retention_ratio=0.3"],
        ["budget=192", "retention_ratio=0.3"],
        ["budget='third'", "tokens=192"],
        ["budget=192", "tokens=128"],
        ["tokens=192,128", "retention_ratio=0.3"],
        ["tokens=192", "method.retention_ratio=0.3"],
        ["retention_ratio=0.3", "method.tokens=192"],
        ["tokens=192", "method.ratio=0.3"],
        ["tokens=192", "hero.tokens_per_view=30"],
        ["method.tokens=192", "method.retention_ratio=0.3"],
        ["tokens=192", "method.policy.retention_ratio=0.3"],
        ["retention_ratio=0.4", "budget=ninth"],
    ],
)
def test_two_budgets_are_one_line(words):
    with pytest.raises(UserError, match=r"both set the budget; give one of them"):
        check_budget(words)
    with pytest.raises(UserError, match=r"both set the budget; give one of them"):
        prepared(words, "evaluate")


@pytest.mark.parametrize(
    "words",
    [
        ["tokens=192"],
        ["retention_ratio=0.3", "tokens=null"],
        ["budget=default", "tokens=64"],
        ["retention_ratio=0.5", "method.pruner.retention_ratio=0.4"],
        ["method.pruner.tokens=100", "method.policy.retention_ratio=0.5"],
        ["tokens=30", "method.iqr_factor=2", "method.tokens=null", "method.retention_ratio=0.2"],  # a matched point's command
    ],
)
def test_one_budget_is_none_too_many(words):
    check_budget(words)


# presets, identity, tables, matching


@pytest.mark.slow
def test_presets_of_the_group_set_tokens():
    names = {path.stem for path in (ROOT / "conf" / "budget").glob("*.yaml")}
    shares = {"third": ("1/3", 192), "two_ninths": ("2/9", 128), "ninth": ("1/9", 64), "eighteenth": ("1/18", 32)}
    assert names == {"default", "192", "128", "64", "640", "320", "160", *shares}
    for name in names - {"default"}:
        settings = composed("evaluate", ["method=hero", f"budget={name}"])
        assert settings.tokens == settings.method["tokens"] == (int(name) if name.isdecimal() else shares[name][0])
        assert whole_tokens(backbone(), settings.tokens) == (int(name) if name.isdecimal() else shares[name][1])
    assert composed("evaluate", ["budget=default"]).retention_ratio == composed("evaluate", []).retention_ratio == 0.2


def test_a_sweep_over_presets_quotes_numbers():
    assert prepared(["-m", "budget=192,128,third"], "sweep") == ["-m", "budget='192','128',third"]
    assert prepared(["budget=192"], "evaluate") == ["budget='192'"]
    with pytest.raises(UserError, match=r"budget must be one preset, got null"):
        prepared(["budget=null"], "evaluate")


@pytest.mark.slow
def test_a_budget_in_tokens_is_one_point_whatever_the_ratio_beside_it():
    def point(*words):
        return identity.config_hash(composed("evaluate", ["method=hero", *words]), {})

    assert point("tokens=64") == point("budget=64") == point("tokens=64", "retention_ratio=0.4")
    assert len({point("tokens=64"), point("tokens=65"), point(), point("budget=third")}) == 4


def test_the_user_s_budget_goes_before_a_table_s():
    table = ["model=scale_llava_next", "retention_ratio=0.2", "benchmark=mosaic_hr"]
    assert displaced(table, ["tokens=64"]) == displaced(table, ["budget='third'"]) == [table[0], table[2]]
    assert displaced(table, ["limit=4"]) == table
    varied = {"name": "toy", "points": [{"label": "a", "overrides": ["method=hero", "retention_ratio=0.4"]}]}
    for word in ("tokens=64", "budget='64'", "retention_ratio=0.2"):
        with pytest.raises(UserError, match=f"{word} would replace retention_ratio of toy's point a"):
            plan.refuse_collisions(varied, [word])


def test_tables_show_what_is_spent_side_by_side():
    columns = {
        "accuracy": "scores.accuracy",
        "visual tokens a layer": {"value": "tokens.layer", "digits": 1},
        "newlines": "tokens.newlines",
    }
    shown = with_spent(columns)
    assert list(shown) == ["accuracy", "visual tokens in", "visual tokens a layer", "GFLOPs", "newlines"]
    assert shown["visual tokens a layer"]["digits"] == 1  # the table's own
    assert list(with_spent({"accuracy": "scores.accuracy"})) == ["accuracy", "visual tokens in", "visual tokens a layer", "GFLOPs"]


def test_flops_of_a_record_by_hand():
    llm = SimpleNamespace(num_hidden_layers=4, hidden_size=10, intermediate_size=20)
    plain = {"visual_tokens": 6, "newline_tokens": 1, "layers": []}

    def layer(n):
        return 8 * n * 100 + 4 * n * n * 10 + 6 * n * 200

    assert prompt_flops(plain, 3, llm) == 4 * layer(10)
    dropped = plain | {"layers": [{"layer": 1, "decision": "retain", "visual_tokens": 2}]}
    assert prompt_flops(dropped, 3, llm) == 2 * layer(10) + 2 * layer(5)
    assert realised([plain | {"prefill_flops": 2e9}, plain | {"prefill_flops": 4e9}], 4)["gflops"] == 3


def test_matching_takes_a_budget_in_tokens(monkeypatch, tmp_path):
    settings = composed("sweep", ["method=prumerge_plus", "tokens=36", f"store={tmp_path}"])
    seen = []

    def search(share_of, wanted, *_, budget, **__):
        seen.append((wanted, budget))
        return 2.5, wanted

    monkeypatch.setattr(matching, "search", search)
    monkeypatch.setattr(matching, "share_by", lambda *_: None)
    monkeypatch.setattr(matching.evaluator, "prepare", lambda s: (backbone(12), None, None))
    assert matching.matched(settings, "method.iqr_factor") == ["method.iqr_factor=2.5", "method.tokens=null"]
    assert seen == [(pytest.approx(0.25), "tokens=36")]
    pair = composed("sweep", ["method=pair", "tokens=36"])
    assert matching.token_settings(pair.method) == ["method.tokens", "method.pruner.tokens", "method.policy.tokens"]
    assert matching.with_value({"a": {"b": 1}, "c": 2}, "a.b", 3) == {"a": {"b": 3}, "c": 2}
