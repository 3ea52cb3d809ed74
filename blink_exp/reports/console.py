"""The terminal that tables are printed to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def wide_console() -> Any:
    """A rich console that is wide enough for a table where the output is a file or a pipe.

    It prints labels, categories, overrides and paths letter by letter: "[/bold]" and ":smile:" are text here, never markup.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=130)


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, right: Collection[str] = ()) -> None:
    """Prints a table. ``right``: the headings of ``head`` whose columns stand at the right."""
    from rich.table import Table

    table = Table(title=title)
    for heading in head:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)
