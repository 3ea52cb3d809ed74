"""The package as users install it: a wheel in an environment of its own, run from an empty folder."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support import scripts
from support.scripts import ROOT

from blink_exp.settings import doors, folders
from blink_exp.settings.doors import COMMANDS, SCRIPTS, as_typed, command_line, command_name

DOORS = (*SCRIPTS, *COMMANDS)
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]) if sys.argv[2] == "sdist" else build_meta.build_wheel(sys.argv[1]))
"""
# runs console scripts one after the other in one process: importing torch is what takes long
DRIVER = """
import json, os, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = [os.path.join(os.path.dirname(sys.executable), words[0]), *words[1:]]
    os.environ.pop("HYDRA_FULL_ERROR", None)  # entry() sets it
    print("RUN", *words, flush=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("CODE", code, flush=True)
import blink_exp
print("FROM", blink_exp.__file__)
"""


def files() -> list[str]:
    """The files of the tree, as paths from its root."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def built(tree: Path, out: Path, kind: str) -> Path:
    """The sdist or wheel that setuptools builds of a tree. No network: the build runs in this environment."""
    done = subprocess.run([sys.executable, "-c", BUILD, str(out), kind], cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> tuple[Path, Path, Path]:
    """The sdist of a copy of the tree, the wheel of the sdist, and the wheel of the copy."""
    folder = tmp_path_factory.mktemp("build")
    for name in files():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, path)
    sdist = built(folder / "tree", folder, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    of_sdist, of_tree = folder / "of_sdist", folder / "of_tree"
    return sdist, built(source, of_sdist, "wheel"), built(folder / "tree", of_tree, "wheel")


@pytest.fixture(scope="module")
def environment(builds, tmp_path_factory) -> Path:
    """A virtual environment with the wheel. Its dependencies are those of this environment, whose own blink_exp comes behind."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, str(builds[1])], check=True, timeout=120)
    (site,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(others), encoding="utf-8")  # a path on its own: .pth files there are not read
    return folder


