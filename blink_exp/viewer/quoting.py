"""Questions, file names and sample ids on the command line, as a user writes them.

Hydra reads a value by a grammar of its own, in which commas, quotes, brackets and colons mean something, so ``question="Is it red, or
blue?"`` would be taken for a sweep. Imports nothing heavy, as entry points call it first.
"""

from __future__ import annotations

import re

from blink_exp.viewer import KEYS


def quoted(argv: list[str]) -> list[str]:
    """Command-line words, in which the values of the viewer's keys are quoted for Hydra, so that they arrive letter by letter.

    null, an empty value and what is quoted already stay as they are, and so does everything in a multirun, where commas do mean a sweep.
    """
    if "-m" in argv or "--multirun" in argv:
        return list(argv)
    return [_quoted(word) for word in argv]


def _quoted(word: str) -> str:
    key, is_, value = word.partition("=")
    already = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key not in KEYS or not is_ or value in ("", "null") or already:
        return word
    # Between quotes a backslash means something only in front of a quote, to Hydra, and in front of ${, to OmegaConf.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"{key}='{value}'"
