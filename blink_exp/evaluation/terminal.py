"""Terminal output of a run: progress bar, scores, cost per prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blink_exp.documents.runs import Cost, Metrics, PairedTest
from blink_exp.errors import flat, printable
from blink_exp.reports.cells import p_value, signed
from blink_exp.reports.console import wide_console
from blink_exp.reports.entries import duration
from blink_exp.stopping import stopping

EVERY = 30.0  # seconds between two progress lines


def show_run(finished: Metrics, out: Path) -> dict[str, float]:
    """Shows a finished run and where its files are. Returns its scores by name."""
    show(finished)
    for file in finished["files"]:
        print(f"to be scored elsewhere: {out / file}")
    print(f"written to {out}")
    return {name: score["value"] for name, score in finished["scores"].items()}


def show(finished: Metrics) -> None:
    """The scores as a table on the terminal."""
    from rich.table import Table

    protocol = "" if finished["protocol"] == "own" else f", {finished['split']} split, protocol {finished['protocol']}"
    measured = f"{finished['method']} on {finished['benchmark']}{protocol}"
    table = Table(title=printable(f"{measured} (measured here, {finished['backbone']})"))
    for column in ("score", "value", "stderr", "samples"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, score in finished["scores"].items():
        table.add_row(clip_label(name), number(score["value"]), number(score["stderr"]), str(score["samples"]))
    loaded = {"dtype": finished.get("dtype"), "pad": finished.get("pad"), "system_prompt": finished.get("system_prompt")}
    table.caption = printable(", ".join(f"{k} {v}".lower() for k, v in loaded.items() if v not in (None, "none"))) or None
    console = wide_console()
    console.print(table if finished["scores"] else f"{finished['samples']} predictions on {printable(finished['benchmark'])}, no score yet")
    if finished.get("differences"):
        console.print(differences(finished["differences"], str(finished["against"])))
    if finished["without_answer"]:
        console.print(f"{finished['without_answer']} of {finished['samples']} rows have no answer to compare with: predicted, not scored")
    if finished["layers"] and "blink" in finished:
        tokens = [v["visual_tokens"] for v in finished["blink"]["layers"].values()]
        console.print(f"layers {finished['layers']}, visual tokens by layer {[round(t) for t in tokens]}", highlight=False)
    if finished["cost"]:
        console.print(cost_line(finished["cost"]), highlight=False)
    if finished["skipped"]:
        console.print(f"{len(finished['skipped'])} samples skipped (see metrics.json)")


def differences(by_score: dict[str, PairedTest], against: str) -> Any:
    """Differences from the run ``against`` on the same questions, as a table (``reports.statistics.compare``)."""
    from rich.table import Table

    table = Table(title=printable(f"difference from {against}"))
    for column in ("score", "difference", "95 % interval", "p", "test", "detectable", "samples"):
        table.add_column(column, justify="left" if column in ("score", "test") else "right")
    for name, test in by_score.items():
        low, high = signed(test["low"], 2), signed(test["high"], 2)
        interval = f"{low} to {high}" if low and high else ""
        least, n = number(test["detectable"]), str(test["n"])
        table.add_row(clip_label(name), signed(test["delta"], 2), interval, p_value(test["p"]), test["test"], least, n)
    return table


def clip_label(text: object) -> str:
    """A label, category or path shortened to one table line."""
    return flat(printable(str(text)), 100)


def number(value: float | None) -> str:
    """Two decimals; "" for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def cost_line(cost: Cost) -> str:
    """The cost of a prompt as a sentence."""
    layers = cost["tokens_by_layer"]
    return (
        f"a prompt: {cost['visual_tokens']:.0f} of {cost['visual_tokens_nominal']:.0f} visual tokens enter the LLM"
        f" (+ {cost['newline_tokens']:.0f} newlines), {sum(layers) / len(layers):.0f} tokens a layer on average;"
        f" prefill {cost['prefill_flops_formula'] / 1e9:.2f} GFLOPs by formula, {cost['prefill_flops_counted'] / 1e9:.2f} counted;"
        f" {cost['kv_bytes'] / 2**20:.2f} MiB of keys and values; encode {1e3 * cost['encode_seconds']:.0f} ms,"
        f" prefill {1e3 * cost['prefill_seconds']:.0f} ms, decode {cost['decode_tokens_per_second']:.0f} tokens/s"
    )


class bar:
    """A progress bar on a terminal; in a file or pipe, a line per tenth and per 30 seconds. Yields a function that advances it and that
    raises KeyboardInterrupt if a signal asked the run to stop (``stopping``)."""

    def __init__(self, total: int | None, title: str, visible: bool):
        from rich.markup import escape
        from rich.progress import Progress

        terminal = wide_console().is_terminal
        self.progress = Progress(transient=True, disable=not (visible and terminal))
        self.lines = Lines(total, title) if visible and not terminal else None
        self.total, self.title = total, escape(flat(printable(title), 100))  # the bar's own columns are markup

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        task = self.progress.add_task(self.title, total=self.total)

        def advance(n: int) -> None:
            if stopping():
                raise KeyboardInterrupt
            self.progress.advance(task, n)
            if self.lines is not None:
                self.lines.advance(n)

        return advance

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


class Lines:
    """Progress as lines of text. ``clock``: returns seconds."""

    def __init__(self, total: int | None, title: str, clock: Callable[[], float] = time.monotonic):
        self.total, self.title, self.clock = total, title, clock
        self.done, self.tenth = 0, 0
        self.reused, self.spent = 0, 0.0  # done within the first second: reused answers, excluded from the pace
        self.started = self.last = clock()

    def advance(self, n: int) -> None:
        self.done += n
        now = self.clock()
        if now - self.started < 1:
            self.reused, self.spent = self.done, now - self.started
        tenth = 10 * self.done // self.total if self.total else 0
        if n and (tenth > self.tenth or now - self.last >= EVERY):
            print(self.line(now - self.started), flush=True)
            self.tenth, self.last = tenth, now

    def line(self, spent: float) -> str:
        """ "blink on mme: 640 of 2374 (26 %), 2 min 05 s, about 5 min 39 s left"."""
        if not self.total:
            return f"{self.title}: {self.done}, {duration(spent)}"
        rest = ""
        if self.reused < self.done < self.total:
            rest = f", about {duration((spent - self.spent) * (self.total - self.done) / (self.done - self.reused))} left"
        return f"{self.title}: {self.done} of {self.total} ({100 * self.done // self.total} %), {duration(spent)}{rest}"