def run(environment: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A console script of the environment, run as a user does in ``folder``."""
    return started([str(environment / "bin" / words[0]), *words[1:]], folder)


def started(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HYDRA_FULL_ERROR")} | {"COLUMNS": "200"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_sdist_makes_the_wheel_that_the_tree_makes(builds):
    _, of_sdist, of_tree = builds
    assert contents(of_sdist) == contents(of_tree)


@pytest.mark.slow
def test_a_wheel_holds_the_package_its_settings_and_plugins_and_nothing_else(builds):
    names = set(contents(builds[1]))
    inside = {name for name in files() if name.startswith(("blink_exp/", "hydra_plugins/"))}
    inside |= {f"blink_exp/{name}" for name in files() if name.startswith("conf/")}
    assert {name for name in names if ".dist-info/" not in name} == inside
    assert "blink_exp/conf/table/blink_table2.yaml" in names and "hydra_plugins/__init__.py" not in names
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("/")[2] for name in names}


@pytest.mark.slow
def test_an_sdist_holds_what_the_tests_and_documents_need(builds):
    with tarfile.open(builds[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    unneeded = {name for name in files() if name.split("/")[0] in (".ci", ".gitignore", ".github")}
    assert set(files()) - names <= unneeded


def test_every_command_has_a_console_script():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {f"blink-{name}": f"blink_exp.scripts:{name}" for name in DOORS}


@pytest.mark.slow
def test_a_wheel_measures_in_the_user_s_folder_what_the_clone_measures(environment, tmp_path):
    (site,) = environment.glob("lib/python*/site-packages")
    before = {path for path in site.rglob("*") if "__pycache__" not in path.parts}
    folder, clone = tmp_path / "empty", tmp_path / "clone"
    folder.mkdir()
    point = ["method=blink", "limit=3", "cost=0"]
    table = ["table=blink_table2", "limit=1", "benchmark=mosaic_detail", "hydra.run.dir=outputs/demo"]
    commands = [
        ["blink-evaluate", *point, "hydra.run.dir=outputs/point"],
        ["blink-evaluate", *point],
        ["blink-sweep", *table],
        ["blink-sweep", "-m", "thresholds=high_exp,low_drop", "limit=2", "cost=0"],
        ["blink-evaluate", "thresholds.tau_exp=2"],
        ["blink-evaluate", "layers.indices=[3]", "limit=1"],
        ["blink-evaluate", "table=blink_table2"],
    ]
    done = started([str(environment / "bin" / "python"), "-c", DRIVER, json.dumps(commands)], folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("CODE")] == [*["CODE 0"] * 4, *["CODE 2"] * 3], done.stdout + done.stderr
    assert Path(next(line for line in lines if line.startswith("FROM ")).split(" ", 1)[1]).is_relative_to(site)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "train it: blink-train layer=3" in errors[1]
    assert errors[2].endswith("use blink-sweep table=blink_table2")

    assert {path.name for path in folder.iterdir()} == {"outputs"}
    assert {path.name for path in (folder / "outputs").iterdir()} == {"point", "evaluate", "demo", "sweep", "points", "report"}
    assert (folder / "outputs" / "point" / "evaluate.log").is_file()
    assert {path for path in site.rglob("*") if "__pycache__" not in path.parts} == before  # nothing is written beside the code
    metrics = json.loads((folder / "outputs" / "point" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["commit"] is None and metrics["versions"]["blink_exp"]
    document = json.loads((folder / "outputs" / "demo" / "table.json").read_text(encoding="utf-8"))
    assert document["command"].startswith("blink-sweep table=blink_table2")
    measured = [run for row in document["rows"] for run in row["runs"].values()]
    assert len(measured) == 18 and all(run["status"] == "done" and run["command"].startswith("blink-evaluate ") for run in measured)

    assert scripts.run(["evaluate.py", *point, f"hydra.run.dir={clone / 'point'}"]).returncode == 0
    assert (clone / "point" / "records.jsonl").read_bytes() == (folder / "outputs" / "point" / "records.jsonl").read_bytes()
    (run,) = next(row for row in document["rows"] if row["point"] == "Blink / full")["runs"].values()
    words = shlex.split(run["command"])[1:]  # what the report says runs this point alone
    assert scripts.run(["evaluate.py", *words, "cost=0", f"hydra.run.dir={clone / 'row'}"]).returncode == 0
    scores = json.loads((clone / "row" / "metrics.json").read_text(encoding="utf-8"))["scores"]
    assert {name: score["value"] for name, score in scores.items()} == run["scores"]


@pytest.mark.slow
def test_help_of_a_wheel_names_its_own_commands(environment, tmp_path):
    commands = [[f"blink-{name}", "--help"] for name in DOORS]
    done = started([str(environment / "bin" / "python"), "-c", DRIVER, json.dumps(commands)], tmp_path)
    assert done.returncode == 0, done.stderr
    pages = done.stdout.split("RUN ")[1:]
    for name, page in zip(DOORS, pages, strict=True):
        assert f"\nblink-{name} [group=preset]" in page and "CODE 0" in page
        assert "python evaluate.py" not in page and "python -m blink_exp" not in page
        assert "blink_table1, blink_table2" in page and f"conf/{name}.yaml:" in page
    training = started([str(environment / "bin" / "python"), "-m", "blink_exp.train", "--help"], tmp_path)
    assert training.returncode == 0 and "\nblink-train [group=preset]" in f"\n{training.stdout}"


@pytest.mark.slow
def test_a_console_script_composes_a_training(environment, tmp_path):
    done = run(environment, tmp_path, "blink-train", "layer=12", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "layer: 12" in done.stdout and not list(tmp_path.iterdir())


def required(requirements: list[str]) -> set[str]:
    """Names of distributions that requirements name, in PyPI's normal form."""
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def imported(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is) of every import that runs."""
    inside = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    typed = {id(node) for guard in guards for node in ast.walk(guard)}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from ((str(name).partition(".")[0], id(node) not in inside) for name in names if id(node) not in typed)


@pytest.mark.slow
def test_the_core_installs_what_modules_import_and_extras_what_functions_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = required(project["dependencies"])
    extras = required([line for lines in project["optional-dependencies"].values() for line in lines])
    of = {name: {d.lower().replace("_", "-") for d in providers} for name, providers in packages_distributions().items()}
    harness = ROOT / "blink_exp" / "integrations" / "lmms_eval.py"  # imported by lmms-eval alone
    wrong = []
    for path in sorted((ROOT / "blink_exp").rglob("*.py")):
        for name, always in imported(ast.parse(path.read_bytes())):
            if name in sys.stdlib_module_names or name == "blink_exp" or path == harness:
                continue
            distributions = of.get(name, {name})
            if not distributions & (core if always else core | extras):
                wrong.append((path.relative_to(ROOT).as_posix(), name))
    assert wrong == []
    assert {"wandb", "deepspeed", "datasets"} <= extras - core


@pytest.mark.parametrize(
    ("typed", "clone", "names"),
    [
        ("sweep.py", True, ["python sweep.py", "python -m blink_exp view"]),
        ("/home/me/.venv/bin/blink-sweep", True, ["blink-sweep", "blink-view"]),
        ("blink-view", True, ["blink-sweep", "blink-view"]),
        ("/site-packages/blink_exp/__main__.py", False, ["blink-sweep", "blink-view"]),
        ("a notebook", False, ["blink-sweep", "blink-view"]),
    ],
)
def test_messages_name_the_command_that_the_user_types(typed, clone, names, monkeypatch):
    monkeypatch.setattr(sys, "argv", [typed])
    monkeypatch.setattr(doors, "CLONE", ROOT if clone else None)
    assert [command_name("sweep"), command_name("view")] == names
    assert command_line("sweep", ["image=my photo.jpg"]) == f"{names[0]} 'image=my photo.jpg'"
    assert as_typed("# python sweep.py table=x, or python -m blink_exp view sample=y") == f"# {names[0]} table=x, or {names[1]} sample=y"


@pytest.mark.slow
def test_no_message_names_a_script_that_a_wheel_does_not_have():
    """``command_name`` says what the user types."""
    fixed = []
    for path in sorted((ROOT / "blink_exp").rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        holders = [
            node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        ]
        documented = {id(node.body[0].value) for node in holders}
        texts = [
            node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
        ]
        named = [
            node.lineno for node in texts if re.search(r"python (train|evaluate|sweep)\.py|python -m blink_exp (view|rescore)", node.value)
        ]
        fixed += [f"{path.relative_to(ROOT)}:{line}" for line in named]
    assert fixed == []


def test_conf_of_a_wheel_is_its_own_whatever_lies_beside_it(tmp_path):
    package = tmp_path / "blink_exp"
    (tmp_path / "conf").mkdir()
    assert (folders.conf_folder(package), folders.clone_of(package)) == (tmp_path / "conf", tmp_path)
    (package / "conf").mkdir(parents=True)
    assert (folders.conf_folder(package), folders.clone_of(package)) == (package / "conf", None)


def test_a_training_of_a_wheel_starts_without_scripts(monkeypatch):
    assert doors.training_process(["layer=3"]) == [sys.executable, str(ROOT / "train.py"), "layer=3"]
    monkeypatch.setattr(doors, "CLONE", None)
    assert doors.training_process(["layer=3"]) == [sys.executable, "-m", "blink_exp.train", "layer=3"]
