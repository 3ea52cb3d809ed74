"""The interface of methods that drop visual tokens before the LLM."""

from __future__ import annotations

from typing import Protocol

from blink_exp.core.encoding import EncoderRequirements, Encoding
from blink_exp.core.views import TokenSelection


class ViewPruner(Protocol):
    """Chooses the visual tokens of one image that enter the LLM. Pure: the same encoding and question always give the same choice."""

    @property
    def name(self) -> str: ...
    @property
    def newline_policy(self) -> str: ...

    @property
    def merges(self) -> bool:
        """Whether it merges tokens, so that a token no longer shows one cell."""
        ...

    @property
    def needs(self) -> EncoderRequirements:
        """What it requires of the encoder: the outputs that it reads, and the grid of tiles that they are of."""
        ...

    def select(self, encoding: Encoding, question: str) -> TokenSelection | None:
        """The kept tokens, or None for all of them (the untouched model, bit for bit; never of tiles in a grid that is not its own)."""
        ...
