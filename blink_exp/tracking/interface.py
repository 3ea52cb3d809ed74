"""The interface of trackers, independent of the logger."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from blink_exp.documents.settings import PlainSettings
from blink_exp.errors import flat
from blink_exp.keys import masked

Picture = Any  # a file, a PIL image, or a (height, width, 3) array of bytes


Boxes = Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Run:
    """Identifies a run. ``group``: the sweep of the point; ``tags``: "kind:value"; ``job``: point, summary or train; ``config``: the
    settings that are logged with it (``names.config_of``)."""

    name: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    job: str = "point"
    config: PlainSettings = field(default_factory=dict)


class Tracker(Protocol):
    """A run of a logger. Names are stable and contain slashes ("scores/total"); values are numbers, never None."""

    def metrics(self, values: dict[str, float]) -> None:
        """Numbers of the run as a whole."""
        ...

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None:
        """Numbers over ``axis``, a key of every row."""
        ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Cells are numbers, text or None, one kind a column."""
        ...

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        """``boxes``: left, top, right, bottom as fractions of the picture, drawn over it."""
        ...

    def close(self, failed: bool = False) -> None: ...


class NullTracker:
    """The tracker of `logger=csv`: logs nothing besides the output folder."""

    def metrics(self, values: dict[str, float]) -> None: ...

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None: ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None: ...

    def close(self, failed: bool = False) -> None: ...


@contextlib.contextmanager
def warned(kind: str) -> Iterator[None]:
    """A failure ends the block and prints one line on stderr: a logger must never cost a result."""
    try:
        yield
    except Exception as error:
        problem = flat(masked(str(error)), 300) or type(error).__name__
        print(f"warning: logger={kind} stopped ({problem}); results are in the output folder all the same", file=sys.stderr)


def attempt(kind: str, act: Callable[[], Any], silent: bool = False) -> tuple[bool, Any]:
    """(success, result of ``act``); a failure as in ``warned``, or without the line."""
    with contextlib.suppress(Exception) if silent else warned(kind):
        return True, act()
    return False, None


class SafeTracker:
    """A tracker that stops logging at its first failure. It is closed in any case."""

    def __init__(self, kind: str, make: Callable[[], Tracker]):
        self.kind = kind
        self.working, tracker = attempt(kind, make)
        self.inner: Tracker = tracker if self.working else NullTracker()

    def metrics(self, values: dict[str, float]) -> None:
        self._say(lambda: self.inner.metrics(values))

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None:
        self._say(lambda: self.inner.curve(axis, rows))

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        self._say(lambda: self.inner.table(key, columns, rows))

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        self._say(lambda: self.inner.image(key, picture, caption, boxes))

    def close(self, failed: bool = False) -> None:
        attempt(self.kind, lambda: self.inner.close(failed or not self.working), silent=not self.working)

    def _say(self, act: Callable[[], Any]) -> None:
        if self.working:
            self.working, _ = attempt(self.kind, act)
