"""The terminal that tables are printed to."""

from __future__ import annotations

from typing import Any


def wide_console() -> Any:
    """A rich console that is wide enough for a table where the output is a file or a pipe.

    It prints labels, categories, overrides and paths letter by letter: "[/bold]" and ":smile:" are text here, never markup.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=130)
