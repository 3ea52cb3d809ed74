"""The first line of a run says what will run and how long it took last time; the last line is a command that looks closer."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from support.scripts import printed

from blink_exp.evaluation.pace import closer

LAST = re.compile(r"; last time \d+ questions in [\d.]+ s \(\d{4}-\d\d-\d\d\)")


@pytest.mark.slow
def test_a_second_run_says_how_long_the_first_took_and_another_method_does_not(tmp_path):
    words = ("evaluate.py", "method=blink_interp", "benchmark=mosaic_mme", "cost=0", "limit=4")
    first = printed(*words, f"hydra.run.dir={tmp_path / 'a'}")
    assert first.startswith("evaluating method=blink_interp benchmark=mosaic_mme model=scale_llava limit=4\n")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    second = printed(*words, f"hydra.run.dir={tmp_path / 'b'}").splitlines()[0]
    assert LAST.search(second) and f"last time {metrics['samples']} questions in {metrics['seconds']:.1f} s" in second
    other = printed(*words, "thresholds=low_drop", f"hydra.run.dir={tmp_path / 'c'}").splitlines()[0]
    assert "last time" not in other
    (tmp_path / "a" / "metrics.json").write_text("{", encoding="utf-8")  # cut off: the next newest counts
    again = printed(*words, f"hydra.run.dir={tmp_path / 'd'}").splitlines()[0]
    assert LAST.search(again)

    command = shlex.split(next(line for line in first.splitlines() if "layer by layer: " in line).partition("layer by layer: ")[2])
    page = printed(*command[1:], "compare=[none]", f"hydra.run.dir={tmp_path / 'page'}")
    assert str(tmp_path / "page" / "view.html") in page


def test_the_command_shows_the_first_wrong_answer_with_the_words_of_the_run(monkeypatch):
    records = [{"id": name, "prediction": "x", "correct": correct} for name, correct in (("a", 1.0), ("b c", 0.0), ("d", False))]
    words = [
        "method=blink",
        "limit=4",
        "shard=1/2",
        "share=false",
        "store=s",
        "cost=0",
        "hydra.run.dir=x",
        "+logger.mode=offline",
        "thresholds.tau_exp=0.4",
    ]
    assert closer(records, words) == "python -m blink_exp view method=blink thresholds.tau_exp=0.4 'sample=b c'"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config-dir", "mine", "thresholds=mild"])
    assert closer(records[:1], ["thresholds=mild"]) == "python -m blink_exp view --config-dir mine thresholds=mild sample=a"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "hydra.searchpath=[mine]", "thresholds=mild", "hydra.run.dir=x"])
    assert closer(records[:1], ["thresholds=mild"]) == "python -m blink_exp view 'hydra.searchpath=[mine]' thresholds=mild sample=a"
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    assert closer(records[:1], []) == "python -m blink_exp view sample=a"
    assert closer([{"id": "a", "prediction": None, "correct": None}], []) is None
