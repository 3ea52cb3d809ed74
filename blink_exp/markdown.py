"""Markdown: tables, and text from outside that shows as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Iterable[object]], left: Sequence[int] = (0,)) -> str:
    """A pipe table of ``head`` and ``rows``; columns ``left`` are aligned to the left, the others, which hold numbers, to the right."""
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    return "\n".join([line(head), "|" + "|".join(rule) + "|", *map(line, rows)])


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def escaped(text: str) -> str:
    """Text on one line in which nothing is markup: no link, no HTML, no end of a cell."""
    return re.sub(r"([\\`*|<]|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text on one line as code, fenced by more backticks than it holds in a row."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
