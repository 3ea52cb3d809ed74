"""Rules that the source keeps, read off its syntax trees."""

from __future__ import annotations

import ast
import subprocess

import pytest
from support.scripts import ROOT

FILES = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
TEXT = {"read_text": 0, "write_text": 1}  # methods of Path, and how many arguments stand before the encoding


def unencoded(tree: ast.AST) -> list[int]:
    """Lines that read or write text in whatever encoding the locale has."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bare = [c for c in calls if not any(k.arg in ("encoding", None) for k in c.keywords)]
    paths = [c for c in bare if isinstance(c.func, ast.Attribute) and len(c.args) <= TEXT.get(c.func.attr, -1)]
    opens = [c for c in bare if isinstance(c.func, ast.Name) and c.func.id == "open" and not binary(c)]
    return [c.lineno for c in (*paths, *opens)]


def binary(call: ast.Call) -> bool:
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


@pytest.mark.slow
def test_text_is_utf_8_whatever_the_locale():
    """On a machine with another locale a run would fail where it writes its results."""
    by_file = {file: lines for file in FILES if (lines := unencoded(ast.parse((ROOT / file).read_bytes())))}
    assert not by_file


@pytest.mark.parametrize("line", ["p.read_text()", "p.write_text(t)", "open(p)", "open(p, 'w')"])
def test_the_rule_sees_what_it_forbids(line):
    assert unencoded(ast.parse(line)) == [1]


@pytest.mark.parametrize("line", ["p.read_text('utf-8')", "p.write_text(t, encoding='utf-8')", "open(p, 'rb')", "open(p, **how)"])
def test_the_rule_lets_the_rest_pass(line):
    assert not unencoded(ast.parse(line))
