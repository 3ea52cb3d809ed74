"""What a tracker is told about a run, whatever it writes to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blink_exp.errors import flat

Picture = Any  # a file, a PIL image, or a (height, width, 3) array of bytes


Boxes = Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Run:
    """What a run is found by. ``group``: the sweep that it is a point of; ``tags``: "kind:value"; ``job``: point, summary or train."""

    name: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    job: str = "point"


class Tracker(Protocol):
    """A run of a logger. Names are stable and have slashes ("scores/total"); None and values that are no number are left out before."""

    def metrics(self, values: dict[str, float]) -> None:
        """Numbers of the run as a whole."""
        ...

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None:
        """Numbers over ``axis``, which every row holds too."""
        ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Cells are numbers, text or None, one kind a column."""
        ...

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None:
        """``boxes``: left, top, right, bottom as fractions of the picture, drawn over it."""
        ...

    def close(self, failed: bool = False) -> None: ...


class NullTracker:
    """The logger of `logger=csv`: the output folder has it all."""

    def metrics(self, values: dict[str, float]) -> None: ...

    def curve(self, axis: str, rows: list[dict[str, float]]) -> None: ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def image(self, key: str, picture: Picture, caption: str = "", boxes: Boxes = ()) -> None: ...

    def close(self, failed: bool = False) -> None: ...


def attempt(kind: str, act: Callable[[], Any], silent: bool = False) -> tuple[bool, Any]:
    """(whether ``act`` went well, what it gave). A failure is one line on stderr: no logger may cost a result."""
    try:
        return True, act()
    except Exception as error:
        if not silent:
            problem = flat(error, 300) or type(error).__name__
            print(f"warning: logger={kind} stopped ({problem}); results are in the output folder all the same", file=sys.stderr)
        return False, None


class SafeTracker:
    """A track that falls silent at its first failure. It is closed all the same."""

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
