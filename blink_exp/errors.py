"""User errors and helpers for one-line messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from blink_exp.keys import masked


class UserError(ValueError):
    """One line for the user: the value, the limit and the cure. Entry points print it without a traceback and exit with 2."""


# Messages of failed allocations that torch raises as plain RuntimeError: of main memory (Windows says "not enough"), C++, oneDNN, cuBLAS,
# cuDNN and CUDA's driver. oneDNN's "could not create a primitive descriptor" is another error: shapes or types that it cannot take.
ALLOCATION = re.compile(
    r"can't allocate memory|not enough memory|std::bad_alloc|could not create a primitive(?! descriptor)|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
    r"|CUDA error: out of memory"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or under a limit of the process (ulimit -v). torch's own class is matched by its
    name, as torch is not imported here."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and ALLOCATION.search(str(error)) is not None)


def is_expected(error: BaseException) -> bool:
    """Whether an error is one line for the user rather than a fault of the program: of settings and files, and of memory that runs out."""
    return isinstance(error, UserError | OSError) or out_of_memory(error)


def nearest(value: str, choices: Iterable[str]) -> str:
    """A sentence that names the known words closest to ``value``, or all of them if none is close."""
    choices = sorted(choices)
    close = difflib.get_close_matches(value, choices, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"use one of: {', '.join(choices)}"


def flat(text: object, most: int | None = None) -> str:
    """``text`` on one line, its first ``most`` characters."""
    return " ".join(str(text).split())[:most]


# Default repr of an object: "<_io.BytesIO object at 0x7f0c...>" differs from run to run.
ADDRESS = re.compile(r"<_io\.\w+[^>]*>|<[^<>]*? at 0x[0-9a-fA-F]+>|\bat 0x[0-9a-fA-F]+")
REASON = 200  # characters of a reason


def reason(error: object) -> str:
    """The reason for a skip: one line of at most 200 printable characters without keys, the same in every run. Without a message: its
    type."""
    text = flat(ADDRESS.sub("", printable(masked(str(error)[: 10 * REASON]))))
    return flat(text if len(text) <= REASON else text[: REASON - 3] + "...") or type(error).__name__


def printable(text: str) -> str:
    """``text`` with a space for every line break and control character, and U+FFFD for what no terminal can encode."""
    return "".join(c if c.isprintable() else "\ufffd" if "\ud800" <= c <= "\udfff" else " " for c in text)
