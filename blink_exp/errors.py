"""Errors that a user can cause and cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One line for the user: the value, the limit and the cure. Entry points print it without a traceback and exit with 2."""


def nearest(value: str, known: Iterable[str]) -> str:
    """A sentence that names the known words closest to ``value``, or all of them if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"use one of: {', '.join(known)}"


def flat(text: object, most: int | None = None) -> str:
    """``text`` on one line, its first ``most`` characters."""
    return " ".join(str(text).split())[:most]
