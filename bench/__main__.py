"""``python -m bench``: every benchmark that needs no GPU; ``python -m bench gpu``: the one that does.

python -m bench methods startup            some of them
python -m bench methods size=small         in seconds, on toy shapes: whether it runs, not how fast
python -m bench kill runs=200              kills runs at random and compares what the next one leaves, for hours
python -m bench gpu device=cuda:1          settings go to the benchmark that has them
python -m bench out=outputs/bench          where NAME.json goes
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import sys
import time
from pathlib import Path
from typing import Any

from blink_exp.errors import UserError, nearest
from blink_exp.openmp import wait_briefly

BENCHES = ("methods", "sharing", "budget", "tokensr", "throughput", "loading", "startup", "latency", "divprune", "gpu")
DEFAULT = tuple(name for name in BENCHES if name != "gpu")
ALONE = ("kill",)  # hours; only by name
PARAGRAPH = "\n\n"
SIZES = ("default", "small")


def parse(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of benchmarks and settings. Raises UserError for what is neither."""
    names = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    for name in names:
        if name not in (*BENCHES, *ALONE):
            raise UserError(f"bench {name} is not there; {nearest(name, (*BENCHES, *ALONE))}")
    if settings.get("size", "default") not in SIZES:
        raise UserError(f"size={settings['size']} is not known; use one of: {', '.join(SIZES)}")
    return names or list(DEFAULT), settings


def fitting(name: str, measure: Any, settings: dict[str, str]) -> dict[str, str]:
    """The ``settings`` that ``measure`` of benchmark ``name`` takes. Raises UserError for one that it has not."""
    known = list(inspect.signature(measure).parameters)
    for key in settings:
        if key not in known:
            raise UserError(f"{key}={settings[key]} is no setting of bench {name}; it has: {', '.join([*known, 'out'])}")
    return settings


def run(names: list[str], settings: dict[str, str]) -> list[dict[str, Any]]:
    """Runs benchmarks one after another; each is printed and written as soon as it is done."""
    from bench import report

    folder = Path(settings.pop("out", "outputs/bench"))
    measures = {name: importlib.import_module(f"bench.{name}").measure for name in names}
    taken = {name: fitting(name, measure, settings) for name, measure in measures.items()}
    done = []
    for name, measure in measures.items():
        begun = time.perf_counter()
        result = measure(**taken[name])
        result["settings"] = taken[name]
        if taken[name].get("size") == "small":
            result["notes"].append("size=small is a toy: it shows that the benchmark runs, and its seconds and bars say nothing.")
        result["where"] = report.provenance(result.pop("device", "cpu"))
        result["seconds"] = round(time.perf_counter() - begun, 1)
        report.show(result)
        print(f"written to {report.save(name, result, folder)} ({result['seconds']} s, {result['where']['device']})")
        done.append(result)
    return done


def described(name: str) -> str:
    """A line of --help: a benchmark, and what its module says that it is. Read from the file, since importing it takes seconds."""
    text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_bytes())) or ""
    return f"{name:<12} {' '.join(text.partition(PARAGRAPH)[0].split())}"


def main(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a benchmark's result is seen when it is there, in a file as well
    wait_briefly()
    if set(words) & {"-h", "--help"}:
        print(__doc__, *map(described, (*BENCHES, *ALONE)), sep="\n")
        return 0
    try:
        run(*parse(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
