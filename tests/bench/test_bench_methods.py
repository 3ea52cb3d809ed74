"""What the benchmarks of methods compare is what they say they compare: equal answers, equal counts, ratios of what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import prompts, random_llava

from bench import methods, reading, shapes, throughput, usual, ways
from bench.meters import HostReads, arithmetic, layer_flops
from blink_exp.core.encoding import EncoderRequirements
from blink_exp.core.views import all_tokens
from blink_exp.decoder import scan
from blink_exp.decoder.attach import attach
from blink_exp.decoder.token_scans import pairwise_distances
from blink_exp.methods.blink import BlinkPolicy, blink
from blink_exp.methods.sparsevlm import SparseVLMPolicy

TINY = shapes.TINY


@pytest.fixture(scope="module")
def ground():
    return ways.Ground.of(TINY)


def test_the_named_shapes_are_those_of_the_issue_and_of_the_papers():
    views = shapes.square(shapes.MEDIUM)
    assert len(shapes.pack(views, all_tokens(views))) == 2928 == len(shapes.pack(shapes.square(shapes.LLAVA_NEXT_7B), all_tokens(views)))
    assert (shapes.MEDIUM.width, shapes.MEDIUM.layers) == (1024, 12)
    for shape, heads, size in ((shapes.LLAVA_NEXT_7B, 32, 7.06e9), (shapes.LLAVA_NEXT_13B, 40, 13.35e9)):
        with torch.device("meta"):
            model = shapes.LlavaNextForConditionalGeneration(shape.config())
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.01)
        assert shape.width // heads == 128


def test_all_features_packed_are_those_of_the_stock_model(ground):
    size = 2 * TINY.image_size
    stock = ground.model.get_image_features(pixel_values=ground.pixels[None], image_sizes=torch.tensor([[size, size]]))
    torch.testing.assert_close(ground.whole().features, stock.pooler_output[0])
    torch.testing.assert_close(ground.whole(real=True).features, stock.pooler_output[0])


def test_a_replayed_tower_shows_a_pruner_what_the_tower_shows_it(ground):
    needs = replace(ground.hero(0.2).needs, keys=frozenset({7}))
    real, again = ground.encoding(needs, real=True), ground.encoding(needs)
    assert set(again.logits) == {6, 7, 8, 9, 10, 22}
    for layer in again.logits:
        torch.testing.assert_close(again.logits[layer], real.logits[layer])
    torch.testing.assert_close(again.keys[7], real.keys[7])
    torch.testing.assert_close(again.pooled, real.pooled)


def test_a_prompt_is_cut_at_its_visual_tokens(ground):
    whole = ground.whole()
    cut = whole.cut(whole.tokens - 10)
    text = cut.ids[cut.ids != ground.model.config.image_token_id]
    assert cut.tokens == whole.tokens - 10 and len(cut.features) == len(whole.features) - 10
    assert torch.equal(text, whole.ids[whole.ids != ground.model.config.image_token_id]) and len(text) == 61
    assert int((cut.ids == ground.model.config.image_token_id).sum()) == len(cut.features)
    shapes.prefill(ground.model, cut)  # as many placeholders as features, or the model refuses


def test_stock_layers_are_fed_the_tokens_that_are_said(ground):
    prompt = ground.whole()
    counts = [prompt.tokens] * 3 + [40] * 5
    with arithmetic(ground.model) as flops:
        ways.fed(ground.model, counts, prompt)
    assert flops == [sum(layer_flops(n, 0, TINY.width, TINY.mlp) for n in counts)]
    whole = ways.fed(ground.model, [prompt.tokens] * TINY.layers, prompt)
    torch.testing.assert_close(whole, shapes.prefill(ground.model, prompt).logits)


def test_flops_of_blink_are_the_prompts_and_what_is_expanded(ground):
    with arithmetic(ground.model) as untouched:
        ground.vanilla()
    with arithmetic(ground.model) as scanned:
        ground.under(ground.blink(expands=False))
    assert scanned == untouched  # segments change nothing; the scan itself is not a layer
    method = ground.blink(expands=True)
    with arithmetic(ground.model, method.amplifiers) as expanded:
        ground.under(method)
    d, side, first = TINY.width, TINY.side**2, min(method.policy.layers)
    n = len(ground.whole().features) + 61
    convolutions = 2 * side * (25 * d * d // 2 + 9 * d // 2 * d // 4 + d // 4 * d)
    more = layer_flops(n + side, 0, d, TINY.mlp) - layer_flops(n, 0, d, TINY.mlp)
    assert expanded[0] - untouched[0] == len(method.policy.layers) * convolutions + (TINY.layers - first) * more


def test_the_usual_way_says_what_the_stock_model_says(ground):
    prompt = ground.whole()
    stock = shapes.prefill(ground.model, prompt).logits
    torch.testing.assert_close(usual.with_attentions(ground.model, prompt, usual.nothing), stock, atol=1e-5, rtol=1e-4)
    assert ground.model.config._attn_implementation == "sdpa"


def test_the_usual_way_of_fastv_says_what_ours_says(ground):
    """Two programs for one method: whole matrices in eager attention here, one row and segments there."""
    prompt = ground.whole()
    method = ground.policies(0.3)["FastV"]
    out = ground.under(method, prompt)
    choose = reading.chooser(ways.lengths(out), prompt)
    torch.testing.assert_close(usual.with_attentions(ground.model, prompt, choose), out.logits, atol=1e-5, rtol=1e-4)


def test_the_usual_tower_gives_the_rows_that_ours_makes(ground):
    ours = ground.encoding(EncoderRequirements(attention=frozenset({6, 22})), real=True)
    encoding, rows = usual.tower_with_attentions(ground.model, ground.pixels, ground.views, frozenset({6, 22}))
    torch.testing.assert_close(encoding.hidden, ours.hidden, atol=1e-5, rtol=1e-4)
    for layer, attention in rows.items():
        torch.testing.assert_close(attention, ours.attention(layer), atol=1e-5, rtol=1e-4)


def made_up(flops: int, limit=None) -> methods.Timed:
    return methods.Timed(lambda: None, limit, flops, {"method": "?"})


def test_ratios_and_bars_come_from_the_rounds():
    known = {
        methods.UNTOUCHED: made_up(100),
        methods.SCANNING: made_up(100),
        methods.EXPANDING: made_up(125),
        "FastV": made_up(40, limit=lambda: None),
    }
    taken = {
        methods.UNTOUCHED: [10.0, 20.0, 10.0],
        methods.SCANNING: [10.1, 20.2, 10.1],
        methods.EXPANDING: [15.0, 30.0, 15.0],
        "FastV": [5.0, 10.0, 5.0],
        "FastV, fed": [4.0, 8.0, 4.0],
    }
    bars = {name: methods.compare(known, taken, name) for name in known}
    assert not bars[methods.UNTOUCHED]
    assert bars[methods.SCANNING][0]["value"] == pytest.approx(1.01) and bars[methods.SCANNING][0]["met"]
    assert bars[methods.EXPANDING][0]["value"] == pytest.approx(1.5 / 1.25) and not bars[methods.EXPANDING][0]["met"]
    assert bars["FastV"][0]["value"] == pytest.approx(0.8) and not bars["FastV"][0]["met"]
    row = known["FastV"].row
    assert (row["time / untouched"], row["FLOPs / untouched"], row["seconds"]) == (0.5, 0.4, 5.0)
    assert row["fed / method"] == pytest.approx(0.8)


@pytest.mark.slow
def test_the_toy_fills_every_column_and_judges_every_bar(monkeypatch):
    monkeypatch.setattr(reading, "rounds", lambda works, repeats, warm, clock: {name: [len(name) * 1.0] for name in works})
    result = methods.measure("small", repeats="1", profiled="false")
    rows = {row["method"]: row for row in result["rows"]}
    assert set(result["columns"]) >= {key for row in result["rows"] for key in row}
    assert len(rows) == 5 + 3 + 3 + 1 and rows[methods.UNTOUCHED]["FLOPs / untouched"] == 1
    heads = 2 * TINY.layers * TINY.width * 4  # bytes a token: keys and values in float32
    hero = [rows[f"HERO, R = {r}"] for r in methods.RATIOS]
    assert [row["KV MB"] * 2**20 for row in hero] == [row["tokens a layer"] * heads for row in hero]
    assert hero[0]["peak MB"] > hero[1]["peak MB"] > hero[2]["peak MB"] > hero[2]["KV MB"]
    # by the stand-in, a way takes as many seconds as its name has letters: "tower" 5, "FasterVLM" 9, "ours" 4, "usual" 5
    assert rows["FasterVLM"]["scoring / tower"] == 9 / 5 and rows["FastV"]["usual / ours: time"] == 5 / 4
    assert rows["FastV"]["ours / usual: memory"] < 0.5 and rows["HiRED"]["ours / usual: memory"] < 0.5  # exact: bytes, not times
    few, many = (rows[name]["ours / usual: memory"] for name in (methods.SCANNING, f"{methods.SCANNING}, 4 heads of 8"))
    assert many < few  # a matrix a head
    kinds = [line["what"].partition(":")[2] or line["what"] for line in result["bars"]]
    assert len(result["bars"]) == 2 + 8 + 6 + 2 * 8 and kinds.count(" faster than the usual way") == 8
    assert all(line["met"] is not None for line in result["bars"])


def test_a_scan_of_whole_grids_reads_once_a_layer(monkeypatch):
    """At batch 1 a decision costs one small copy from a GPU, whatever else the scan makes. A CPU's batches are sorted by length first."""
    monkeypatch.setattr(scan, "independent", lambda x: False)
    model = random_llava(layers=4)
    batch = prompts(model, [[8, 9, 10]])

    def reads(layers: tuple[int, ...]) -> int:
        with attach(model, blink(BlinkPolicy(layers, 1.0, 0.0))), HostReads() as counter, torch.no_grad():
            model(**batch)
        return counter.count

    assert [reads((1, 2)) - reads((1,)), reads((0, 1, 2, 3)) - reads((1, 2))] == [1, 2]


