"""What a run is about to do, how long it took the last time, and the command that looks closer at what it did."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path

from blink_exp.documents.records import Record
from blink_exp.errors import UserError, printable
from blink_exp.evaluation import results, store
from blink_exp.files import read_object
from blink_exp.reports.entries import duration
from blink_exp.settings.doors import command_line
from blink_exp.settings.roots import PointSettings
from blink_exp.settings.values import read_settings

RECENT = 20  # earlier runs that are looked into
NOT_VIEWED = (  # settings of a run, or of its sweep, that the page of a question does not need
    *("hydra", "shard=", "devices=", "logger", "limit=", "cost=", "store=", "force=", "batch_size=", "workers="),
    *("share=", "report=", "objective=", "token_price=", "skip_limit="),
)
SAME = ("model", "method", "benchmark")  # settings that an earlier run must share


def announcement(settings: PointSettings, choices: Mapping[str, str | None], out: Path) -> str:
    """ "method=blink benchmark=mosaic_mme model=scale_llava; last time 640 questions in 21.3 s (2026-11-28)".

    ``choices``: {config group: preset}, as Hydra has them; ``out``: the output folder, beside which earlier runs lie."""
    words = [f"{group}={choices[group]}" for group in ("method", "benchmark", "model") if choices.get(group)]
    words += [f"limit={settings.limit}"] if settings.limit else []
    return " ".join(words) + (f"; last time {last}" if (last := last_time(settings, out)) else "")


def last_time(settings: PointSettings, out: Path) -> str | None:
    """Questions and time of the newest finished run beside ``out`` on the same model, method and benchmark; None where there is none."""
    wanted = {key: asdict(settings)[key] for key in SAME}
    for _, folder in sorted(earlier(out), reverse=True)[:RECENT]:
        try:
            settings_then = read_settings(folder / results.CONFIG, "")
            metrics = read_object(folder / "metrics.json", store.PACE, "")
        except UserError:  # damaged; it is no business of this run
            continue
        if {key: settings_then.get(key) for key in SAME} == wanted:
            day = date.fromtimestamp((folder / "metrics.json").stat().st_mtime).isoformat()
            return f"{metrics['samples']} questions in {duration(metrics['seconds'])} ({day})"
    return None


def earlier(out: Path) -> Iterable[tuple[float, Path]]:
    """(time of its end, folder) of every finished run beside ``out``."""
    for path in out.parent.glob("*/metrics.json"):
        if path.parent != out:
            yield path.stat().st_mtime, path.parent


def closer(records: Iterable[Record], overrides: Iterable[str]) -> str | None:
    """The command that shows one question of a run, layer by layer: the first that was answered wrongly, else the first. None where
    nothing was asked."""
    asked = (record for record in records if record.get("prediction") is not None)
    first = next(asked, None)
    if first is None:
        return None
    shown = next((record for record in itertools.chain([first], asked) if record.get("correct") == 0), first)
    words = [word for word in overrides if not word.lstrip("+~").startswith(NOT_VIEWED)]
    words = [*(["--config-dir", folder] if (folder := config_dir()) else []), *searched(), *words]
    return printable(command_line("view", [*words, f"sample={shown['id']}"]))


def searched() -> list[str]:
    """The hydra.searchpath of this command, in whose folders presets may be. It is no setting of the run, so its overrides lack it."""
    return [word for word in sys.argv[1:] if word.lstrip("+").startswith("hydra.searchpath=")]


def config_dir() -> str | None:
    """The --config-dir of this command, whose presets a command that follows needs too."""
    for word, behind in itertools.pairwise([*sys.argv[1:], ""]):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            return value if equals else behind
    return None
