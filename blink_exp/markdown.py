"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Iterable[object]], left: Sequence[int] = (0,)) -> str:
    """A pipe table of ``head`` and ``rows``; columns ``left`` are aligned to the left, the others, which hold numbers, to the right."""
    rule = ["---" if column in left else "---:" for column in range(len(head))]
    return "\n".join([line(head), "|" + "|".join(rule) + "|", *map(line, rows)])


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
