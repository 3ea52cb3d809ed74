"""Nothing lost: kills runs at random moments (SIGKILL), runs them again, and compares what they leave with what an unbroken run leaves.

python -m bench kill runs=200 seed=7 case=sweep
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open

from bench import report
from blink_exp.errors import UserError, nearest

TITLE = "Nothing lost: runs killed at random moments, and the next one"
ROOT = Path(__file__).resolve().parent.parent
# what a run that was killed may have differently: durations, and how many answers it took over
OWN = {"seconds", "kept", "together", "reused", "date", "images_per_second"}
LEFT_OVER = ("*.part", "*.part.part", "records.rank*", "together.json", ".jobs", "*.tmp")
UNCOMPARED = (".lock", ".locks", ".hydra", "log", "checkpoints")  # of the run, not of its result
# Of the code, which is perhaps worked on meanwhile: of a document in full, of a table's text those of all its points.
COMMIT = re.compile(rb"\b[0-9a-f]{40}(\+changes)?|\bcommits? [0-9a-f]{10}(\+changes)?(, [0-9a-f]{10}(\+changes)?)*")
MOST = 3  # kills before a run is left to end


class Process(Protocol):
    """A run. ``ended``: whether it has; ``end``: waits for it and returns its exit code and what it said."""

    def ended(self) -> bool: ...

    def kill(self) -> None: ...

    def end(self) -> tuple[int, str]: ...


Start = Callable[[list[str]], Process]


class Child:
    """A command in a process of its own."""

    def __init__(self, words: list[str]):
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=self.output, stderr=subprocess.STDOUT)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> tuple[int, str]:
        code = self.process.wait()
        self.output.seek(0)
        return code, self.output.read()


@dataclass(frozen=True)
class Case:
    """A command that is killed. ``words``: with {folder} for the folder that everything goes to; ``compared``: files whose contents must be
    those of an unbroken run; ``resume``: words of the next run where one of the files ``resumes`` is there."""

    name: str
    words: tuple[str, ...]
    compared: tuple[str, ...]
    resume: str | None = None
    resumes: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        words = [*self.words, *([self.resume] if self.resume and any((folder / name).exists() for name in self.resumes) else [])]
        return [word.replace("{folder}", str(folder)) for word in words]


EVALUATION = ("evaluate.py", "method=blink", "limit=12", "batch_size=1", "cost=1", "hydra.run.dir={folder}/run")
SWEEP = ("sweep.py", "limit=6", "batch_size=2", "store={folder}/points", "report={folder}/report")
TRAINING = (
    *("train.py", "layers.indices=[2,3]", "data.train_size=24", "data.held_out_size=4", "hydra.run.dir={folder}/run"),
    *("trainer.callbacks.checkpoint.every_n_train_steps=1",),
)
CHECKPOINTS = ("run/last.ckpt", "run/last.ckpt.old")  # not last.ckpt.part: of a run that was killed while it wrote its first one
RESULTS = ("**/records.jsonl", "**/metrics.json")
CASES = (
    Case("evaluation", EVALUATION, RESULTS),
    Case("devices", (*EVALUATION, "devices=2"), RESULTS),
    Case(
        "sweep",
        (*SWEEP, "-m", "method=none,fastv,blink", "hydra.sweep.dir={folder}/sweep"),
        (*RESULTS, "sweep/summary.csv", "sweep/summary.md"),
    ),
    Case("table", (*SWEEP, "table=blink_table3", "devices=2", "hydra.run.dir={folder}/run"), (*RESULTS, "run/table.json", "run/table.md")),
    Case("report", (*SWEEP, "figure=blink_fig4", "hydra.run.dir={folder}/run"), (*RESULTS, "report/**/figure.json")),
    Case("training", TRAINING, ("run/tokensr/*",), "resume={folder}/run", CHECKPOINTS),
    Case(
        "features",
        (*TRAINING, "data.cache_features=true", "data.cache_path={folder}/features", "data.cache_dtype=float32"),
        ("run/tokensr/*", "features/**/*.safetensors"),
        "resume={folder}/run",
        CHECKPOINTS,
    ),
)


@dataclass
class Trial:
    """A run that was killed after each of ``kills`` seconds; ``problems``: what the last one left that an unbroken run does not."""

    case: str
    seed: int
    kills: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        after = ", ".join(f"{seconds:.2f}" for seconds in self.kills)
        return f"{self.case}, seed {self.seed}: killed after {after} s" + "".join(f"; {problem}" for problem in self.problems)


def unbroken(case: Case, folder: Path, start: Start = Child) -> float:
    """Runs ``case`` to its end in ``folder``. Returns its seconds."""
    begun = time.monotonic()
    code, output = start(case.command(folder)).end()
    if code:
        raise UserError(f"{case.name} fails without being killed: {output.strip().splitlines()[-1:]}")
    return time.monotonic() - begun


def trial(case: Case, whole: Path, seconds: float, folder: Path, seed: int, start: Start = Child) -> Trial:
    """Kills ``case`` in ``folder`` up to ``MOST`` times, runs it to its end and compares with ``whole``, an unbroken run of ``seconds``."""
    rng = random.Random(f"{case.name} {seed}")
    done = Trial(case.name, seed)
    while not done.kills:
        shutil.rmtree(folder, ignore_errors=True)
        for _ in range(rng.randint(1, MOST)):
            after = rng.uniform(0, seconds)
            process = start(case.command(folder))
            if killed(process, after):
                done.kills.append(after)
            process.end()
        seconds /= 2  # of a run that ended before it was killed
    code, output = start(case.command(folder)).end()
    if code:
        done.problems.append(f"the next run ends with {code}: {output.strip().splitlines()[-1:]}")
    else:
        done.problems += differences(case, whole, folder)
    return done


def killed(process: Process, after: float) -> bool:
    """Kills a run ``after`` seconds. False where it had ended by then."""
    until = time.monotonic() + after
    while time.monotonic() < until and not process.ended():
        time.sleep(0.01)
    if process.ended():
        return False
    process.kill()
    return True


def differences(case: Case, whole: Path, folder: Path) -> list[str]:
    """What ``folder`` has that ``whole`` has not, the reverse, and files that are not the same."""
    left = sorted({path.relative_to(folder).as_posix() for pattern in LEFT_OVER for path in folder.rglob(pattern)})
    out = [f"{name} is left over" for name in left]
    names = [{path.relative_to(root).as_posix() for path in files(root)} for root in (whole, folder)]
    out += [f"{name} is missing" for name in sorted(names[0] - names[1])]
    out += [f"{name} is new" for name in sorted(names[1] - names[0] - set(left))]
    compared = sorted({path for pattern in case.compared for path in whole.glob(pattern) if path.is_file()})
    if not compared:
        out.append("there is nothing to compare")
    for path in compared:
        other = folder / path.relative_to(whole)
        if other.is_file() and content(path, whole) != content(other, folder):
            out.append(f"{path.relative_to(whole).as_posix()} differs")
    return out


def files(root: Path) -> Iterator[Path]:
    """The files of a run, without those that say how it went."""
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.is_file() and not set(parts) & set(UNCOMPARED) and path.suffix not in (".log", ".old"):
            yield path


def content(path: Path, root: Path) -> Any:
    """What a file holds, without what belongs to the run rather than its result: the folder, durations."""
    data = COMMIT.sub(b"COMMIT", path.read_bytes().replace(str(root).encode(), b"FOLDER"))
    if path.suffix == ".safetensors":  # whose header has its entries in any order
        with safe_open(path, "pt") as tensors:
            return tensors.metadata(), {name: tensors.get_tensor(name).float().numpy().tobytes() for name in tensors.keys()}  # noqa: SIM118
    if path.suffix == ".json":
        return _shared(json.loads(data))
    if path.suffix == ".csv":
        return [_shared(row) for row in csv.DictReader(io.StringIO(data.decode()))]
    return data


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _cost(v) if k == "cost" else _shared(v) for k, v in value.items() if k not in OWN}
    return [_shared(v) for v in value] if isinstance(value, list) else value


def _cost(value: Any) -> Any:
    """A measured cost without what is measured in seconds and bytes of the process."""
    timed = ("seconds", "peak_memory", "per_second")
    return {k: v for k, v in value.items() if not any(word in k for word in timed)} if isinstance(value, dict) else value


def measure(runs: str | int = 20, seed: str | int = 0, case: str = "all", size: str = "default") -> dict[str, Any]:
    """``runs`` trials, in turn of every case, or of one. ``size``: ``small`` makes one trial of the first case."""
    known = {each.name: each for each in CASES}
    if case != "all" and case not in known:
        raise UserError(f"case={case} is not known; {nearest(case, [*known, 'all'])}")
    chosen = [CASES[0]] if size == "small" else [known[case]] if case != "all" else list(CASES)
    count = 1 if size == "small" else int(runs)
    trials = []
    with tempfile.TemporaryDirectory() as root:
        print(f"first each of {', '.join(each.name for each in chosen)} unbroken", flush=True)
        wholes = {each.name: (Path(root, each.name), unbroken(each, Path(root, each.name))) for each in chosen}
        for n in range(count):
            each = chosen[n % len(chosen)]
            with tempfile.TemporaryDirectory() as folder:
                trials.append(trial(each, *wholes[each.name], Path(folder), int(seed) + n))
            print(trials[-1], flush=True)
    rows = [
        {
            "what": each.name,
            "runs": len(mine),
            "kills": sum(len(t.kills) for t in mine),
            "problems": sum(bool(t.problems) for t in mine),
            "unbroken, seconds": wholes[each.name][1],
        }
        for each in chosen
        if (mine := [t for t in trials if t.case == each.name])
    ]
    broken = [str(t) for t in trials if t.problems]
    return report.result(TITLE, rows, [report.bar("runs that differ", len(broken), 0)], broken or ["Every run ended as an unbroken one."])
