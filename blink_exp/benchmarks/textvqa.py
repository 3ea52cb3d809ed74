"""TextVQA (Singh et al., 2019): questions whose answer is written in the image."""

from __future__ import annotations

from typing import Any, ClassVar

from blink_exp.benchmarks.base import OpenImage, Sample
from blink_exp.benchmarks.cells import KEY, TEXTS, Row
from blink_exp.benchmarks.vqa import SHORT, TenAnswers
from blink_exp.errors import UserError


class TextVQA(TenAnswers):
    """``ocr``: ``row`` puts the row's OCR tokens into the prompt, ``none`` does not; null: ``row`` under llava, ``none`` under lmms_eval.

    LLaVA-1.5's published numbers are with OCR tokens (58.2 at 7B, about 46 without), LLaVA-NeXT's and HERO's without. Both protocols
    capitalize the question, which makes the rest of it lower case.
    """

    name = "textvqa"
    tokens: ClassVar = {"llava": 128, "lmms_eval": 1024}

    def __init__(self, path: str, split: str, ocr: str | None = None, **settings: Any):
        super().__init__(path, split, **settings)
        self.ocr = ocr or ("row" if self.protocol == "llava" else "none")
        if self.ocr not in ("row", "none"):
            raise UserError(f"benchmark.ocr={ocr} is not known; use row, none or null")
        extra = {"ocr_tokens": TEXTS} if self.ocr == "row" else {}
        self.columns = {**TenAnswers.columns, "image_id": KEY, **extra}  # type: ignore[misc]

    def sample(self, i: int, row: Row, image: OpenImage) -> Sample:
        ocr = {"ocr_tokens": row["ocr_tokens"]} if self.ocr == "row" else {}
        return self.build_sample(row, row["image_id"], image, None, **ocr)

    def prompt(self, sample: Sample) -> str:
        ocr_line = f"\nReference OCR token: {', '.join(sample.fields['ocr_tokens'])}" if self.ocr == "row" else ""
        return sample.question.capitalize() + ocr_line + SHORT
