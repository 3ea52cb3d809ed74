"""Imports run one way: down the layers of docs/architecture.md. Read off the syntax trees, imports inside functions included."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest
from support.scripts import ROOT

PACKAGE = "blink_exp"
LAZY = 15  # most imports of our own inside functions


def layers(text: str) -> dict[str, int]:
    """{folder or module of the package: number of its layer, the lowest 0} from the fenced block below "## Layers"."""
    block = re.search(r"## Layers\n.*?```\n(.*?)```", text, re.DOTALL)
    assert block
    rows = block[1].strip().splitlines()[::-1]
    return {name: number for number, row in enumerate(rows) for name in row.split("#")[0].split()}


def modules(root: Path) -> dict[str, ast.Module]:
    """{dotted name: syntax tree} of every file of the package."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = (".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for f in files)
    return {name: ast.parse(f.read_bytes()) for name, f in zip(names, files, strict=True)}


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules among ``known`` that a tree imports when it runs; what only type checkers import is left out."""
    checked = {id(n) for t in ast.walk(tree) if isinstance(t, ast.If) and "TYPE_CHECKING" in ast.dump(t.test) for n in ast.walk(t)}
    out: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            out |= {full if (full := f"{node.module}.{a.name}") in known else str(node.module) for a in node.names}
        elif isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
    return out & known


def upward(graph: dict[str, set[str]], layer: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of modules (importing, imported) whose arrow runs up, or between two folders of one layer."""

    def part(name: str) -> str:
        return name.split(".")[1] if "." in name else name

    arrows = [(a, b) for a, targets in graph.items() for b in targets if part(a) != part(b) and PACKAGE not in (a, b)]
    return sorted((a, b) for a, b in arrows if layer[part(b)] >= layer[part(a)])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


TREES = modules(ROOT)
GRAPH = {name: imports(tree, set(TREES)) - {name} for name, tree in TREES.items()}
LAYERS = layers((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_every_folder_and_module_has_a_layer():
    parts = {name.split(".")[1] for name in TREES if "." in name}
    assert set(LAYERS) == parts


def test_no_import_runs_up():
    assert upward(GRAPH, LAYERS) == []


def test_no_modules_import_each_other():
    assert circle(GRAPH) == []


def test_imports_inside_functions_are_few():
    inside = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom) and imports(node, set(TREES))
    ]
    assert len(set(inside)) <= LAZY, inside


def test_the_rules_see_what_they_forbid():
    low, high = f"{PACKAGE}.low.a", f"{PACKAGE}.high.b"
    known = {low, high}
    graph = {high: imports(ast.parse("def f():\n    from blink_exp.low import a"), known), low: imports(ast.parse(f"import {high}"), known)}
    assert upward(graph, {"low": 0, "high": 1}) == [(low, high)]
    assert set(circle(graph)) == known
    only_typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import blink_exp.high.b"
    assert imports(ast.parse(only_typed), known) == set()


@pytest.mark.parametrize(
    "name", re.findall(r"`((?:blink_exp|conf|tests|docs)/[\w/.]+)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))
)
def test_files_that_the_document_names_exist(name):
    assert (ROOT / name).exists()


def defined(tree: ast.Module) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    out = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.add(node.name)
        if isinstance(node, ast.ClassDef):
            out |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return out


STOPS = re.findall(r"`([\w/]+\.py)::([\w.]+)`", (ROOT / "docs" / "architecture.md").read_text("utf-8"))


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_functions_that_the_document_names_exist(file, name):
    assert name in defined(ast.parse((ROOT / file).read_bytes()))


def test_a_question_goes_through_at_most_ten_stops():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    block = text.partition("## What happens to one question")[2].partition("\n## ")[0]
    stops = re.findall(r"^(\d+)\. ", block, re.MULTILINE)
    assert 3 <= len(stops) <= 10 and all(re.search(rf"^{n}\. .*`[\w/]+\.py::", block, re.MULTILINE) for n in stops)


def test_a_new_decision_touches_at_most_four_files():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert len(re.findall(r"^\d+\. ", text.partition("## Adding a decision")[2], re.MULTILINE)) <= 4


def test_the_loop_over_the_layers_stands_once():
    """Nothing but ``run_layers`` calls a layer of the decoder: by any other name it would be a second engine."""
    loops = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and {"position_embeddings", "use_cache"} <= {k.arg for k in node.keywords}
    }
    assert loops == {f"{PACKAGE}.decoder.layers"}


def test_nobody_asks_which_method_it_is():
    """Outside methods/ a method says itself what it supports."""
    policies = {
        node.name
        for name, tree in TREES.items()
        if name.startswith(f"{PACKAGE}.methods.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    asked = {
        (name, inner.id)
        for name, tree in TREES.items()
        if not name.startswith(f"{PACKAGE}.methods.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        for inner in ast.walk(node.args[1])
        if isinstance(inner, ast.Name)
    }
    assert {pair for pair in asked if pair[1] in policies | {"TokenPolicy", "LayerPolicy"}} == set()
