"""Points answered together on the scale model."""

from __future__ import annotations

import pytest
import torch

from blink_exp.core.method import Method
from blink_exp.decoder.answers import PointQuestion, answer
from blink_exp.methods.blink import tokensr_module

LAYERS = (12, 13, 15, 16)


def modules(backbone) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({str(layer): tokensr_module(backbone, backbone.tokensr, layer) for layer in LAYERS})


def taken(records) -> list[tuple]:
    return [
        (r.scan.layer, r.scan.sample, r.scan.expanded, r.decision, r.visual_tokens, r.scan.rho and pytest.approx(r.scan.rho, abs=1e-4))
        for r in records
    ]


def together(backbone, methods: list[Method], samples, benchmark, batch_size: int = 32) -> dict[tuple[int, int], tuple]:
    images = {s.image_id: s.image() for s in samples}
    asked = [PointQuestion(s.image_id, benchmark.prompt(s), s.id, tuple(range(len(methods)))) for s in samples]
    answers = answer(backbone, methods, images, asked, benchmark.max_new_tokens, batch_size)
    return {key: (one.text, taken(one.decisions)) for key, one in answers.items()}