def test_distances_by_products_are_exact_and_equal_rows_are_0_apart():
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    x[:, 3] += 1e4  # as in decoders: one channel that dwarfs all others
    x[150:] = x[:50]
    x[149] = x[0] + 1e-3 * x[1]
    x[149, 3] = x[0, 3]
    distances, exact = pairwise_distances(x), torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distances.double(), exact, rtol=1e-6, atol=1e-9)
    assert torch.equal(distances[150:].argmin(1), torch.arange(50)) and not distances[torch.arange(150, 200), torch.arange(50)].any()
    assert distances[149, 0] > 0


def test_reads_are_those_beyond_the_untouched_model(monkeypatch):
    monkeypatch.setattr(
        throughput,
        "counted",
        lambda work, device, kind: (len(getattr(work.args[0], "policy", None).layers), None) if hasattr(work, "args") else (0, None),
    )
    counts = throughput.decisions()
    assert counts["Blink, expanding"]["reads a further layer"] == 1 and counts["SparseVLM"]["reads a prompt"] == 3
    assert "reads a further layer" not in counts["FastV"]  # it decides behind one layer only
    assert counts["SparseVLM"]["waits a prompt"] is None


def test_a_policy_is_scaled_to_the_depth(ground):
    policy = ground.policies(0.3)["SparseVLM"].policy
    assert isinstance(policy, SparseVLMPolicy) and policy.layers == (0, 2, 4) and ways.scaled(16, 12) == 6
    assert ground.blink(True).policy.layers == (3, 4)  # 12 to 18 of 32, in 8 layers
    assert list(ground.blink(True).amplifiers) == ["3", "4"]


def test_questions_a_second_are_questions_over_seconds(monkeypatch):
    monkeypatch.setattr(throughput, "prepared", lambda overrides: (type("B", (), {"forget": lambda self: None})(), None, None))
    monkeypatch.setattr("blink_exp.evaluation.evaluator.evaluate", lambda *_, batch_size, limit: ([{}] * limit, []))
    monkeypatch.setattr(throughput, "rounds", lambda works, repeats: {"1": [4.0, 6.0, 4.0], "16": [1.0, 2.0, 1.0]})
    one, many = throughput.speeds("none", [], (1, 16), 8, 3)
    assert one["questions / s"] == 2 and many["questions / s"] == 8
    assert many["beside batch size 1"] == 4 and one["beside batch size 1"] == 1  # the median of 4, 3, 4
