"""What a run costs before it does anything: the help, imports, composing the config, loading a model, and what every point pays again."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import report
from bench.timing import median_seconds

TITLE = "Start-up: seconds before the work"
HELP = 1.0
ROOT = Path(__file__).resolve().parent.parent
MODULES = ("hydra", "torch", "transformers", "blink_exp.evaluation.evaluator", "blink_exp.training.training")
# Run in a process of its own: seconds of composing and of loading, and of what a second point of the same process pays.
POINT = """
import time
from blink_exp.settings.compose import composed as compose
begun = time.perf_counter()
cfg = compose("evaluate", {overrides})
composed = time.perf_counter()
from blink_exp.evaluation import evaluator, identity
imported = time.perf_counter()
evaluator.prepare(cfg)
prepared = time.perf_counter()
evaluator.prepare(cfg)
again = time.perf_counter()
identity.config_hash(cfg, identity.digests(cfg))
hashed = time.perf_counter()
print(composed - begun, prepared - imported, again - prepared, hashed - again)
"""
PARTS = (
    "compose the configuration",
    "first point: backbone, method and benchmark",
    "every further point: the same, its backbone still in memory",
    "every point: the hash that finished points are known by",
)


def measure(size: str = "default", repeats: str | int = 5) -> dict[str, Any]:
    """Medians over ``repeats`` processes, as each of these is paid once a process. ``size``: ``small`` runs each once."""
    count = 1 if size == "small" else int(repeats)
    helps = {f"python {name}.py --help": took([f"{name}.py", "--help"], count) for name in ("train", "evaluate", "sweep")}
    rows: list[dict[str, Any]] = [{"what": what, "seconds": value} for what, value in helps.items()]
    rows += [{"what": f"import {name}", "seconds": imported(name, count)} for name in (MODULES[:2] if size == "small" else MODULES)]
    if size != "small":
        overrides = ["method=blink", "limit=1"]
        parts = [split([sys.executable, "-c", POINT.format(overrides=overrides)]) for _ in range(count)]
        rows += [{"what": what, "seconds": statistics.median(values)} for what, values in zip(PARTS, zip(*parts, strict=True), strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            asked = statistics.median(took(one_question(f"{folder}/{i}"), 1) for i in range(count))
        rows.append({"what": "python evaluate.py method=blink limit=1 cost=0: one question, all in all", "seconds": asked})
    notes = ["Each in a process of its own; imports without the interpreter's own start, with everything that they pull in."]
    return report.result(TITLE, rows, [report.bar("slowest --help, seconds", max(helps.values()), HELP)], notes)


def one_question(folder: str) -> list[str]:
    return ["evaluate.py", "method=blink", "limit=1", "cost=0", f"hydra.run.dir={folder}"]


def took(words: list[str], repeats: int) -> float:
    """Median seconds of ``python words``."""
    return median_seconds(lambda: output([sys.executable, *words]), repeats, warm=0)


def imported(name: str, repeats: int) -> float:
    """Median seconds of an import, measured inside its process."""
    code = f"import time; begun = time.perf_counter(); import {name}; print(time.perf_counter() - begun)"
    return statistics.median(split([sys.executable, "-c", code])[0] for _ in range(repeats))


def split(command: list[str]) -> list[float]:
    """The numbers of the last line that a command prints."""
    return [float(word) for word in output(command).strip().splitlines()[-1].split()]


def output(command: list[str]) -> str:
    """What a command prints. Raises RuntimeError with its last words where it fails: seconds of a failure are not a result."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
