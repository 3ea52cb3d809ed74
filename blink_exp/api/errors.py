"""What a call from Python raises for what a user can cure: a ``UserError`` of one line, as the commands print it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blink_exp.cli import one_line
from blink_exp.errors import UserError
from blink_exp.settings.messages import HYDRA_ERRORS

EXPECTED = (*HYDRA_ERRORS, OSError, OverflowError)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Errors of Hydra, OmegaConf (a reference that leads nowhere) and the operating system (a path that is too long, a file without
    permission) as a ``UserError``. Also a decorator."""
    try:
        yield
    except EXPECTED as error:
        raise UserError(one_line(error)) from error
