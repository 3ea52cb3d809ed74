"""The one line that a user reads where something is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blink_exp.errors import UserError
from support.scripts import run


def refusal(act: Callable[[], object]) -> str:
    """What ``act`` is refused with, for the test to look into. Fails where it is not refused, or in more than one line."""
    with pytest.raises(UserError) as error:
        act()
    text = str(error.value)
    assert text and "\n" not in text
    return text


def one_line_of(words: list[str]) -> str:
    """The only line on stderr of a command that ends with exit code 2."""
    done = run(words)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line
