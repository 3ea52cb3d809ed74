"""Every method in the dtypes that published backbones are run in: it runs, keeps as many tokens, and mostly answers as in float32."""

from __future__ import annotations

import functools

import pytest
import torch
from support.methods import METHODS, method_of

from blink_exp.backbone.load import load
from blink_exp.benchmarks.mosaic_open import MosaicOpen
from blink_exp.decoder.attach import attach
from blink_exp.evaluation.evaluator import evaluate
from blink_exp.settings.build import build
from blink_exp.settings.compose import composed

QUESTIONS = 8
# CPUs are slow in float16, so one method from each side of the LLM's door must do.
CASES = [(name, "bfloat16") for name in METHODS] + [("blink", "float16"), ("hero", "float16")]


@pytest.fixture(scope="module")
def halves():
    return {dtype: load.__wrapped__("scale", "scale-llava-1.5", dtype=dtype, clip="scale") for dtype in ("bfloat16", "float16")}


@pytest.fixture(scope="module")
def whole(scale):
    """{method: its records in float32}, made when first asked for."""

    @functools.cache
    def of(name):
        return evaluate(scale, method_of(name, scale), MosaicOpen(), batch_size=QUESTIONS, limit=QUESTIONS)[0]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_method_in_half_precision(name, dtype, whole, halves):
    """Dtypes that do not fit together end in an error; weights or budgets that do not survive the cast in other answers."""
    before = whole(name)
    half, skipped = evaluate(halves[dtype], method_of(name, halves[dtype]), MosaicOpen(), batch_size=QUESTIONS, limit=QUESTIONS)
    assert not skipped and len(half) == len(before)
    if name != "prumerge_plus":  # the number of outliers may change with the last bits
        assert [r["visual_tokens"] for r in half] == [r["visual_tokens"] for r in before]
    same = sum(a["prediction"] == b["prediction"] for a, b in zip(half, before, strict=True))
    assert same >= 0.75 * len(before), f"{same} of {len(before)}"


def test_places_of_expanded_tokens_are_not_rounded_to_bfloat16(halves):
    """576 places need more than bfloat16's 8 bits: of 12 x 12 halved places it keeps too few apart."""
    backbone = halves["bfloat16"]
    words = ["method=blink", "resolution.positions=inherit", "thresholds=always_expand", "layer=12"]
    method = build(composed("evaluate", words).method, backbone)
    sample = MosaicOpen().samples()[0]
    with attach(backbone.model, method) as run:
        (visual,) = backbone.visual({"a": sample.image()}, [("a", sample.question)], None)
        run.images, run.samples = [[visual.base_map]], ["a"]
        seen: list[torch.Tensor] = []
        rope = backbone.llm.rotary_emb
        hook = rope.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
        backbone.generate([visual.features], [sample.question], 1)
        hook.remove()
    fractional = [p for p in seen if p.is_floating_point()]
    assert fractional and all(p.dtype == torch.float32 for p in fractional)
    assert max(len(p[p % 1 != 0].unique()) for p in fractional) == 144  # tokens around them have whole numbers
