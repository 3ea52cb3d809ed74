"""Ranges of settings, each checked where the setting is taken: what is outside raises UserError with the value, the limit and the cure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from blink_exp.errors import UserError, nearest


def shown(value: Any) -> Any:
    """A value as it is written on the command line."""
    return {None: "null", True: "true", False: "false"}.get(value, value) if value is None or isinstance(value, bool) else value


def whole(name: str, value: Any, least: int, most: int | None = None, null: bool = False) -> None:
    """``null``: whether null is a value of this setting."""
    if value is None and null:
        return
    limit = f"{least} or more" if most is None else f"{least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}={shown(value)} is no whole number; use {limit}" + (", or null" if null else ""))
    if value < least or (most is not None and value > most):
        raise UserError(f"{name}={value} is out of range; use {limit}" + (", or null" if null else ""))


def number(name: str, value: Any, least: float, most: float = math.inf, above: bool = False) -> None:
    """``above``: ``least`` itself is outside too."""
    limit = f"a number {'above' if above else 'from'} {least:g}" + (f" to {most:g}" if math.isfinite(most) else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}={shown(value)} is no number; use {limit}")
    if not math.isfinite(value) or value < least or value > most or (above and value == least):
        raise UserError(f"{name}={value} is out of range; use {limit}")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name}={shown(value)} is neither true nor false; use one of them")


def word(name: str, value: Any, known: Iterable[str]) -> None:
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name}={shown(value)} is not known; {nearest(str(shown(value)), known)}")


def path(name: str, value: Any) -> None:
    """A path may be null, but not empty: libraries take that for the working folder, and a shell makes it of a variable that is not set."""
    if value is not None and not str(value).strip():
        raise UserError(f"{name}= is empty; give a path, or leave {name} away")
