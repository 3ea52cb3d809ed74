"""The seam to loggers: five things that a run can be told, and a block that is closed whatever happens in it."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from blink_exp.errors import UserError, flat
from blink_exp.settings.check import check_values
from blink_exp.settings.targets import BY_KIND, Logger

NEEDED = {  # packages of a kind of logger, and what installs them
    "csv": ((), ""),
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard",), "tensorboard"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "mlflow-skinny sqlalchemy alembic"),
}
Picture = Any  # a file, a PIL image, or a (height, width, 3) array of bytes
Boxes = Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Run:
    """What a run is found by. ``group``: the sweep that it is a point of; ``tags``: "kind:value"; ``job``: point, summary or train."""

    name: str
    group: str | None = None
    tags: tuple[str, ...] = ()
    job: str = "point"


class Track(Protocol):
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


class Nothing:
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
            said = flat(error, 300) or type(error).__name__
            print(f"warning: logger={kind} stopped ({said}); results are in the output folder all the same", file=sys.stderr)
        return False, None


class Careful:
    """A track that falls silent at its first failure. It is closed all the same."""

    def __init__(self, kind: str, make: Callable[[], Track]):
        self.kind = kind
        self.working, made = attempt(kind, make)
        self.inner: Track = made if self.working else Nothing()

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


def check(settings: dict[str, Any]) -> None:
    """Says before any work what ``settings["logger"]`` lacks: a package, or W&B's key (asked for where there is a terminal), and what it
    holds that the logger would refuse at its first run, as far as that can be told without a network.

    Raises:
        UserError: for a kind that is not known, a package that is not installed, a name or number that is refused, or no key.
    """
    logger = settings["logger"]
    kind = logger["kind"]
    check_values(Logger, "logger.", {"kind": kind})
    check_values(BY_KIND[kind], "logger.", logger)
    modules, install = NEEDED[kind]
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    if absent:
        raise UserError(f"logger={kind} needs {', '.join(absent)}; pip install {install}, or use logger=csv")
    if kind == "wandb":
        from blink_exp.tracking.weights_and_biases import check_key, check_names

        check_names(logger)
        check_key(logger)
    if kind == "mlflow":
        from blink_exp.tracking.lightning import check_mlflow

        check_mlflow(logger)


@contextlib.contextmanager
def tracker(
    settings: dict[str, Any], out: Path, name: str, group: str | None = None, tags: Sequence[str] = (), job: str = "point"
) -> Iterator[Track]:
    """A run of the logger in ``settings["logger"]``, its files below ``out``, the rest of ``settings`` its configuration.

    It is closed with the block, whatever happens in it: otherwise the next job of a sweep would go on writing to this job's run. What
    fails in a logger is said and never raised; what fails in the block is raised.
    """
    kind = settings["logger"]["kind"]
    run = Run(name, group, tuple(tags), job)
    track: Track = Nothing() if kind == "csv" else Careful(kind, lambda: opened(settings, Path(out), run))
    failed = True
    try:
        yield track
        failed = False
    finally:
        track.close(failed)


def opened(settings: dict[str, Any], out: Path, run: Run) -> Track:
    check(settings)
    out.mkdir(parents=True, exist_ok=True)
    kind = settings["logger"]["kind"]
    if kind == "wandb":
        from blink_exp.tracking.weights_and_biases import WandbTrack

        return WandbTrack(settings, out, run)
    from blink_exp.tracking import lightning

    return (lightning.TensorBoardTrack if kind == "tensorboard" else lightning.MLflowTrack)(settings, out, run)
