"""Pairs, and Blink on what a pruner leaves: which cells are scanned, what fills the missing ones, which pairs are refused."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from support.models import IMAGE, PAD, model_inputs, random_llava, random_next
from transformers.modeling_outputs import BaseModelOutputWithPooling

from blink_exp.benchmarks.mosaic_hr import MosaicHR
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.cli import CONF
from blink_exp.core.saliency import PatchGrid
from blink_exp.core.views import NEWLINE, BaseViewMap, ViewGeometry, all_tokens, base_view, pack
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.methods.blink import BlinkPolicy, blink

ALWAYS = BlinkPolicy((1, 2), 0.0, 0.0)
APPEND = BlinkPolicy((1, 2), 0.0, 0.0, saliency="attention_visual", scan_expanded=True, on_reexpand="append")


def pair(scale, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("evaluate", list(overrides)).method, _partial_=True, _convert_="all")(scale)


def test_a_missing_cell_takes_the_mean_of_its_nearest_kept_ones():
    # 3 x 3 cells; kept: 0 (value 1), 2 (value 3), 8 (value 7). A tile's token stands between them.
    shown = BaseViewMap(torch.tensor([0, 2, -1, 8]))
    states = torch.tensor([[1.0], [3.0], [99.0], [7.0]])
    #  cell 1: 0 and 2 at distance 1; 4: all three at sqrt 2; 3: 0; 5: 2 and 8; 6: 0 and 8 at 2; 7: 8
    assert shown.grid(states, 3, 3)[:, 0].tolist() == pytest.approx([1, 2, 3, 1, 11 / 3, 5, 4, 7, 7])


def test_recall_brings_back_what_was_dropped_and_only_that():
    aside = torch.arange(100.0, 109.0)[:, None]
    filled = BaseViewMap(torch.tensor([0, 2, -1, 8]), aside).grid(torch.tensor([[1.0], [3.0], [99.0], [7.0]]), 3, 3)
    assert filled[:, 0].tolist() == [1, 101, 3, 103, 104, 105, 106, 107, 7]


def test_scores_of_scattered_tokens_go_to_the_patches_that_they_stand_in():
    grid = PatchGrid(2, 4, 6)
    scores = torch.rand(24)
    assert torch.allclose(grid.sums_at(scores, torch.arange(24)), grid.sums(scores))
    assert grid.sums_at(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([23, 2, 3])).tolist() == [2.0, 4.0, 0.0, 1.0]


def test_cells_are_those_of_the_thumbnail_in_whatever_order():
    views = ViewGeometry(2, 1, 2, (2, 4), newline=True)
    source = torch.tensor([3, 1, 5, 9, NEWLINE, 2])
    assert base_view(source, views).cells.tolist() == [3, 1, -1, -1, -1, 2]


def _prompt(tokens: list[int], text: list[list[int]]) -> dict[str, torch.Tensor]:
    rows = [[1, 5, *[IMAGE] * n, *t] for n, t in zip(tokens, text, strict=True)]
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows]),
    }


@pytest.mark.parametrize("policy", [ALWAYS, APPEND])
def test_with_every_cell_kept_it_is_blink_as_ever(policy):
    """The path for scattered tokens against the path for whole grids, on the same tokens."""
    model = random_llava()
    features = [torch.randn(36, 32, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    batch = _prompt([36, 36], [[9, 10, 11], [12, 13]])
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    outputs = []
    for images in (None, [[BaseViewMap(torch.arange(36))], [BaseViewMap(torch.arange(36))]]):
        with attach(model, blink(policy)) as run, torch.no_grad():
            run.images = images
            outputs.append((model(**batch, mm_encoder_outputs=encoded).logits, [(r.scan.region, r.visual_tokens) for r in run.records]))
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-5)
    assert outputs[0][1] == outputs[1][1]


def test_rows_that_keep_different_cells_equal_single_runs_and_the_cache_changes_nothing():
    model = random_llava()
    kept = [torch.tensor([0, 1, 7, 20, 35]), torch.arange(3, 30), torch.tensor([14])]
    features = [torch.randn(len(k), 32, generator=torch.Generator().manual_seed(n)) for n, k in enumerate(kept)]
    text = [[9, 10, 11], [12, 13], [14, 15, 16, 17]]
    settings = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}

    def answer(rows: list[int], cache: bool) -> list[list[int]]:
        batch = _prompt([len(kept[r]) for r in rows], [text[r] for r in rows])
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features[r] for r in rows])}
        with attach(model, blink(ALWAYS)) as run, torch.no_grad():
            run.images = [[BaseViewMap(kept[r])] for r in rows]
            out = model.generate(**batch, mm_encoder_outputs=encoded, use_cache=cache, **settings)
            assert all(r.visual_tokens == len(kept[rows[r.row]]) + 36 for r in run.records)
        return out[:, batch["input_ids"].shape[1] :].tolist()

    together = answer([0, 1, 2], True)
    assert together == [answer([r], True)[0] for r in range(3)]
    assert together == answer([0, 1, 2], False)


def test_on_llava_next_the_thumbnail_is_scanned_also_without_being_told():
    """From pixels and image_sizes alone the cells are those of the stock model's own packing."""
    model = random_next()
    views = ViewGeometry.of(model.config, (24, 48))
    source = pack(views, all_tokens(views))
    batch = _prompt([len(source)], [[9, 10]]) | {
        "pixel_values": torch.randn(1, 3, 3, 24, 24, generator=torch.Generator().manual_seed(0)),
        "image_sizes": torch.tensor([[24, 48]]),
    }
    seen = []
    for images in (None, [[base_view(source, views)]]):
        with attach(model, blink(ALWAYS)) as run, torch.no_grad():
            run.images = images
            logits = model(**batch).logits
            seen.append((logits, [r.scan for r in run.records]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert seen[0][1] == seen[1][1]
    assert all(r.rho is not None and 0.25 <= r.rho <= 1 for r in seen[0][1])


@pytest.mark.slow
def test_generate_from_pixels_on_llava_next_with_beams_and_without_a_cache(scale_next):
    """The processor's own inputs, images of several sizes in a batch: as evaluate's path says it, for each image alone, cached or not."""
    samples = MosaicHR(images=8).samples()[:40:20] + MosaicHR(images=8).samples()[70:71]
    policy = BlinkPolicy((12, 13), 0.0, 0.0)
    settings = {"max_new_tokens": 3, "do_sample": False}
    inputs = model_inputs(scale_next, [s.image() for s in samples], [s.question for s in samples])
    texts = {}
    with attach(scale_next.model, blink(policy)) as run, torch.no_grad():
        for beams, cache in ((1, True), (1, False), (2, True), (2, False)):
            tokens = scale_next.model.generate(**inputs, **settings, num_beams=beams, use_cache=cache)
            assert len(run.records) == 2 * beams * len(samples)
            texts[beams, cache] = scale_next.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        features = scale_next.features({s.image_id: s.image() for s in samples})
        for s, answer in zip(samples, texts[1, True], strict=True):
            views = ViewGeometry.of(scale_next.model.config, s.image().size[::-1])
            source = pack(views, all_tokens(views))
            run.images = [[base_view(source, views)]]
            assert scale_next.generate([features[s.image_id]], [s.question], 3) == [answer.strip()]
    assert texts[1, True] == texts[1, False]
    assert texts[2, True] == texts[2, False]


@pytest.mark.parametrize(
    ("shown", "policy", "word"),
    [
        (BaseViewMap(torch.full((9,), -1)), ALWAYS, "keeps none of the 36 tokens of the base view"),
        (BaseViewMap(torch.arange(9)), BlinkPolicy((1,), inherit_positions=True), "positions=inherit needs all 36 tokens"),
        (None, ALWAYS, "needs to know which of the 6 x 6 cells 9 visual tokens show"),
    ],
)
def test_what_blink_cannot_work_on_is_one_line(shown, policy, word):
    model = random_llava()
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=[torch.randn(9, 32)])}
    with attach(model, blink(policy)) as run, torch.no_grad():
        run.images = None if shown is None else [[shown]]
        with pytest.raises(UserError, match=word):
            model(**_prompt([9], [[9, 10]]), mm_encoder_outputs=encoded)


