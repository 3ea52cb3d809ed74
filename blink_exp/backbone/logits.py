"""Check for logits that are nan or inf: such a model has no answer, which must not be scored as a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

from blink_exp.errors import UserError


def check_logits(best: torch.Tensor) -> None:
    """``best``: (rows,) largest logit of each row, nan where any logit is. Raises UserError where one is nan or inf."""
    bad = int((~best.isfinite()).sum())
    if bad:
        raise UserError(
            f"the model gives logits that are nan or inf for {bad} of {len(best)} questions of a batch, so it has no answer to them;"
            " use model.dtype=bfloat16 or float32, and check the weights"
        )


class Checked(LogitsProcessor):
    """Checks logits in Hugging Face's generate()."""

    def __call__(self, input_ids: torch.Tensor, scores: Any) -> Any:
        check_logits(scores.max(-1).values)
        return scores
