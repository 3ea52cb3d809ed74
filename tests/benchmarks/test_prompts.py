"""The exact prompt of every published benchmark and protocol, frozen, and how long its answers may be. A change is a decision:
UPDATE_PROMPTS=1 writes prompts down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.hub import build
from support.hub_choices import MAKERS

FROZEN = Path(__file__).parent / "prompts.json"


@pytest.mark.parametrize("name", MAKERS)
def test_prompts_are_the_frozen_ones(name, tmp_path):
    """Of the first row of the fixture, by every protocol that the benchmark has."""
    folder = MAKERS[name](tmp_path)
    asked = {}
    for protocol in type(build(name, folder)).protocols:
        benchmark = build(name, folder, protocol=protocol)
        asked[f"{name}/{protocol}"] = benchmark.prompt(benchmark.samples()[0])
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    if os.environ.get("UPDATE_PROMPTS") == "1":
        merged = {k: v for k, v in frozen.items() if not k.startswith(f"{name}/")} | asked
        FROZEN.write_text(json.dumps(dict(sorted(merged.items())), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        assert asked == {k: v for k, v in frozen.items() if k.startswith(f"{name}/")}


@pytest.mark.parametrize(
    ("name", "llava", "lmms_eval"),
    [
        *[("mme", 128, 16), ("pope", 128, 128), ("gqa", 128, 16), ("vqav2", 128, 16), ("vizwiz", 128, 1024), ("textvqa", 128, 1024)],
        *[("ocrbench", 128, 128), ("realworldqa", 16, 16), ("refcoco", 128, 1024), ("scienceqa", 1024, 16), ("mmvet", 1024, 1024)],
        *[("mmbench", 1024, 1024), ("mmbench_cn", 1024, 256)],
    ],
)
def test_answers_have_the_tokens_of_their_protocol(name, llava, lmms_eval):
    benchmarks = [build(name, "x", protocol=protocol) for protocol in ("llava", "lmms_eval")]
    assert [b.max_new_tokens for b in benchmarks] == [llava, lmms_eval]
    assert {b.name for b in benchmarks} == {name}
