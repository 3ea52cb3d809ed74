"""What ``VLM.answer`` and ``VLM.view`` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from blink_exp.documents.pages import ViewDocument
from blink_exp.documents.records import LayerStep, ShownPart
from blink_exp.documents.runs import Cost
from blink_exp.errors import UserError, flat
from blink_exp.files import write_text

HEIGHT = 900  # pixels of a page in a notebook


@dataclass(frozen=True)
class Trace:
    """What a method did on one question, as records.jsonl has it.

    Args:
        method: its name.
        decisions: of the policy, in order of layers: layer, image, rho, region, decision, effective, visual_tokens.
        visual_tokens: those that entered the LLM, without newlines; ``newline_tokens``: those.
        tokens_by_layer: visual tokens in each layer of the LLM; ``layer_tokens``: their mean.
        prefill_flops: of the prompt, by formula.
        second_view: the part of the image that was shown as a second one; None: none was.
        cost: FLOPs, memory and seconds of this question alone, if asked for (``VLM.answer``).
    """

    method: str
    decisions: list[LayerStep]
    visual_tokens: int
    newline_tokens: int
    tokens_by_layer: list[float]
    layer_tokens: float
    prefill_flops: int
    second_view: ShownPart | None = None
    cost: Cost | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and how it came about."""

    text: str
    trace: Trace

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Page:
    """The page of one question. A notebook shows it.

    Args:
        contents: what it says, as plain values.
        kept: (rows, columns) of the base view: in what share of the LLM's layers the token of each patch is present.
        kept_tiles: the same of the tiles together, without their padding; None for a model without tiles.
    """

    html: str = field(repr=False)
    contents: ViewDocument = field(repr=False)
    kept: np.ndarray = field(repr=False)
    kept_tiles: np.ndarray | None = field(repr=False)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" width="100%" height="{HEIGHT}" style="border:0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, and returns its path. Raises UserError where it cannot be written."""
        try:
            write_text(Path(path), self.html)
        except (OSError, ValueError, TypeError) as error:  # ValueError: no name, or a NUL in it; TypeError: no path
            why = getattr(error, "strerror", None) or flat(error, 80)
            raise UserError(f"{flat(path, 80)} cannot be written ({why}); give the path of a file: page.html") from error
        return Path(path)
