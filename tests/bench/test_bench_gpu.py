"""The GPU benchmark without a GPU: its rows, its decoding over buffers that do not move, and its code path on a toy shape."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support.scripts import ROOT

from bench import decoding, gpu, meters, shapes, ways
from blink_exp.backbone.cache_name import CACHE
from blink_exp.errors import UserError

# What a plain checkout with torch and transformers has not. An import of one of these must not happen.
OTHERS = (
    "hydra",
    "omegaconf",
    "pytorch_lightning",
    "PIL",
    "rich",
    "wandb",
    "pandas",
    "matplotlib",
    "easy_vqa",
    "pyarrow",
    "datasets",
    "flash_attn",
)
PLAIN = f"""
import sys
for name in {OTHERS}:
    sys.modules[name] = None
from bench.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_rows_are_table_viiis_with_its_published_cells():
    cases = list(gpu.cases("7b"))
    assert [(case.name, case.tokens, case.ratio) for case in cases[:4]] == [
        ("untouched (100 %)", 2673, None),
        ("HERO (40%)", 1105, 0.4),
        ("HERO (20%)", 583, 0.2),
        ("HERO (10%)", 322, 0.1),
    ]
    assert [case.published["decode tokens/s (published)"] for case in cases[:4]] == [28.8, 35.4, 40.2, 43.8]
    assert cases[0].published["KV MiB (published)"] == 1336.5 and cases[3].published["TFLOPs (published)"] == 4.2
    assert [(case.blink, case.tokens, case.published) for case in cases[4:]] == [("scanning", 2673, None), ("expanding", 2673, None)]


def test_published_cells_stand_beside_the_shape_that_they_are_of_and_no_other():
    assert all(case.published is None for case in gpu.cases("13b"))
    toy = list(gpu.cases("7b", most=253))
    assert all(case.published is None for case in toy)
    assert [case.tokens for case in toy[:2]] == [253, 61 + (1105 - 61) * (253 - 61) // (2673 - 61)]


@pytest.fixture(scope="module")
def ground():
    return ways.Ground.of(shapes.TINY)


@pytest.mark.parametrize("name", ["untouched", "Blink", "FastV", "SparseVLM"])
def test_a_step_over_fixed_buffers_says_what_generate_says(ground, name):
    """Layers hold different sequences, and under FastV positions that are not their lengths."""
    method = {"untouched": None, "Blink": ground.blink(expands=True), **ground.policies(0.3)}[name]
    prompt = ground.whole()
    if method is None:
        sequences = ground.model.generate(**prompt.arguments, max_new_tokens=12, do_sample=False)
        out = shapes.prefill(ground.model, prompt)
    else:
        with ground.attach(method, prompt):
            sequences = ground.model.generate(**prompt.arguments, max_new_tokens=12, do_sample=False)
        out = ground.under(method, prompt)
    first = out.logits[:, -1:].argmax(-1)
    fixed = decoding.Fixed(ground.model, out[CACHE], first, room=12)
    where = [keys.data_ptr() for keys in fixed.keys]
    assert decoding.answer(fixed, 12).tolist() == sequences[0, prompt.tokens :].tolist()
    fixed.rewind(first)
    assert decoding.answer(fixed, 12).tolist() == sequences[0, prompt.tokens :].tolist()
    assert where == [keys.data_ptr() for keys in fixed.keys]  # what a CUDA graph has recorded
    assert len(fixed.kinds) == {"untouched": 1, "Blink": 2, "FastV": 2, "SparseVLM": 4}[name]


def test_an_answer_is_read_once_and_a_step_never(ground):
    """A graph cannot stop to look at a number."""
    out = shapes.prefill(ground.model, ground.whole())
    fixed = decoding.Fixed(ground.model, out[CACHE], out.logits[:, -1:].argmax(-1), room=4)
    with meters.HostReads() as reads:
        decoding.answer(fixed, 3)
    assert reads.count == 0


def test_what_a_device_refuses_leaves_a_note_and_memory_ends_the_row():
    notes: list[str] = []
    with gpu._Tried("7B: graph", notes):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")
    assert notes == ["7B: graph did not run here (operation not permitted when stream is capturing)"]
    with pytest.raises(torch.OutOfMemoryError), gpu._Tried("7B: graph", notes):
        raise torch.OutOfMemoryError("no")


def test_a_transformers_that_would_ignore_the_images_is_refused(monkeypatch):
    for version, fine in (("5.17.0", False), ("5.23.0", True), ("6.0.1", True)):
        monkeypatch.setattr(gpu.importlib.metadata, "version", lambda name, version=version: version)
        if fine:
            assert gpu.check("small", "cpu", "float32", "7b") == ["7b"]
        else:
            with pytest.raises(UserError, match=r"transformers 5.17.0 does not take images .* install 5.23 or newer"):
                gpu.check("small", "cpu", "float32", "7b")


def test_weights_of_tokensr_count_where_blink_uses_them(ground):
    cases = {case.name: case for case in gpu.cases("7b", most=ground.whole().tokens)}
    row = gpu.Row(ground, cases["Blink, expanding"], {}, 1, 1, [])
    row.generate = row.encoded = lambda *_: None  # nothing is held beside the weights
    modules = sum(p.nbytes for p in row.method.amplifiers.parameters())
    assert row.most(None) == sum(p.nbytes for p in ground.model.parameters()) + modules > modules > 0


@pytest.mark.slow
def test_it_runs_from_a_plain_checkout_and_fills_what_a_cpu_can(tmp_path):
    words = ["gpu", "size=small", "device=cpu", "dtype=float32", "models=13b", "decode=2", "repeats=1", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", PLAIN, *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [row["tokens"] for row in document["rows"][:4]] == [case.tokens for case in gpu.cases("13b", most=253)][:4]
    bytes_a_token = 2 * shapes.TINY.layers * shapes.TINY.width * 4
    for row in document["rows"]:
        assert row["KV MiB"] * 2**20 == pytest.approx(row["tokens"] * bytes_a_token, rel=0.02)  # tokens are a rounded mean of layers
        assert row["TFLOPs"] > 0 and row["prefill ms"] > 0 and row["decode tokens/s, generate"] > 0
        assert not {"decode tokens/s, graph", "waits in prefill", "tokens (published)"} & set(row)  # no CUDA, no 13B in the paper
    tflops = [row["TFLOPs"] for row in document["rows"]]
    assert tflops[0] > tflops[1] > tflops[2] > tflops[3] and tflops[5] > max(tflops[0], tflops[4])
    assert all("scoring ms" in row for row in document["rows"][1:4]) and "scoring ms" not in document["rows"][0]
    assert not [note for note in document["notes"] if "did not run here" in note]
