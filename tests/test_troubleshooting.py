"""docs/troubleshooting.md quotes errors that exist: the fixed parts of each are in the source."""

from __future__ import annotations

import ast
import re

import pytest
from support.scripts import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", PAGE, flags=re.M)
SOURCE = sorted([*(ROOT / "blink_exp").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")])


@pytest.fixture(scope="module")
def messages() -> str:
    """Every string of the source, those with values in them with a line break in place of a value."""
    texts = []
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(map(shown, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def shown(part):
    """A part of an f-string: text as it is, what a clone's user types as such, other values as a line end."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    call = part.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
        if call.func.id == "command_name" and isinstance(call.args[0], ast.Constant):
            return f"python {call.args[0].value}.py"
        if call.func.id == "install":
            return "pip install "
    return "\n"


def test_the_page_has_errors_of_every_theme():
    assert len(QUOTED) >= 40
    themes = re.split(r"^## ", PAGE, flags=re.M)[1:-1]
    assert len(themes) >= 7 and all("| `" in theme for theme in themes)


@pytest.mark.slow
@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_error_exists(quoted, messages):
    fixed = [part for part in re.split(r"\.\.\.", quoted) if len(part.strip()) > 3]
    assert fixed
    assert [part for part in fixed if part.strip() not in messages] == []
