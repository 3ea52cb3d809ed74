"""Limits of settings beyond their types. Every limit states its rule in words, used in messages and documentation.

No slow imports: settings are checked before torch is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING, OmegaConf

from blink_exp.errors import nearest

SEEDS = 2**32 - 1  # the largest seed of numpy and Lightning
# Above what any model, machine or training has. What a model that is there has is less, and checked where it is loaded.
LAYERS = 1000
PATCHES = 10_000  # of a view
TOKENS = 100_000  # of an image, or of an answer
TEMPERATURE = 1_000_000  # a softmax at it is flat
BATCH = 100_000
PROCESSES = 1024  # worker processes, threads, nodes


class Limit(Protocol):
    """``rule``: completes "... must be". ``holds``: whether a value of the right type is valid; ``hint``: a cure for an invalid
    value, which may be of a wrong type."""

    @property
    def rule(self) -> str: ...

    def holds(self, value: Any) -> bool: ...

    def hint(self, value: Any) -> str: ...


@dataclass(frozen=True)
class Between:
    """A finite number from ``low`` to ``high``; ``above``, ``below``: whether the bound is exclusive. None: unbounded.

    ``least``, ``most``: numbers below and above which no value has a meaning; the rule leaves them out, and the cure of such a value
    names them.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    noun: str = "a number"
    most: float | None = None
    least: float | None = None

    @property
    def rule(self) -> str:
        if self.low is not None and self.high is not None:
            brackets = "(" if self.above else "[", ")" if self.below else "]"
            return f"{self.noun} in {brackets[0]}{self.low}, {self.high}{brackets[1]}"
        if self.low is not None:
            return f"{self.noun} above {self.low}" if self.above else f"{self.noun} of at least {self.low}"
        return self.noun

    def holds(self, value: Any) -> bool:
        if not is_finite(value):
            return False
        low = self.low is None or (value > self.low if self.above else value >= self.low)
        high = self.high is None or (value < self.high if self.below else value <= self.high)
        return low and high and (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def hint(self, value: Any) -> str:
        if not isinstance(value, int | float):
            return ""
        if self.most is not None and value > self.most:
            return f"use at most {self.most}"
        return f"use at least {self.least}" if self.least is not None and 0 < value < self.least else ""


@dataclass(frozen=True)
class Words:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def rule(self) -> str:
        return self.words[0] if len(self.words) == 1 else f"one of {', '.join(self.words)}"

    def holds(self, value: Any) -> bool:
        return value in self.words

    def hint(self, value: Any) -> str:
        hint = nearest(value, self.words) if isinstance(value, str) else ""
        return hint if hint.startswith("did") else ""  # the rule lists all of them


@dataclass(frozen=True)
class Text:
    """Text. ``noun``: what it denotes. ``blank``: whether it may be empty."""

    noun: str = "text"
    blank: bool = False

    @property
    def rule(self) -> str:
        return self.noun

    def holds(self, value: Any) -> bool:
        return self.blank or bool(str(value).strip())

    def hint(self, value: Any) -> str:
        return ""


@dataclass(frozen=True)
class Folder(Text):
    """An existing folder."""

    noun: str = "a folder"

    def holds(self, value: Any) -> bool:
        return super().holds(value) and Path(value).is_dir()

    def hint(self, value: Any) -> str:
        return "it is not a folder"


@dataclass(frozen=True)
class Each:
    """A list of at least ``least`` entries, each valid by ``limit``."""

    limit: Between | Words | Text
    least: int = 1

    @property
    def rule(self) -> str:
        return f"a list of which each entry is {self.limit.rule}" + ("" if self.least == 0 else ", and not empty")

    def holds(self, value: Any) -> bool:
        return len(value) >= self.least and all(self.limit.holds(entry) for entry in value)

    def hint(self, value: Any) -> str:
        return next((hint for entry in value if (hint := self.limit.hint(entry))), "") if is_list(value, lambda entry: True) else ""


@dataclass(frozen=True)
class Such:
    """Values accepted by ``test``; ``rule`` describes them. For settings with values of several types."""

    rule: str
    test: Callable[[Any], bool]

    def holds(self, value: Any) -> bool:
        return self.test(value)

    def hint(self, value: Any) -> str:
        return ""


def whole(low: int | None = None, high: int | None = None, *, most: int | None = None, default: Any = MISSING) -> Any:
    """A field for a whole number; see ``Between``."""
    return _field(Between(low, high, noun="a whole number", most=most), default)


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
    most: float | None = None,
    default: Any = MISSING,
) -> Any:
    """A field for a finite number; see ``Between``."""
    return _field(Between(low, high, above, below, most=most), default)


RATIO = Between(0, 1, above=True, least=1 / TOKENS)


def ratio() -> Any:
    """A field for the share of visual tokens to keep; see ``Between``."""
    return _field(RATIO, MISSING)


def ratio_list() -> Any:
    """A field for a list of such shares."""
    return _field(Each(RATIO), MISSING)


def words(*known: str, default: Any = MISSING) -> Any:
    return _field(Words(known), default)


def text(noun: str, blank: bool = False) -> Any:
    return _field(Text(noun, blank), MISSING)


def path() -> Any:
    return text("a path")


def folder() -> Any:
    return _field(Folder(), MISSING)


def seed() -> Any:
    return whole(0, SEEDS)


def flag() -> Any:
    return dataclasses.field(default=MISSING)


def layer_list(low: int = 1) -> Any:
    """A field for layers of a model, numbered from ``low``; one that is named twice counts once."""
    return _field(Each(Between(low, noun="a whole number", most=LAYERS)), MISSING)


def whole_list(low: int, high: int) -> Any:
    """A field for a list of whole numbers from ``low`` to ``high``."""
    return _field(Each(Between(low, high, noun="a whole number")), MISSING)


def preset_list() -> Any:
    return _field(Each(Text("a name"), least=0), MISSING)


def such(rule: str, test: Callable[[Any], bool], default: Any = MISSING) -> Any:
    return _field(Such(rule, test), default)


def token_budget() -> Any:
    """A field for a budget in visual tokens: a number, or a share of an image's."""
    return such(f"a whole number of tokens from 1 to {TOKENS}, a share of an image's tokens such as 1/3, or null", _is_token_budget)


def _is_token_budget(value: Any) -> bool:
    if isinstance(value, str):
        parts = value.split("/")
        return len(parts) == 2 and all(map(is_digits, parts)) and 0 < int(parts[0]) <= int(parts[1]) <= TOKENS
    return value is None or is_whole(value, 1, TOKENS)


def group() -> Any:
    """A field for a group of settings that a preset refers to; the group is checked separately."""
    return such("a group of settings, or null", lambda value: value is None or OmegaConf.is_dict(value), None)


def is_target(value: Any) -> bool:
    """Whether Hydra can instantiate ``value``."""
    return OmegaConf.is_dict(value) and "_target_" in value


def is_digits(text: str) -> bool:
    """Whether a text is a whole number of digits 0 to 9, not more of them than any setting has and Python reads."""
    return text.isascii() and text.isdecimal() and len(text) <= 20


def is_finite(value: float) -> bool:
    """Whether a number is one that a float can hold, which a whole number of 400 digits is not."""
    return -sys.float_info.max <= value <= sys.float_info.max


def is_whole(value: Any, low: int = 0, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_list(value: Any, test: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(test(entry) for entry in value)


def _field(limit: Limit, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"limit": limit})