@pytest.mark.slow
def test_blink_hero_scans_what_hero_left_and_recall_changes_what_is_expanded(scale):
    made = {}
    for fill in ("neighbours", "recall"):
        method = pair(scale, "method=blink_hero", "retention_ratio=0.2", f"fill={fill}", "thresholds=always_expand")
        assert method.restore_dropped == (fill == "recall")
        records, _ = evaluate(scale, method, MosaicMME(), batch_size=4, limit=4)
        assert all(r["visual_tokens"] == 28 for r in records)
        assert all(step["visual_tokens"] == 28 + 144 and 0.25 <= step["rho"] <= 1 for r in records for step in r["layers"])
        made[fill] = [[step["rho"] for step in r["layers"]] for r in records]
    assert made["neighbours"] != made["recall"]


@pytest.mark.slow
def test_a_full_budget_makes_blink_hero_plain_blink(scale):
    together = [
        evaluate(scale, pair(scale, f"method={m}", "retention_ratio=1.0"), MosaicMME(), limit=4)[0] for m in ("blink_hero", "blink")
    ]
    assert together[0] == together[1]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["fastervlm", "visionzip", "divprune", "cdpruner", "vispruner"])
def test_any_pruner_goes_with_fastv_and_shares_multiply(scale, pruner):
    method = pair(scale, "method=pair", f"method/pruner={pruner}", "method/policy=fastv", "retention_ratio=0.5")
    records, _ = evaluate(scale, method, MosaicMME(), limit=2)
    assert method.name == f"{pruner}+fastv"
    assert {r["visual_tokens"] for r in records} == {72}
    assert {step["visual_tokens"] for r in records for step in r["layers"]} == {36}


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "left"), [("pyramiddrop", [36, 18, 9]), ("dart", [36])])
def test_policies_count_from_what_a_pruner_left(policy, left, scale):
    override = {"pyramiddrop": "method.policy.ratios=[0.5,0.25,0.125]", "dart": "method.policy.retention_ratio=0.5"}[policy]
    method = pair(scale, "method=pair", "method/pruner=hero", f"method/policy={policy}", "retention_ratio=0.5", override)
    records, _ = evaluate(scale, method, MosaicMME(), limit=2)
    assert method.name == f"hero+{policy}"
    assert {r["visual_tokens"] for r in records} == {72}
    assert [[step["visual_tokens"] for step in r["layers"]] for r in records] == [left] * 2  # dart: 4 + 8 * (36 // 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["method/pruner=prumerge_plus", "method/policy=blink"], "merges tokens"),
        (["method/pruner=visionzip", "method/policy=blink"], "merges tokens"),
        (["method/pruner=downsample", "method/policy=blink_interp"], "merges tokens"),
        (["method/policy=sparsevlm", "method.policy.schedule=192", "method.policy.retention_ratio=null"], "counts tokens of a whole image"),
        (["fill.policy=recal"], "fill.policy=recal is not known; did you mean recall"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(overrides, word, scale):
    with pytest.raises(UserError, match=word):
        pair(scale, "method=pair", *overrides)
