"""Logits that are nan or inf: such a model has no answer, which must not be scored as a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

from blink_exp.errors import UserError


def no_answer(best: torch.Tensor) -> UserError:
    """``best``: (rows,) largest logit of each row, nan where any logit is; some are not finite."""
    bad = int((~best.isfinite()).sum())
    return UserError(
        f"the model gives logits that are nan or inf for {bad} of {len(best)} questions of a batch, so it has no answer to them;"
        " use model.dtype=bfloat16 or float32, and check the weights"
    )


class Checked(LogitsProcessor):
    """Checks logits in Hugging Face's generate()."""

    def __call__(self, input_ids: torch.Tensor, scores: Any) -> Any:
        best = scores.max(-1).values
        if not bool(best.isfinite().all()):
            raise no_answer(best)
        return scores
