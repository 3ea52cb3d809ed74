"""How many files a reader has to open who follows one question to its answer."""

from __future__ import annotations

import sys
from pathlib import Path

from support.shared_execution import modules

import blink_exp
from blink_exp.benchmarks.mosaic_mme import MosaicMME
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.methods.blink import BlinkPolicy, blink

MOST = 18
PACKAGE = Path(blink_exp.__file__).parent


def test_one_question_enters_few_files(scale):
    """Blink with an expansion, from `answers.answer` to the generated text; functions are seen as they are called."""
    entered: dict[str, set[str]] = {}

    def see(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and PACKAGE in file.parents:
            entered.setdefault(file.relative_to(PACKAGE).as_posix(), set()).add(frame.f_code.co_name)

    benchmark = MosaicMME()
    sample = benchmark.samples()[0]
    method = blink(BlinkPolicy(layers=(12, 13), tau_expand=0.0, tau_drop=0.0), modules(scale))
    question = PointQuestion(sample.image_id, benchmark.prompt(sample), sample.id, (0,))
    image = sample.image()
    scale.forget()
    sys.setprofile(see)
    try:
        answers = answer(scale, [method], {sample.image_id: image}, [question], 4, 1)
    finally:
        sys.setprofile(None)
    assert [step.decision.amplify for step in answers[0, 0].decisions] == [True, True]
    assert {"decoder/scan.py", "decoder/segments.py", "methods/blink.py", "core/sequence.py"} <= entered.keys()
    assert len(entered) <= MOST, sorted(entered)
