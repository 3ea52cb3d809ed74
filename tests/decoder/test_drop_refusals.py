"""What a method that drops tokens inside the LLM cannot work on is one line."""

from __future__ import annotations

import pytest
import torch
from support.models import prompts, random_llava

from blink_exp.core.method import Method
from blink_exp.decoder.attach import attach
from blink_exp.errors import UserError
from blink_exp.methods.fastv import FastVPolicy
from blink_exp.methods.pyramiddrop import PyramidDropPolicy


@torch.no_grad()
def test_prompts_that_a_method_cannot_work_on_are_refused():
    model = random_llava()
    batch = prompts(model, [[9], []])
    with attach(model, Method(FastVPolicy(2, 0.5))), pytest.raises(UserError, match="end the prompt with text"):
        model(**batch)


def test_behind_the_last_layer_there_is_no_next_one_to_ask():
    model = random_llava(layers=4)
    with attach(model, Method(PyramidDropPolicy((2,), (0.5,)))):
        pass
    with (
        pytest.raises(UserError, match="layer=3 is outside the backbone's 4 layers; use 0 to 2"),
        attach(model, Method(PyramidDropPolicy((3,), (0.5,)))),
    ):
        pass
