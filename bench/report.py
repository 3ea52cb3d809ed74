"""What a benchmark gives back, and how it is printed and kept. Needs torch and transformers only; with rich the table is prettier."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import torch

from blink_exp.markdown import table

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "flash-attn")
Row = dict[str, Any]


def bar(what: str, value: float | None, limit: float, at_most: bool = True) -> Row:
    """A limit that is to be held, with what was measured; ``value`` None: not measured, so neither met nor missed."""
    met = None if value is None else bool(value <= limit if at_most else value >= limit)
    return {"what": what, "value": value, "bar": f"{'<=' if at_most else '>='} {limit:g}", "met": met}


def result(title: str, rows: Rows[Row], bars: Rows[Row] = (), notes: Rows[str] = (), columns: Rows[str] | None = None) -> dict[str, Any]:
    """What ``measure`` gives back. ``columns``: left at None, those of the rows in their order. A cell that a row lacks stays empty."""
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    return {"title": title, "columns": names, "rows": [dict(row) for row in rows], "bars": list(bars), "notes": list(notes)}


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Where, when and with what: device, versions, threads, date and commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(device))
        what = {"device": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    else:
        what = {"device": _processor(), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**what, "versions": versions, "date": date, "commit": _commit()}


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cell(value: Any) -> str:
    """A value as a table shows it: three significant digits or one decimal, thousands set apart; nothing where nothing was measured."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def verdict(line: Row) -> str:
    """One bar in words."""
    outcome = {True: "met", False: "MISSED", None: "not measured"}[line["met"]]
    return f"{outcome}: {line['what']}: {cell(line['value'])} (bar {line['bar']})".replace(":  (", ": (")


def markdown(document: dict[str, Any]) -> str:
    """The table of a result as docs/performance.md has it."""
    columns = document["columns"]
    return table(columns, ([cell(row.get(name)) for name in columns] for row in document["rows"]))


def page(document: dict[str, Any]) -> str:
    """Table, bars, profile and notes of a result in markdown, with where it was measured."""
    where = document.get("where", {})
    versions = ", ".join(f"{name} {version}" for name, version in where.get("versions", {}).items())
    lines = [markdown(document), "", *(f"- {verdict(line)}" for line in document["bars"])]
    for name, operators in document.get("profile", {}).items():
        lines += ["", f"{name}:", "", markdown(result("", [o | {"share": f"{o['share']:.1%}"} for o in operators]))]
    lines += ["", *(f"- {note}" for note in document["notes"])]
    what = ", ".join(f"{key} {where[key]}" for key in ("device", "threads", "date", "commit") if where.get(key) is not None)
    return "\n".join([*lines, "", f"{what}; {versions}"])


def show(document: dict[str, Any]) -> None:
    """Prints table, bars and notes."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{document['title']}\n{markdown(document)}")
    else:
        table = Table(title=document["title"], title_justify="left")
        for number, name in enumerate(document["columns"]):
            table.add_column(name, justify="right" if number else "left")
        for row in document["rows"]:
            table.add_row(*(cell(row.get(name)) for name in document["columns"]))
        plain = {"markup": False, "emoji": False}  # names of presets and devices are text
        console = Console(**plain)
        (console if console.is_terminal else Console(width=max(130, 13 * len(document["columns"])), **plain)).print(table)
    for line in document["bars"]:
        print(verdict(line))
    for name, lines in document.get("profile", {}).items():
        print(f"profile of {name}: " + ", ".join(f"{line['operator']} {line['share']:.0%} ({line['calls']} calls)" for line in lines))
    for note in document["notes"]:
        print(f"note: {note}")


def save(name: str, document: dict[str, Any], folder: Path) -> Path:
    """Writes ``folder``/``name``.json and, for a page of the docs, ``name``.md; whole files or nothing. Returns the first's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    for file, text in ((path, json.dumps(document, indent=2, allow_nan=False)), (path.with_suffix(".md"), page(document))):
        part = file.with_name(file.name + ".part")
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, file)
    return path
